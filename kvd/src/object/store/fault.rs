//! What can go wrong with a request, by what it means for whoever asked. Nothing deeper sees an error of the client library.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::Op;
use super::wire::Refused;

/// An operator reads the beginning; what follows is request ids and addresses.
const TEXT_BYTES_MAX: usize = 300;

/// Why a request gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The credentials are wrong, have expired, do not allow this, or there are none.
    #[error("access denied: {0}")]
    Denied(String),
    /// There is no such bucket.
    #[error("no such bucket: {0}")]
    NoBucket(String),
    /// The store wants fewer requests (429, 503).
    #[error("the store asks for fewer requests: {0}")]
    Throttled(String),
    /// Name, connection or TLS failed, or the connection broke.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// Nothing came for so long.
    #[error("the store was silent for {0:?}")]
    Stalled(Duration),
    /// The caller's deadline passed.
    #[error("not done by its deadline")]
    Timeout,
    /// Fewer bytes than asked for.
    #[error("{got} bytes came where {wanted} were asked for")]
    Short {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that came, or that there are.
        got: u64,
        /// The connection ended before its time; otherwise the object itself is shorter, and asking again is of no use.
        cut: bool,
    },
    /// More bytes than asked for, or than may be taken.
    #[error("more than the {wanted} bytes came that were asked for or may be taken")]
    Long {
        /// Bytes asked for, or the most that may be taken.
        wanted: u64,
    },
    /// The store failed (5xx), or said so within an answer that looks like success.
    #[error("the store failed: {0}")]
    Server(String),
    /// This node only reads the store, or the folder cannot be written.
    #[error("the store is only read")]
    ReadOnly,
    /// There is no room for more.
    #[error("the store is full: {0}")]
    Full(String),
    /// Not asked: the store failed just now, and is tried again in a while.
    #[error("not asked: the store failed a moment ago")]
    Open,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// How many kinds there are.
    pub(super) const KINDS: usize = Self::LABELS.len();

    /// The words for them in metrics, by number.
    pub(super) const LABELS: [&'static str; 14] = [
        "not_found",
        "denied",
        "no_bucket",
        "throttled",
        "unreachable",
        "stalled",
        "timeout",
        "short",
        "long",
        "server",
        "read_only",
        "full",
        "open",
        "other",
    ];

    /// Whether asking again may help, and whether the store itself is to blame.
    pub fn is_transient(&self) -> bool {
        match self {
            Fault::Throttled(_) | Fault::Unreachable(_) | Fault::Stalled(_) | Fault::Timeout | Fault::Server(_) => true,
            Fault::Short { cut, .. } => *cut,
            Fault::NotFound
            | Fault::Denied(_)
            | Fault::NoBucket(_)
            | Fault::Long { .. }
            | Fault::ReadOnly
            | Fault::Full(_)
            | Fault::Open
            | Fault::Other(_) => false,
        }
    }

    /// The word for it in metrics.
    pub const fn label(&self) -> &'static str {
        Self::LABELS[self.kind()]
    }

    /// Its number, below [`Fault::KINDS`].
    pub(super) const fn kind(&self) -> usize {
        match self {
            Fault::NotFound => 0,
            Fault::Denied(_) => 1,
            Fault::NoBucket(_) => 2,
            Fault::Throttled(_) => 3,
            Fault::Unreachable(_) => 4,
            Fault::Stalled(_) => 5,
            Fault::Timeout => 6,
            Fault::Short { .. } => 7,
            Fault::Long { .. } => 8,
            Fault::Server(_) => 9,
            Fault::ReadOnly => 10,
            Fault::Full(_) => 11,
            Fault::Open => 12,
            Fault::Other(_) => 13,
        }
    }

    /// What an error of the client library means for a request of this kind.
    pub(super) fn of(error: &object_store::Error, op: Op) -> Fault {
        use object_store::Error;
        let text = error.to_string();
        // Nobody gave credentials, so the cloud's metadata service was asked, and there is none: no fault of the store.
        if METADATA_HOSTS.iter().any(|host| text.contains(host)) {
            return Fault::Denied("no credentials are given, and no instance metadata service gives any".into());
        }
        let text = cut(&text);
        // Said by those who give credentials; the store's own refusals come as answers, below.
        if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
            || text.contains("token file")
        {
            return Fault::Denied(text);
        }
        let mut current: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(step) = current {
            if let Some(refused) = step.downcast_ref::<Refused>() {
                return of_answer(refused, op);
            }
            if let Some(http) = step.downcast_ref::<HttpError>()
                && !http.source().is_some_and(|source| source.is::<Refused>())
            {
                return of_connection(http);
            }
            if let Some(io) = step.downcast_ref::<io::Error>() {
                return of_disk(io);
            }
            current = step.source();
        }
        match error {
            Error::NotFound { .. } => Fault::NotFound,
            // An answer that cannot be read: headers are missing, a list is no list, a range was not kept to.
            Error::Generic { .. } => Fault::Server(text),
            _ => Fault::Other(text),
        }
    }

    /// What an error within a body means, of which `got` of `wanted` bytes have come.
    pub(super) fn of_body(error: &object_store::Error, wanted: u64, got: u64) -> Fault {
        let mut current: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(step) = current {
            if step.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
                return Fault::Short { wanted, got, cut: true };
            }
            current = step.source();
        }
        Fault::of(error, Op::Get)
    }
}

