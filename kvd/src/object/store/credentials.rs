//! Credentials out of a file in the format of AWS (`[default]`, `aws_access_key_id = ...`), read again when it changes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

const FILE_BYTES_MAX: u64 = 64 << 10;
const PROFILE: &str = "default";

/// Why a file gives no credentials. What stands in it is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A key is missing from the profile.
    #[error("{path}: no `{key}` in the profile [default]")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
}

/// Gives the credentials that stand in a file at the moment of a request.
pub(super) struct FileCredentials {
    path: PathBuf,
    /// Guards the last reading, with what the file looked like then; held while a small file is read, and no other lock
    /// is taken under it.
    known: Mutex<Option<(Stamp, Arc<AwsCredential>)>>,
}

type Stamp = (i64, i64, u64, u64);

impl fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in it.
        f.debug_struct("FileCredentials").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FileCredentials {
    /// Reads the file once, so that a wrong one is known at start.
    pub(super) fn open(path: &Path) -> Result<FileCredentials, CredentialsError> {
        let credentials = FileCredentials { path: path.to_owned(), known: Mutex::new(None) };
        credentials.current()?;
        Ok(credentials)
    }

    fn current(&self) -> Result<Arc<AwsCredential>, CredentialsError> {
        let failed = |source| CredentialsError::Io { path: self.path.clone(), source };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::open(&self.path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let stamp = (meta.mtime(), meta.mtime_nsec(), meta.ino(), meta.len());
        if let Some((seen, credential)) = known.as_ref()
            && *seen == stamp
        {
            return Ok(Arc::clone(credential));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let missing = |key| CredentialsError::Missing { path: self.path.clone(), key };
        let credential = Arc::new(read(&String::from_utf8_lossy(&bytes)).map_err(missing)?);
        *known = Some((stamp, Arc::clone(&credential)));
        Ok(credential)
    }
}

impl CredentialProvider for FileCredentials {
    type Credential = AwsCredential;

    fn get_credential<'a, 'f>(
        &'a self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        let current = self.current().map_err(|error| object_store::Error::Unauthenticated {
            path: self.path.display().to_string(),
            source: Box::new(error),
        });
        Box::pin(std::future::ready(current))
    }
}

/// The profile's credential, or the key that it lacks.
fn read(text: &str) -> Result<AwsCredential, &'static str> {
    let (mut key_id, mut secret_key, mut token) = (None, None, None);
    let mut within = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            within = section.split(']').next().is_some_and(|name| name.trim() == PROFILE);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| within && !line.starts_with(['#', ';'])) {
            let place = match key.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => &mut key_id,
                "aws_secret_access_key" => &mut secret_key,
                "aws_session_token" => &mut token,
                _ => continue,
            };
            *place = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    Ok(AwsCredential {
        key_id: key_id.ok_or("aws_access_key_id")?,
        secret_key: secret_key.ok_or("aws_secret_access_key")?,
        token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_read_and_no_other() {
        let text = "# comment\n[other]\naws_access_key_id = no\naws_secret_access_key = no\n\
                    [default]\nAWS_ACCESS_KEY_ID=id\n ; aws_session_token = no\naws_secret_access_key = a=b+/ \nregion = x\n\
                    [third]\naws_access_key_id = no\n";
        let credential = read(text).expect("read");
        assert_eq!((credential.key_id.as_str(), credential.secret_key.as_str()), ("id", "a=b+/"));
        assert_eq!(credential.token, None);
        assert_eq!(read("[default]\naws_access_key_id = id\n"), Err("aws_secret_access_key"));
        assert_eq!(read("aws_access_key_id = id\naws_secret_access_key = s"), Err("aws_access_key_id"));
        for junk in ["", "[", "]", "=", "[default]\n=\n==", "\u{0}\u{ffff}"] {
            assert_eq!(read(junk), Err("aws_access_key_id"), "{junk:?}");
        }
    }

    #[test]
    fn a_file_that_changes_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("credentials");
        let write = |id: &str| {
            let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = hunter2\n");
            // As secrets are replaced: a new file under the old name.
            let draft = folder.path().join(id);
            std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, &path)).expect("written");
        };
        write("first");
        let credentials = FileCredentials::open(&path).expect("opened");
        assert_eq!(credentials.current().expect("read").key_id, "first");
        write("second");
        assert_eq!(credentials.current().expect("read").key_id, "second");
        std::fs::remove_file(&path).expect("removed");
        let said = credentials.current().expect_err("gone").to_string();
        assert!(said.starts_with(&path.display().to_string()), "{said}");
        assert!(!format!("{credentials:?} {said}").contains("hunter2"));
    }
}
