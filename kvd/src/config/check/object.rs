//! The object tier's part: what of its keys does not fit together, the machine, or the store that is named.

use std::path::Path;
use std::time::Duration;

use url::Url;

use super::super::defaults::{PACK_BYTES_MAX, PACK_BYTES_MIN};
use super::super::units::{Size, Span, rough};
use super::super::{Object, ObjectLimit, TENANT_NAME};
use super::Checker;
use crate::machine::EntryKind;
use crate::object::options::{BucketKind, StoreUrl};

const REQUESTS_MAX: u32 = 256;
/// Below this the tier is asked for news more often than a list takes.
const SYNC_MIN: Duration = Duration::from_millis(100);
/// A store across a continent needs most of a second for its first byte.
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const SPAN_MAX: Duration = Duration::from_secs(3600);

/// Variables of which one says who asks S3.
const AWS_VARIABLES: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

/// More than a pool has namespaces; each is looked up for every pack.
const LIMITS_MAX: usize = 1024;

/// Why a limit is none, and what to do about it.
fn wrong_limit(object: &Object, at: usize, limit: &ObjectLimit) -> Option<(String, &'static str)> {
    if limit.namespace.is_none() && limit.tenant.is_none() {
        let message = "it says neither which namespace nor which tenant it is for".to_owned();
        return Some((
            message,
            "add namespace or tenant; for all packs set tiers.object.expire_after and tiers.object.idle_after",
        ));
    }
    if let Some(tenant) = limit.tenant.as_deref().filter(|tenant| *tenant != TENANT_NAME) {
        let message = format!("no tenant `{tenant}` is served here: a daemon has one, `{TENANT_NAME}`");
        return Some((message, "write tenant = \"default\", or set the limit where that tenant is served"));
    }
    if limit.max_age.is_none() && limit.max_idle.is_none() {
        return Some(("it limits nothing".to_owned(), "add max_age or max_idle; \"0s\" is for ever"));
    }
    for (name, span) in [("max_age", limit.max_age), ("max_idle", limit.max_idle)] {
        if let Some(span) = span.filter(|span| !span.0.is_zero() && *span <= object.pack_age) {
            let message = format!(
                "{name} of {span}: packs would go as soon as they come, after tiers.object.pack_age of {}",
                object.pack_age
            );
            return Some((message, "write \"0s\" for ever, or an hour or more"));
        }
    }
    let earlier = object.limits[..at].iter().position(|other| other.namespace == limit.namespace)?;
    Some((format!("it is for the same packs as limit {}", earlier + 1), "write one limit with both ages"))
}