/// Whether the answer to "create only" is that somebody was first.
pub(super) fn is_there_already(error: &object_store::Error) -> bool {
    let mut current: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(step) = current {
        if let Some(refused) = step.downcast_ref::<Refused>() {
            // 412 is the rule, 304 some servers' idea of it, 409 Azure's; S3 has a 409 for "somebody is at it", which is neither.
            return match refused.status {
                304 | 412 => true,
                409 => !PASSING_CONFLICTS.contains(&refused.code.as_str()),
                _ => false,
            };
        }
        current = step.source();
    }
    matches!(error, object_store::Error::AlreadyExists { .. })
}

const PASSING_CONFLICTS: [&str; 2] = ["ConditionalRequestConflict", "OperationAborted"];

/// Where clouds give credentials to their own machines.
const METADATA_HOSTS: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// Codes of answers with status 400 that are about who asks: S3, its token service, OAuth, Azure.
const CREDENTIAL_CODES: [&str; 10] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidIdentityToken",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "invalid_grant",
    "invalid_client",
    "unauthorized_client",
];

fn of_answer(refused: &Refused, op: Op) -> Fault {
    let text = cut(&refused.to_string());
    let code = refused.code.as_str();
    match (refused.status, code) {
        (_, "NoSuchBucket" | "ContainerNotFound") => Fault::NoBucket(text),
        (_, "SlowDown" | "ServerBusy") => Fault::Throttled(text),
        (400, code) if CREDENTIAL_CODES.contains(&code) => Fault::Denied(text),
        (401 | 403, _) => Fault::Denied(text),
        // An empty list and a new object are no 404: what is missing there is the bucket.
        (404, _) => match op {
            Op::List | Op::Put => Fault::NoBucket(text),
            Op::Get | Op::Head | Op::Delete => Fault::NotFound,
        },
        (400 | 408, "RequestTimeout") | (408, _) => Fault::Server(text),
        // What was sent is not what came.
        (400, "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch") => Fault::Server(text),
        // Somebody writes the same object at this moment: neither done nor there yet.
        (409, code) if PASSING_CONFLICTS.contains(&code) => Fault::Server(text),
        // The range begins behind the object's end; who asked knows how much was wanted.
        (416, _) => Fault::Short { wanted: 0, got: 0, cut: false },
        (429 | 503, _) => Fault::Throttled(text),
        (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded") => Fault::Full(text),
        (501, _) => Fault::Other(text),
        // 2xx with an error inside.
        (200..=299 | 500..=599, _) => Fault::Server(text),
        _ => Fault::Other(text),
    }
}

fn of_connection(http: &HttpError) -> Fault {
    let text = cut(&chain(http));
    match http.kind() {
        HttpErrorKind::Decode => Fault::Server(text),
        HttpErrorKind::Connect
        | HttpErrorKind::Request
        | HttpErrorKind::Timeout
        | HttpErrorKind::Interrupted
        | HttpErrorKind::Unknown => Fault::Unreachable(text),
        _ => Fault::Unreachable(text),
    }
}

/// What a local folder says.
pub(super) fn of_disk(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound => Fault::NotFound,
        io::ErrorKind::PermissionDenied => Fault::Denied(error.to_string()),
        io::ErrorKind::ReadOnlyFilesystem => Fault::ReadOnly,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::Full(error.to_string()),
        io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle => Fault::Unreachable(error.to_string()),
        _ => Fault::Server(error.to_string()),
    }
}

