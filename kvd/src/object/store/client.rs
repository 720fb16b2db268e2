//! The library's client for an address: built here, and nowhere else spoken of by its type.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, Certificate, ClientOptions, HeaderValue, ObjectStore, RetryConfig};
use url::Url;

use super::credentials::{CredentialsError, FileCredentials};
use super::folder::Folder;
use super::wire;
use crate::core::ObjectOptions;
use crate::object::options::{Bucket, BucketKind, StoreUrl};

/// Three tries of TCP to get through; a store that takes longer to accept is not there.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Shorter than what stores and load balancers wait before they close: a request must not meet a connection that is going.
const IDLE_MAX: Duration = Duration::from_secs(15);
const CA_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made or opened.
    #[error("tiers.object.url {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file with the authorities cannot be read.
    #[error("tiers.object.ca_file {}: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There are no credentials in their file.
    #[error("tiers.object.credentials_file {0}")]
    Credentials(#[from] CredentialsError),
    /// Anything else that the client wants otherwise.
    #[error("tiers.object: {0}")]
    Client(String),
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> Self {
        StoreError::Client(super::fault::cut(&error.to_string()))
    }
}

/// A client of either sort.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// Of a bucket: it lists in pages, in order of names.
    Bucket { store: Arc<dyn ObjectStore>, pages: Arc<Pages> },
    /// Of a folder: it lists all at once, in no order.
    Folder(Arc<Folder>),
}

/// The listing side of a bucket's client.
pub(super) struct Pages(pub(super) Box<dyn PaginatedListStore>);

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pages")
    }
}

impl Client {
    /// Builds it; nothing is asked yet.
    pub(super) fn open(options: &ObjectOptions, environment: &[(String, String)]) -> Result<Client, StoreError> {
        match &options.url {
            StoreUrl::Folder(path) => of_folder(path, options.writable),
            StoreUrl::Bucket(bucket) => {
                // Another one may stand already, and that is as good: without any, building a client panics.
                let _ = rustls::crypto::ring::default_provider().install_default();
                match bucket.kind {
                    BucketKind::S3 => Ok(both(s3(bucket, options, environment)?)),
                    BucketKind::Gcs => gcs(bucket, options, environment),
                    BucketKind::Azure => azure(bucket, options, environment),
                }
            }
        }
    }
}

fn both<S: ObjectStore + PaginatedListStore + Clone>(store: S) -> Client {
    Client::Bucket { store: Arc::new(store.clone()), pages: Arc::new(Pages(Box::new(store))) }
}

fn of_folder(path: &Path, writable: bool) -> Result<Client, StoreError> {
    let opened = Folder::open(path, writable);
    opened
        .map(|folder| Client::Folder(Arc::new(folder)))
        .map_err(|source| StoreError::Folder { path: path.to_owned(), source })
}

/// Of the environment only what says who asks: what is asked stands in the configuration.
const AWS_VARIABLES: [&str; 19] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SKIP_SIGNATURE",
    "AWS_REQUEST_PAYER",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_SSE_BUCKET_KEY_ENABLED",
];

fn s3(bucket: &Bucket, options: &ObjectOptions, environment: &[(String, String)]) -> Result<AmazonS3, StoreError> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment.iter().filter(|(name, _)| AWS_VARIABLES.contains(&name.as_str())) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(path) = &options.credentials_file {
        builder = builder.with_credentials(Arc::new(FileCredentials::open(path)?));
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint_of(endpoint, bucket, options.path_style)?);
    }
    // A certificate for *.s3.amazonaws.com is none for a name with dots in it.
    let path_style = options.path_style || (options.endpoint.is_none() && bucket.name.contains('.'));
    Ok(builder
        .with_bucket_name(&bucket.name)
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // A hash over each pack would hold up the thread that also reads; a checksum is enough for the store to refuse what
        // was changed on its way.
        .with_unsigned_payload(true)
        .with_checksum_algorithm(Checksum::CRC64NVME)
        // One request, one object, one status.
        .with_disable_bulk_delete(true)
        .with_client_options(http(options, options.endpoint.as_deref(), environment)?)
        .with_http_connector(wire::Connector)
        .with_retry(no_retry())
        .build()?)
}

