//! Whether a store is fit to be used: everything that kvd does with one, once, on an object that nobody else knows.

use std::fmt;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Fault, Put, Store};

const FIRST: &[u8] = b"kvd: written by a check of this store, and deleted at its end\n";
const SECOND: &[u8] = b"kvd: what must not take the place of the first\n";

/// What a fit store showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How long the whole check took.
    pub took: Duration,
    /// Whether it was written to; otherwise the store is only read, and only a list was asked for.
    pub written: bool,
}

/// Below it lies what checks write, for a moment.
pub(crate) const CANARY_PREFIX: &str = "canary/";

/// Whether a check may have written it: 32 hexadecimal digits and nothing else.
pub(crate) fn is_canary(path: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    path.strip_prefix(CANARY_PREFIX).is_some_and(|name| name.len() == 32 && name.bytes().all(digit))
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Names were listed.
    List,
    /// An object was written.
    Write,
    /// It was read back.
    Read,
    /// It was written once more, where it must not be.
    WriteAgain,
    /// It was deleted.
    Delete,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::List => "listing",
            Step::Write => "writing an object",
            Step::Read => "reading it back",
            Step::WriteAgain => "writing it a second time",
            Step::Delete => "deleting it",
        })
    }
}

/// Why a store is not fit; one cause each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It does not know who asks.
    #[error("the store does not accept the credentials: {0}")]
    Credentials(String),
    /// It knows who asks, and does not allow it.
    #[error("the credentials do not allow {step}: {why}")]
    Forbidden {
        /// What.
        step: Step,
        /// In the store's words.
        why: String,
    },
    /// It can be listed, not written.
    #[error("the store can be listed, but not written: {0}")]
    OnlyRead(String),
    /// No such bucket or folder.
    #[error("there is no such bucket: {0}")]
    NoBucket(String),
    /// The bucket is somewhere else.
    #[error("the bucket is in another region: {0}")]
    Region(String),
    /// Nobody answers.
    #[error("nobody answers there: {0}")]
    Unreachable(String),
    /// An object that was there was written over, or could not be created with the condition that there be none.
    #[error("this store does not honour create-only writes; kvd cannot share it safely")]
    NotCreateOnly,
    /// What was read is not what was written.
    #[error("the store gave back other bytes than were written")]
    Changed,
    /// There is not even a client for it.
    #[error("{0}")]
    Unusable(String),
    /// Anything else.
    #[error("{step} failed: {fault}")]
    Fault {
        /// What was tried.
        step: Step,
        /// How it failed.
        fault: Fault,
    },
}

impl ProbeError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            ProbeError::Credentials(_) => {
                "check the secret and the clock: tiers.object.credentials_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY in the daemon's environment"
            }
            ProbeError::Forbidden { .. } => {
                "allow kvd to list, read, create and delete objects below the prefix (s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject)"
            }
            ProbeError::OnlyRead(_) => {
                "allow writing (s3:PutObject), or set tiers.object.writable = false on a node that only reads"
            }
            ProbeError::NoBucket(_) => "make the bucket, or correct tiers.object.url; kvd makes none",
            ProbeError::Region(_) => "set tiers.object.region to the bucket's own",
            ProbeError::Unreachable(_) => {
                "check tiers.object.endpoint, the network and proxies; for a certificate of one's own set tiers.object.ca_file"
            }
            ProbeError::NotCreateOnly => {
                "use a store that knows If-None-Match on PUT (AWS, GCS, Azure, MinIO, Ceph, R2; newer releases), or a folder"
            }
            ProbeError::Changed => "look for a cache or a proxy between kvd and the store, and take it away",
            ProbeError::Unusable(_) => "correct what is named",
            ProbeError::Fault { .. } => "look at the store's own log, and try again",
        }
    }

    fn of(step: Step, fault: Fault) -> ProbeError {
        match fault {
            Fault::Denied(why) if is_about_credentials(&why) => ProbeError::Credentials(why),
            Fault::Denied(why) if step == Step::Write => ProbeError::OnlyRead(why),
            Fault::Denied(why) => ProbeError::Forbidden { step, why },
            Fault::ReadOnly => ProbeError::OnlyRead(Fault::ReadOnly.to_string()),
            Fault::NoBucket(why) => ProbeError::NoBucket(why),
            Fault::Unreachable(why) => ProbeError::Unreachable(why),
            Fault::Stalled(_) | Fault::Timeout if step == Step::List => ProbeError::Unreachable(fault.to_string()),
            Fault::Other(why) if says(&why, &REGION_WORDS) => ProbeError::Region(why),
            Fault::Other(why) if matches!(step, Step::Write | Step::WriteAgain) && says(&why, &["status 501"]) => {
                ProbeError::NotCreateOnly
            }
            fault => ProbeError::Fault { step, fault },
        }
    }
}

const REGION_WORDS: [&str; 5] =
    ["status 301", "status 307", "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint"];

/// As against rights: the signature, the key, the clock, the token.
fn is_about_credentials(why: &str) -> bool {
    const WORDS: [&str; 12] = [
        "SignatureDoesNotMatch",
        "InvalidAccessKeyId",
        "RequestTimeTooSkewed",
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
        "AuthenticationFailed",
        "InvalidAuthenticationInfo",
        "invalid_grant",
        "credentials",
        "token file",
        "status 401",
    ];
    says(why, &WORDS)
}

fn says(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

impl Store {
    /// Lists, writes an object of a random name, reads it, tries to write over it, and deletes it.
    ///
    /// # Errors
    /// The first thing that is not as it must be. The object may be left behind, below `canary/`.
    pub async fn probe(&self, deadline: Instant) -> Result<Probe, ProbeError> {
        let begun = Instant::now();
        let failed = |step| move |fault| ProbeError::of(step, fault);
        self.list("", None, 1, deadline).await.map_err(failed(Step::List))?;
        if !self.inner.writable {
            return Ok(Probe { took: begun.elapsed(), written: false });
        }
        let path = format!("{CANARY_PREFIX}{:016x}{:016x}", random(0), random(1));
        let seen = self.canary(&path, deadline).await;
        let deleted = self.delete(&path, deadline).await.map_err(failed(Step::Delete));
        seen.and(deleted)?;
        Ok(Probe { took: begun.elapsed(), written: true })
    }

    async fn canary(&self, path: &str, deadline: Instant) -> Result<(), ProbeError> {
        let failed = |step| move |fault| ProbeError::of(step, fault);
        let put = |bytes| self.put_new(path, vec![Bytes::from_static(bytes)], deadline);
        // The name is random: what is there already was written by a request of this call whose answer was lost.
        let _: Put = put(FIRST).await.map_err(failed(Step::Write))?;
        self.expect_first(path, deadline).await?;
        match put(SECOND).await {
            Ok(Put::AlreadyThere) => self.expect_first(path, deadline).await,
            Ok(Put::Created) => Err(ProbeError::NotCreateOnly),
            Err(fault) => Err(ProbeError::of(Step::WriteAgain, fault)),
        }
    }

    async fn expect_first(&self, path: &str, deadline: Instant) -> Result<(), ProbeError> {
        let bytes = self.get(path, FIRST.len() as u64, deadline).await;
        match bytes.map_err(|fault| ProbeError::of(Step::Read, fault))? == FIRST {
            true => Ok(()),
            false => Err(ProbeError::Changed),
        }
    }
}

/// Seeded by the operating system, through the standard library.
fn random(salt: u8) -> u64 {
    std::hash::RandomState::new().hash_one(salt)
}