/// An error with its causes; those of the connection say nothing without them.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut current = error.source();
    while let Some(step) = current {
        let more = step.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        current = step.source();
    }
    text
}

/// One line of bounded length.
pub(super) fn cut(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > TEXT_BYTES_MAX {
        line.truncate(line.floor_char_boundary(TEXT_BYTES_MAX));
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> Refused {
        Refused { status, code: code.into(), message: "told".into() }
    }

    #[test]
    fn an_answer_is_sorted_by_status_and_code() {
        let cases = [
            (403, "SignatureDoesNotMatch", Op::Get, "denied"),
            (401, "", Op::Put, "denied"),
            (400, "ExpiredToken", Op::List, "denied"),
            (400, "InvalidArgument", Op::List, "other"),
            (404, "NoSuchBucket", Op::Get, "no_bucket"),
            (404, "NoSuchKey", Op::Get, "not_found"),
            (404, "", Op::Head, "not_found"),
            (404, "", Op::List, "no_bucket"),
            (404, "", Op::Put, "no_bucket"),
            (409, "ConditionalRequestConflict", Op::Put, "server"),
            (400, "RequestTimeout", Op::Put, "server"),
            (400, "BadDigest", Op::Put, "server"),
            (408, "", Op::Put, "server"),
            (429, "", Op::Get, "throttled"),
            (503, "", Op::Get, "throttled"),
            (503, "SlowDown", Op::Get, "throttled"),
            (200, "SlowDown", Op::List, "throttled"),
            (200, "InternalError", Op::List, "server"),
            (500, "", Op::Get, "server"),
            (501, "NotImplemented", Op::Put, "other"),
            (507, "", Op::Put, "full"),
            (301, "PermanentRedirect", Op::Get, "other"),
        ];
        for (status, code, op, label) in cases {
            assert_eq!(of_answer(&refused(status, code), op).label(), label, "{status} {code} {op:?}");
        }
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        let text = String::new;
        let transient = [
            Fault::Throttled(text()),
            Fault::Unreachable(text()),
            Fault::Stalled(Duration::from_secs(1)),
            Fault::Timeout,
            Fault::Server(text()),
            Fault::Short { wanted: 2, got: 1, cut: true },
        ];
        let lasting = [
            Fault::NotFound,
            Fault::Denied(text()),
            Fault::NoBucket(text()),
            Fault::Short { wanted: 2, got: 1, cut: false },
            Fault::Long { wanted: 2 },
            Fault::ReadOnly,
            Fault::Full(text()),
            Fault::Open,
            Fault::Other(text()),
        ];
        assert!(transient.iter().all(Fault::is_transient));
        assert!(!lasting.iter().any(Fault::is_transient));
        let kinds: std::collections::BTreeSet<_> = transient.iter().chain(&lasting).map(Fault::kind).collect();
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), (0..Fault::KINDS).collect::<Vec<_>>());
    }

    #[test]
    fn a_machine_without_credentials_is_no_outage_of_the_store() {
        let source = "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error: refused".into();
        let asked = object_store::Error::Generic { store: "S3", source };
        assert!(matches!(Fault::of(&asked, Op::Get), Fault::Denied(text) if text.starts_with("no credentials")));
        let source = "Failed to read token file '/var/run/token': gone".into();
        let token = object_store::Error::Generic { store: "S3", source };
        assert_eq!(Fault::of(&token, Op::Get).label(), "denied");
        let source = "Last-Modified Header missing from response".into();
        let strange = object_store::Error::Generic { store: "S3", source };
        assert_eq!(Fault::of(&strange, Op::Get).label(), "server");
    }

    #[test]
    fn a_long_answer_is_cut_to_one_line() {
        let line = cut(&"ä\n".repeat(1000));
        assert!(line.len() <= TEXT_BYTES_MAX + 3 && line.ends_with("...") && !line.contains('\n'), "{line}");
    }
}