/// With the bucket's name in the host where requests are to be sent so.
fn endpoint_of(endpoint: &str, bucket: &Bucket, path_style: bool) -> Result<String, StoreError> {
    let wrong = || StoreError::Client(format!("endpoint {}: no address of a server", super::fault::cut(endpoint)));
    let mut url = Url::parse(endpoint).map_err(|_| wrong())?;
    if !path_style {
        let host = format!("{}.{}", bucket.name, url.host_str().ok_or_else(wrong)?);
        url.set_host(Some(&host)).map_err(|_| wrong())?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn gcs(bucket: &Bucket, options: &ObjectOptions, environment: &[(String, String)]) -> Result<Client, StoreError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("GOOGLE_") || name == "SERVICE_ACCOUNT")
    {
        let key = match name.as_str() {
            "SERVICE_ACCOUNT" => Ok(GoogleConfigKey::ServiceAccount),
            name => name.to_ascii_lowercase().parse(),
        };
        if let Ok(key) = key {
            builder = builder.with_config(key, value);
        }
    }
    Ok(both(
        builder
            .with_bucket_name(&bucket.name)
            .with_client_options(http(options, None, environment)?)
            .with_http_connector(wire::Connector)
            .with_retry(no_retry())
            .build()?,
    ))
}

fn azure(bucket: &Bucket, options: &ObjectOptions, environment: &[(String, String)]) -> Result<Client, StoreError> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in environment {
        let key = match name.as_str() {
            "IDENTITY_ENDPOINT" => Ok(AzureConfigKey::MsiEndpoint),
            name if name.starts_with("AZURE_") => name.to_ascii_lowercase().parse(),
            _ => continue,
        };
        if let Ok(key) = key {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    Ok(both(
        builder
            .with_container_name(&bucket.name)
            .with_client_options(http(options, endpoint.as_deref(), environment)?)
            .with_http_connector(wire::Connector)
            .with_retry(no_retry())
            .build()?,
    ))
}

/// With these a token service is asked for credentials, over TLS, with the same client.
const ASKING_ELSEWHERE: [&str; 3] =
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AZURE_FEDERATED_TOKEN_FILE"];

/// Deadlines are ours: the library's own bound on a whole request would cut a large body off.
fn http(
    options: &ObjectOptions,
    endpoint: Option<&str>,
    environment: &[(String, String)],
) -> Result<ClientOptions, StoreError> {
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let asks_elsewhere = environment.iter().any(|(name, _)| ASKING_ELSEWHERE.contains(&name.as_str()));
    let mut http = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!("kvd/", env!("CARGO_PKG_VERSION"))))
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_MAX.min(options.request_timeout))
        .with_pool_idle_timeout(IDLE_MAX)
        .with_pool_max_idle_per_host(options.requests_max);
    if let Some(path) = &options.ca_file {
        for certificate in authorities(path)? {
            http = http.with_root_certificate(certificate);
        }
    } else if plain && !asks_elsewhere {
        // An image without certificates must not fail where none is looked at.
        http = http.with_no_system_certificates(true);
    }
    Ok(http)
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, StoreError> {
    let failed = |why: String| StoreError::CaFile { path: path.to_owned(), why };
    let mut pem = Vec::new();
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(CA_FILE_BYTES_MAX).read_to_end(&mut pem).map_err(|error| failed(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| failed(super::fault::cut(&error.to_string())))?;
    if found.is_empty() {
        return Err(failed("no certificate in PEM format is in it".into()));
    }
    Ok(found)
}

/// Retries are ours too: they have a budget, and end at the caller's deadline.
fn no_retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Bucket {
        Bucket { kind: BucketKind::S3, name: "kv".into(), prefix: String::new() }
    }

    #[test]
    fn the_bucket_goes_into_the_path_or_into_the_host() {
        let of = |endpoint, path_style| endpoint_of(endpoint, &bucket(), path_style).ok();
        assert_eq!(of("http://10.0.0.1:9000/", true).as_deref(), Some("http://10.0.0.1:9000"));
        assert_eq!(of("https://s3.example.org", false).as_deref(), Some("https://kv.s3.example.org"));
        assert_eq!(of("no address", true), None);
    }
}