impl Checker<'_> {
    pub(super) fn object(&mut self) {
        let object = &self.loaded.config.tiers.object;
        if !object.enabled {
            return;
        }
        self.object_numbers(object);
        self.object_limits(object);
        self.object_server(object);
        self.object_files(object);
        match &object.url {
            StoreUrl::Folder(path) => self.object_folder(object, path),
            StoreUrl::Bucket(bucket) => self.object_bucket(object, bucket.kind),
        }
    }

    fn object_numbers(&mut self, object: &Object) {
        let pack = object.pack_bytes;
        if !(PACK_BYTES_MIN..=PACK_BYTES_MAX).contains(&pack.0) {
            let message =
                format!("{pack} for one pack: from {} to {} are possible", Size(PACK_BYTES_MIN), Size(PACK_BYTES_MAX));
            self.refuse("tiers.object.pack_bytes", message, "set tiers.object.pack_bytes = \"64MiB\"");
        } else if object.writable && object.share.0 < 2 * pack.0 {
            let message = format!("{} has no room for two packs of {pack}", object.share);
            let remedy = format!(
                "set tiers.object.share to at least \"{}\", smaller packs, or tiers.object.enabled = false",
                Size(2 * pack.0)
            );
            self.refuse("tiers.object.share", message, &remedy);
        }
        if !(1..=REQUESTS_MAX).contains(&object.requests_max) {
            let message = format!("{} requests: from 1 to {REQUESTS_MAX} are possible", object.requests_max);
            self.refuse("tiers.object.requests_max", message, "set tiers.object.requests_max = 32");
        }
        let spans = [
            ("tiers.object.request_timeout", object.request_timeout, REQUEST_TIMEOUT_MIN, "10s"),
            ("tiers.object.sync_every", object.sync_every, SYNC_MIN, "1s"),
            ("tiers.object.pack_age", object.pack_age, Duration::from_millis(10), "2s"),
        ];
        for (key, span, least, example) in spans {
            if !(least..=SPAN_MAX).contains(&span.0) {
                let message = format!("{span}: from {} to {} are possible", Span(least), Span(SPAN_MAX));
                self.refuse(key, message, &format!("set {key} = \"{example}\""));
            }
        }
        for (key, span) in
            [("tiers.object.expire_after", object.expire_after), ("tiers.object.idle_after", object.idle_after)]
        {
            if !span.0.is_zero() && span <= object.pack_age {
                let message = format!(
                    "{span}: packs would go as soon as they come, after tiers.object.pack_age of {}",
                    object.pack_age
                );
                self.refuse(key, message, &format!("set {key} = \"0s\" for never, or to an hour or more"));
            }
        }
    }

    /// Each limit by itself, and that no two are for the same packs.
    fn object_limits(&mut self, object: &Object) {
        let key = "tiers.object.limits";
        if object.limits.len() > LIMITS_MAX {
            let message = format!("{} limits: {LIMITS_MAX} are possible", object.limits.len());
            return self.refuse(key, message, "name the namespaces that need one, and the tenant for the others");
        }
        if !object.writable && !object.limits.is_empty() {
            let message = "nothing is deleted by a node that only reads".to_owned();
            self.warn(key, message, "leave them out here, and give them to the nodes that write");
        }
        for (at, limit) in object.limits.iter().enumerate() {
            if let Some((message, remedy)) = wrong_limit(object, at, limit) {
                self.refuse(key, format!("limit {}: {message}", at + 1), remedy);
            }
        }
    }

    /// Keys that only say something about a server.
    fn object_server(&mut self, object: &Object) {
        let kind = object.url.bucket().map(|bucket| bucket.kind);
        let of_s3 = kind == Some(BucketKind::S3);
        let given = [
            ("tiers.object.endpoint", object.endpoint.is_some()),
            ("tiers.object.region", object.region.is_some()),
            ("tiers.object.path_style", self.loaded.origins.contains_key("tiers.object.path_style")),
            ("tiers.object.credentials_file", object.credentials_file.is_some()),
        ];
        for (key, given) in given {
            if given && !of_s3 {
                let message = format!("only an s3:// address has one, and the store is {}", object.url);
                let remedy = match kind {
                    Some(BucketKind::Gcs) => {
                        "leave it out: for gs:// name a key file in GOOGLE_APPLICATION_CREDENTIALS"
                    }
                    Some(BucketKind::Azure) => {
                        "leave it out: for az:// set AZURE_STORAGE_ACCOUNT_NAME and what belongs to it in the environment"
                    }
                    Some(BucketKind::S3) | None => "leave it out, or set tiers.object.url = \"s3://BUCKET/PREFIX\"",
                };
                self.refuse(key, message, remedy);
            }
        }
        let Some(endpoint) = object.endpoint.as_deref().filter(|_| of_s3) else { return };
        let key = "tiers.object.endpoint";
        let example = "write http://10.0.0.1:9000, or https:// and a name";
        // The address itself is not repeated where it may hold a password.
        match Url::parse(endpoint) {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => self.refuse(
                key,
                "credentials do not belong into an address".into(),
                "put them into the environment, or into tiers.object.credentials_file",
            ),
            Ok(url) if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) => {
                self.refuse(key, "only http:// and https:// addresses of servers are spoken to".into(), example);
            }
            Ok(url) if url.path() != "/" || url.query().is_some() || url.fragment().is_some() => {
                self.refuse(key, "more than a server is named: the bucket stands in tiers.object.url".into(), example);
            }
            Ok(url) if !object.path_style && !matches!(url.host(), Some(url::Host::Domain(_))) => self.refuse(
                "tiers.object.path_style",
                "a bucket's name cannot stand before an IP address".into(),
                "leave tiers.object.path_style out",
            ),
            Ok(url) if url.scheme() == "http" && object.ca_file.is_some() => self.refuse(
                "tiers.object.ca_file",
                "the endpoint is spoken to without TLS, which looks at no certificate".into(),
                "write https:// in tiers.object.endpoint, or leave tiers.object.ca_file out",
            ),
            Ok(_) => {}
            Err(_) => self.refuse(key, "it is no address of a server".into(), example),
        }
    }

    fn object_files(&mut self, object: &Object) {
        if object.ca_file.is_some() && object.url.folder().is_some() {
            let message = format!("{} is a folder: no certificate is looked at", object.url);
            self.refuse("tiers.object.ca_file", message, "leave it out");
        }
        let files =
            [("tiers.object.ca_file", &object.ca_file), ("tiers.object.credentials_file", &object.credentials_file)];
        for (key, path) in files {
            let Some(path) = path else { continue };
            match self.machine.entry(path) {
                Ok(Some(entry)) if entry.kind != EntryKind::File => {
                    self.refuse(key, format!("{} is not a file", path.display()), "name a file");
                }
                Ok(Some(entry)) if key == "tiers.object.credentials_file" && entry.mode & 0o077 != 0 => {
                    let message = format!("{} can be read by others (mode {:04o})", path.display(), entry.mode);
                    self.refuse(key, message, &format!("chmod 600 {}", path.display()));
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.refuse(key, format!("{} does not exist", path.display()), "make it, or correct its name");
                }
                Err(error) => {
                    let message = format!("{} cannot be read: {error}", path.display());
                    self.refuse(key, message, "give this user the right to read it");
                }
            }
        }
    }

    fn object_folder(&mut self, object: &Object, path: &Path) {
        let key = "tiers.object.url";
        match self.machine.entry(path) {
            Ok(Some(entry)) if entry.kind != EntryKind::Folder => {
                return self.refuse(key, format!("{} is not a folder", path.display()), "name a folder");
            }
            Ok(None) if !object.writable => {
                let message = format!("{} does not exist, and is only to be read", path.display());
                return self.refuse(key, message, "mount it, correct its name, or set tiers.object.writable = true");
            }
            Ok(_) => {}
            Err(error) => {
                let message = format!("{} cannot be looked at: {error}", path.display());
                return self.refuse(key, message, "give this user the right to enter its parents");
            }
        }
        if object.writable && !self.machine.writable(path) {
            let message = format!("{} cannot be written by user {}", path.display(), self.machine.uid());
            return self.refuse(key, message, "choose a folder of this user's, or set tiers.object.writable = false");
        }
        // What is free says little: the packs that a restart finds are part of the share.
        if let Ok(fs) = self.machine.filesystem(path)
            && object.writable
            && object.share.0 > fs.total_bytes
        {
            let message = format!("{} is more than all {} on {}", object.share, rough(fs.total_bytes), path.display());
            self.refuse("tiers.object.share", message, "set it to a part of the disk that others leave free");
        }
    }

    fn object_bucket(&mut self, object: &Object, kind: BucketKind) {
        let set = |name: &str| self.machine.variable(name).is_some();
        let missing = match kind {
            BucketKind::S3 if object.credentials_file.is_none() && !AWS_VARIABLES.iter().any(|name| set(name)) => {
                Some((
                    "no credentials are given, so those of the instance are asked for".to_owned(),
                    "on a machine outside of AWS set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or tiers.object.credentials_file",
                ))
            }
            BucketKind::Azure if !set("AZURE_STORAGE_ACCOUNT_NAME") => {
                let message = "the account that the container belongs to is not named".to_owned();
                return self.refuse(
                    "tiers.object.url",
                    message,
                    "set AZURE_STORAGE_ACCOUNT_NAME in the daemon's environment",
                );
            }
            BucketKind::S3 | BucketKind::Gcs | BucketKind::Azure => None,
        };
        if let Some((message, remedy)) = missing {
            self.warn("tiers.object.url", message, remedy);
        }
        if !self.loaded.origins.contains_key("tenant.secret_file") {
            let message = format!(
                "the tenant's secret is this node's own: what it keeps in {} is found by no other node",
                object.url
            );
            self.warn(
                "tenant.secret_file",
                message,
                "give all nodes that share the bucket one secret, in a file of mode 0600",
            );
        }
    }
}
