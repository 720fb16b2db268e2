//! The address of a store: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///folder`.
//!
//! An address that cannot be one is refused when it is read, so that whoever holds a [`StoreUrl`] need not ask again.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use url::Url;

/// Nothing real has a longer prefix; keys of all stores end at 1024 bytes, and ours need 120 of them.
const PREFIX_BYTES_MAX: usize = 512;
/// From the shortest name of S3 to the longest of GCS.
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=222;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A folder: of this node, or on a file system that several nodes mount.
    Folder(PathBuf),
    /// A bucket of an object store.
    Bucket(Bucket),
}

/// A bucket, and where in it the tier begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Whose protocol is spoken.
    pub kind: BucketKind,
    /// Its name; of a container, on Azure.
    pub name: String,
    /// What stands before every key, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
}

/// The protocol of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketKind {
    /// S3, of AWS or of anybody who speaks it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl BucketKind {
    /// The scheme of its addresses.
    pub const fn scheme(self) -> &'static str {
        match self {
            BucketKind::S3 => "s3",
            BucketKind::Gcs => "gs",
            BucketKind::Azure => "az",
        }
    }
}

/// Why a text is no address of a store. The text itself is not repeated: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// No scheme.
    #[error("an address of a store begins with s3://, gs://, az:// or file:///")]
    NoScheme,
    /// A path.
    #[error("a path is written with its scheme: file://{0}")]
    Path(String),
    /// A scheme that is not spoken, with the one that was perhaps meant.
    #[error("`{scheme}://` is not spoken here{}", near.map(|near| format!(": did you mean `{near}://`?")).unwrap_or_default())]
    UnknownScheme {
        /// What was written.
        scheme: String,
        /// The nearest that is.
        near: Option<&'static str>,
    },
    /// The address of a server in the place of a bucket's.
    #[error(
        "a server is not a bucket: write s3://BUCKET/PREFIX here, and the server's address into tiers.object.endpoint"
    )]
    Server,
    /// A user or a password in it.
    #[error(
        "credentials do not belong into an address: put them into the environment or into tiers.object.credentials_file"
    )]
    Credentials,
    /// A name that no bucket has.
    #[error("after {0}:// comes the name of a bucket: 3 to 222 letters, digits, dots, dashes or underscores")]
    Bucket(&'static str),
    /// A prefix that no key has.
    #[error("a prefix is made of letters, digits and -_.=+ between slashes, at most 512 bytes in all")]
    Prefix,
    /// No folder.
    #[error("a folder is written from the root, with three slashes: file:///srv/kvd/objects")]
    Folder,
}

impl StoreUrl {
    /// The folder, where the store is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            StoreUrl::Folder(path) => Some(path),
            StoreUrl::Bucket(_) => None,
        }
    }

    /// The bucket, where the store is one.
    pub fn bucket(&self) -> Option<&Bucket> {
        match self {
            StoreUrl::Folder(_) => None,
            StoreUrl::Bucket(bucket) => Some(bucket),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<StoreUrl, StoreUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(if text.starts_with('/') && !text.contains('@') {
                StoreUrlError::Path(text.to_owned())
            } else {
                StoreUrlError::NoScheme
            });
        };
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "s3" => BucketKind::S3,
            "gs" => BucketKind::Gcs,
            "az" => BucketKind::Azure,
            "file" => return folder(text),
            "http" | "https" => return Err(StoreUrlError::Server),
            other => return Err(StoreUrlError::UnknownScheme { near: near(other), scheme: shown(scheme) }),
        };
        bucket(kind, rest).map(StoreUrl::Bucket)
    }
}

fn folder(text: &str) -> Result<StoreUrl, StoreUrlError> {
    let url = Url::parse(text).map_err(|_| StoreUrlError::Folder)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(StoreUrlError::Folder);
    }
    let path = url.to_file_path().map_err(|()| StoreUrlError::Folder)?;
    if path.parent().is_none() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(StoreUrlError::Folder);
    }
    Ok(StoreUrl::Folder(path))
}

