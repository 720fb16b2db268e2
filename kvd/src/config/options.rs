//! The configuration as the core takes it, and the tenant's key out of its secret.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvd_proto::TenantKey;

use super::{Config, NvmeIo, PolicyName, Span, TENANT_NAME};
use crate::core::{
    DramOptions, IoChoice, NvmeOptions, ObjectLimit, ObjectOptions, PolicyChoice, ServeOptions, TenantOptions,
};

const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: u64 = 4096;
/// BLAKE3's context string: never change it, or every stored block is lost.
const TENANT_KEY_CONTEXT: &str = "kvd 2026-11-23 tenant key of a socket";
/// A stop waits this long for moves under way; the supervisors we know kill after 30 s or more.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no tenant key.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("tenant.secret_file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too little to be a secret.
    #[error("tenant.secret_file {path}: {bytes} bytes are no secret, at least 16 are")]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

impl Config {
    /// What the core needs, the tenant's key included. The secret is made when the data folder has none yet.
    ///
    /// # Errors
    /// There is no secret to be had.
    pub fn serve_options(&self) -> Result<ServeOptions, SecretError> {
        let nvme = &self.tiers.nvme;
        let secret = read_or_make_secret(&self.tenant.secret_file, &self.data_dir)?;
        Ok(ServeOptions {
            data_dir: self.data_dir.clone(),
            socket: self.socket.clone(),
            tenant: TenantOptions { name: TENANT_NAME.to_owned(), key: tenant_key(&secret) },
            sessions_max: self.session.max as usize,
            allowed_uids: self.session.allowed_uids.clone(),
            dram: DramOptions {
                path: self.tiers.dram.path.clone(),
                capacity_bytes: self.tiers.dram.capacity.0,
                floor_bytes: self.tiers.dram.floor.0,
                prefault: self.tiers.dram.prefault,
            },
            nvme: nvme.enabled.then(|| NvmeOptions {
                paths: nvme.paths.clone(),
                capacity_bytes: nvme.capacity.0,
                io: match nvme.io {
                    NvmeIo::Auto => IoChoice::Auto,
                    NvmeIo::Uring => IoChoice::Uring,
                    NvmeIo::Blocking => IoChoice::Blocking,
                },
                read_bytes_per_second_max: nvme.read_bandwidth_max.0,
                write_bytes_per_second_max: nvme.write_bandwidth_max.0,
            }),
            object: self.object_options(),
            policy: match self.policy {
                PolicyName::Lru => PolicyChoice::Lru,
                PolicyName::Adaptive => PolicyChoice::Adaptive,
            },
            lease_bytes_max: self.lease.bytes_max.0,
            lease_idle: self.lease.idle.0,
            match_deadline: self.r#match.deadline.0,
            load_deadline: self.load.deadline.0,
            gate_enabled: self.gate.enabled,
            stop_deadline: STOP_DEADLINE,
        })
    }

    /// The tenant's key, for whoever looks at what a daemon has stored. Makes no secret.
    ///
    /// # Errors
    /// There is no secret to be had.
    pub fn tenant_key(&self) -> Result<TenantKey, SecretError> {
        Ok(tenant_key(&read_secret(&self.tenant.secret_file)?))
    }

    /// What a client of the object tier's store needs; `None` where there is no object tier.
    pub fn object_options(&self) -> Option<ObjectOptions> {
        let object = &self.tiers.object;
        let bound = |span: Span| (!span.0.is_zero()).then_some(span.0);
        object.enabled.then(|| ObjectOptions {
            url: object.url.clone(),
            share_bytes: object.share.0,
            endpoint: object.endpoint.clone(),
            region: object.region.clone(),
            path_style: object.path_style,
            ca_file: object.ca_file.clone(),
            credentials_file: object.credentials_file.clone(),
            pack_bytes: object.pack_bytes.0,
            pack_age: object.pack_age.0,
            expire_after: bound(object.expire_after),
            idle_after: bound(object.idle_after),
            limits: object.limits.iter().map(limit).collect(),
            request_timeout: object.request_timeout.0,
            requests_max: object.requests_max as usize,
            sync_every: object.sync_every.0,
            writable: object.writable,
        })
    }
}

fn limit(given: &super::ObjectLimit) -> ObjectLimit {
    ObjectLimit {
        namespace: given.namespace.map(|name| name.0),
        max_age: given.max_age.map(|span| span.0),
        max_idle: given.max_idle.map(|span| span.0),
    }
}

fn tenant_key(secret: &[u8]) -> TenantKey {
    TenantKey::new(blake3::derive_key(TENANT_KEY_CONTEXT, secret))
}

fn read_or_make_secret(path: &Path, data_dir: &Path) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::Io { path: path.to_owned(), source };
    if path.starts_with(data_dir) && !path.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
        make_secret(path).map_err(failed)?;
    }
    read_secret(path)
}

fn read_secret(path: &Path) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::Io { path: path.to_owned(), source };
    let mut secret = Vec::new();
    File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_end(&mut secret)).map_err(failed)?;
    if secret.len() < SECRET_BYTES_MIN {
        return Err(SecretError::Short { path: path.to_owned(), bytes: secret.len() });
    }
    Ok(secret)
}

/// Complete under its name or not at all: two daemons that start at once must read the same secret.
fn make_secret(path: &Path) -> io::Result<()> {
    let mut secret = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        let path = data_dir.join("tenant.secret");
        let first = read_or_make_secret(&path, &data_dir).expect("made");
        assert_eq!(first.len(), 32);
        assert_eq!(read_or_make_secret(&path, &data_dir).expect("read"), first);
        for (path, mode) in [(&path, 0o600), (&data_dir, 0o700)] {
            assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(&data_dir).expect("a folder").count(), 1, "no draft is left");
    }

    #[test]
    fn a_few_bytes_are_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "hunter2").expect("written");
        let error = read_or_make_secret(&path, Path::new("/elsewhere")).expect_err("refused");
        assert!(error.to_string().ends_with("7 bytes are no secret, at least 16 are"), "{error}");
    }
}
