//! An authority that nobody knows, and a certificate of it for this machine.

use super::*;

pub(super) fn authority(folder: &Path) -> PathBuf {
    folder.join("authority.pem")
}

/// Makes them by `openssl`; returns the certificate and its key.
pub(super) fn make(folder: &Path) -> Result<(PathBuf, PathBuf), String> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        let ended = command.args(arguments.split(' ')).current_dir(folder).stdin(Stdio::null()).output();
        let ended = ended.map_err(|error| format!("openssl: {error}"))?;
        let said = String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().to_owned();
        if ended.status.success() { Ok(()) } else { Err(format!("openssl {arguments}: {said}")) }
    };
    let names = "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n";
    fs::write(folder.join("names"), names).map_err(told)?;
    openssl("ecparam -name prime256v1 -genkey -noout -out authority.key")?;
    openssl(
        "req -x509 -new -key authority.key -days 30 -subj /CN=tests -out authority.pem \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
    )?;
    openssl("ecparam -name prime256v1 -genkey -noout -out server.key")?;
    openssl("req -new -key server.key -subj /CN=localhost -out server.csr")?;
    openssl(
        "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 30 -extfile names \
         -out server.pem",
    )?;
    Ok((folder.join("server.pem"), folder.join("server.key")))
}