fn bucket(kind: BucketKind, rest: &str) -> Result<Bucket, StoreUrlError> {
    if rest.contains('@') {
        return Err(StoreUrlError::Credentials);
    }
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let ends = |name: &str| name.starts_with(['.', '-']) || name.ends_with(['.', '-']);
    if !BUCKET_BYTES.contains(&name.len()) || !name.chars().all(of_name) || name.contains("..") || ends(name) {
        return Err(StoreUrlError::Bucket(kind.scheme()));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let of_prefix = |c: char| of_name(c) || matches!(c, '=' | '+');
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(of_prefix);
    if prefix.len() > PREFIX_BYTES_MAX || (!prefix.is_empty() && !prefix.split('/').all(good)) {
        return Err(StoreUrlError::Prefix);
    }
    Ok(Bucket { kind, name: name.to_owned(), prefix: prefix.to_owned() })
}

/// Names that others give to the same protocols, and ours for slips of the finger.
fn near(scheme: &str) -> Option<&'static str> {
    const NAMES: [(&str, &str); 13] = [
        ("s3", "s3"),
        ("s3a", "s3"),
        ("s3n", "s3"),
        ("minio", "s3"),
        ("gs", "gs"),
        ("gcs", "gs"),
        ("gcp", "gs"),
        ("az", "az"),
        ("azure", "az"),
        ("abfs", "az"),
        ("abfss", "az"),
        ("wasb", "az"),
        ("file", "file"),
    ];
    let scored = NAMES.iter().map(|(name, ours)| (strsim::jaro_winkler(scheme, name), *ours));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= 0.65).map(|(_, ours)| ours)
}

fn shown(scheme: &str) -> String {
    scheme.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Folder(path) => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                // Only a path that does not begin at the root has no address; none is made from text.
                Err(()) => write!(f, "file://{}", path.display()),
            },
            StoreUrl::Bucket(bucket) if bucket.prefix.is_empty() => {
                write!(f, "{}://{}", bucket.kind.scheme(), bucket.name)
            }
            StoreUrl::Bucket(bucket) => write!(f, "{}://{}/{}", bucket.kind.scheme(), bucket.name, bucket.prefix),
        }
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct StoreUrlVisitor;

impl Visitor<'_> for StoreUrlVisitor {
    type Value = StoreUrl;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address like \"s3://bucket/prefix\" or \"file:///srv/kvd/objects\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StoreUrl, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(StoreUrlVisitor)
    }
}

impl JsonSchema for StoreUrl {
    fn schema_name() -> Cow<'static, str> {
        "StoreUrl".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<StoreUrl>().expect_err(text).to_string()
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for text in ["s3://bucket", "s3://bucket/a/b-c", "gs://my_bucket.eu/kv=1", "az://container/p", "file:///srv/kv"]
        {
            let url: StoreUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), text);
        }
        for path in ["/srv/with space", "/srv/50%", "/srv/a#b?c", "/srv/ä"] {
            let url = StoreUrl::Folder(path.into());
            assert_eq!(url.to_string().parse(), Ok(url), "{path}");
        }
        assert_eq!("S3://bucket/p/".parse::<StoreUrl>().map(|url| url.to_string()).as_deref(), Ok("s3://bucket/p"));
    }

    #[test]
    fn a_slip_in_the_scheme_is_understood() {
        for (wrong, right) in
            [("s4", "s3"), ("s3a", "s3"), ("gcs", "gs"), ("azure", "az"), ("abfss", "az"), ("fil", "file")]
        {
            let said = refusal(&format!("{wrong}://bucket"));
            assert!(said.ends_with(&format!("did you mean `{right}://`?")), "{wrong}: {said}");
        }
        assert_eq!(refusal("ipfs123456://x"), "`ipfs123456://` is not spoken here");
        assert!(refusal("https://minio:9000/bucket").contains("tiers.object.endpoint"));
        assert_eq!(refusal("/srv/kv"), "a path is written with its scheme: file:///srv/kv");
        assert!(refusal("bucket/prefix").contains("begins with"));
    }

    #[test]
    fn what_can_be_no_store_is_refused_and_no_password_is_repeated() {
        for text in ["s3://", "s3://ab", "s3://a b c", "s3://.bucket", "s3://a..b", "s3://bucket?x=1", "gs://büro"] {
            assert!(refusal(text).contains("comes the name of a bucket"), "{text}");
        }
        for text in ["s3://bucket/a//b", "s3://bucket/../x", "s3://bucket/a b", "s3://bucket/%2e", "s3://bucket//a"] {
            assert_eq!(text.parse::<StoreUrl>(), Err(StoreUrlError::Prefix), "{text}");
        }
        assert_eq!(format!("s3://bucket/{}", "x".repeat(513)).parse::<StoreUrl>(), Err(StoreUrlError::Prefix));
        for text in ["file://srv/kv", "file:///", "file:///a?b", "file:///a%00b"] {
            assert_eq!(text.parse::<StoreUrl>(), Err(StoreUrlError::Folder), "{text}");
        }
        for text in ["s3://me:hunter2@bucket/x", "/me:hunter2@bucket", "https://me:hunter2@host/x"] {
            assert!(!refusal(text).contains("hunter2"), "{text}");
        }
    }
}
