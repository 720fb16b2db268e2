//! Between the client library and the network: answers that are errors become errors with their status, in bounded memory.
//!
//! The library takes a list that is none for an empty one, and gives the status of a refusal in a text only; both are
//! decided here, where the answer is still whole. Bodies of objects pass through untouched.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

/// An error's text is a few hundred bytes; a proxy's page of excuses a few thousand.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// A page of a list: 1000 names of at most 1024 bytes, with what XML puts around them.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Asked for credentials before anything else. Its refusals mean something to the library.
const METADATA_HOST: &str = "169.254.169.254";

/// What a store answered in place of what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {status}{}{code}{}{message}", space(code), space(message))]
pub(super) struct Refused {
    /// The HTTP status; one of success where the error stood inside.
    pub(super) status: u16,
    /// The store's own word, `NoSuchBucket`; may be empty.
    pub(super) code: String,
    /// The store's own sentence, or the beginning of whatever came.
    pub(super) message: String,
}

fn space(text: &str) -> &'static str {
    if text.is_empty() { "" } else { " " }
}

/// Makes clients of the library that look at every answer.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Looking(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Looking(HttpClient);

impl HttpService for Looking {
    fn call<'a, 'f>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let of_metadata = request.uri().host() == Some(METADATA_HOST);
            let of_list = is_list(request.uri().query().unwrap_or_default());
            let of_object = request.method().as_str() == "GET" && !of_list;
            let (parts, body) = self.0.execute(request).await?.into_parts();
            let success = parts.status.is_success();
            if of_metadata || (success && of_object) {
                return Ok(HttpResponse::from_parts(parts, body));
            }
            let most = if success { ANSWER_BYTES_MAX } else { ERROR_BYTES_MAX };
            let bytes = collect(body, most, success).await?;
            let refused = match success && root(&bytes).as_deref() != Some("Error") {
                true => of_list.then(|| no_list(&bytes)).flatten(),
                false => Some(refused(parts.status.as_u16(), &bytes)),
            };
            match refused {
                Some(refused) => Err(HttpError::new(HttpErrorKind::Unknown, refused)),
                None => Ok(HttpResponse::from_parts(parts, bytes.into())),
            }
        })
    }
}

/// S3 and GCS ask with `list-type=2`, Azure with `comp=list`.
fn is_list(query: &str) -> bool {
    query.split('&').any(|pair| pair == "list-type=2" || pair == "comp=list")
}

/// The body up to `most` bytes. Of a success all is wanted, of an error the beginning is enough.
async fn collect(body: HttpResponseBody, most: usize, whole: bool) -> Result<Bytes, HttpError> {
    let mut bytes = BytesMut::new();
    let mut stream = body.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // The status is known, and says more than how its text broke off.
            Err(_) if !whole => break,
            Err(error) => return Err(error),
        };
        let room = most - bytes.len();
        if chunk.len() > room {
            if whole {
                let said = std::io::Error::other(format!("an answer of more than {most} bytes"));
                return Err(HttpError::new(HttpErrorKind::Decode, said));
            }
            bytes.extend_from_slice(&chunk[..room]);
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// The name of a document's root; S3 sends `<Error>` even after it has said 200.
fn root(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
    let mut text = head.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with("<?") {
        text = text.split_once("?>").map_or("", |(_, rest)| rest.trim_start());
    }
    let (name, _) = text.strip_prefix('<')?.split_once(['>', ' ', '\n', '\r', '\t', '/'])?;
    Some(name.to_owned())
}

/// What is wrong with the answer to a list. Of one that is none, or that is cut and does not say where it goes on, the library
/// makes the end of the list, and what is not listed is gone for whoever asked.
fn no_list(bytes: &[u8]) -> Option<Refused> {
    let wrong = |message: &str| Some(Refused { status: 200, code: String::new(), message: message.to_owned() });
    match root(bytes).as_deref() {
        // Azure says where it goes on, or that is the end.
        Some("EnumerationResults") => return None,
        Some("ListBucketResult") => {}
        _ => return wrong("it answers a list with something else"),
    }
    let text = String::from_utf8_lossy(bytes);
    let said = |name: &str| element(&text, name).is_some_and(|value| !value.trim().is_empty());
    let cut = element(&text, "IsTruncated").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
    if cut && !said("NextContinuationToken") {
        return wrong("its list is cut and does not say where it goes on: it does not speak version 2 of listing");
    }
    None
}

fn refused(status: u16, bytes: &[u8]) -> Refused {
    let text = String::from_utf8_lossy(bytes);
    let code = element(&text, "Code").or_else(|| json_word(&text)).unwrap_or_default();
    let message = element(&text, "Message").unwrap_or_else(|| super::fault::cut(&text));
    Refused { status, code: super::fault::cut(&code), message: super::fault::cut(&message) }
}

/// The text of the first element of this name. Answers of stores are flat, and a wrong one costs a worse message.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.to_owned())
}

/// The error of an OAuth answer, `{"error": "invalid_grant"}`.
fn json_word(text: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    answer.get("error")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_none_or_is_cut_is_not_the_end_of_a_list() {
        let wrong = |text: &str| no_list(text.as_bytes()).is_some();
        for fine in [
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><IsTruncated>false</IsTruncated></ListBucketResult>",
            "<ListBucketResult/>",
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>",
            "<EnumerationResults ServiceEndpoint=\"x\"><Blobs/><NextMarker/></EnumerationResults>",
        ] {
            assert!(!wrong(fine), "{fine}");
        }
        for not in [
            "",
            "<html><body>Sign in</body></html>",
            "<ListAllMyBucketsResult></ListAllMyBucketsResult>",
            "{}",
            "<ListBucketResult><IsTruncated>true</IsTruncated><Marker>m</Marker></ListBucketResult>",
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken></NextContinuationToken></ListBucketResult>",
        ] {
            assert!(wrong(not), "{not}");
        }
    }

    #[test]
    fn an_error_is_known_by_its_root_only() {
        let is_error = |bytes: &[u8]| root(bytes).as_deref() == Some("Error");
        for error in [
            "<Error><Code>X</Code></Error>",
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>",
            " \n<Error xmlns=\"x\">",
        ] {
            assert!(is_error(error.as_bytes()), "{error}");
        }
        for fine in [
            "",
            "<",
            "<?xml",
            "<ListBucketResult><Contents><Key><Error></Key></Contents></ListBucketResult>",
            "<Errors>",
            "KVD",
        ] {
            assert!(!is_error(fine.as_bytes()), "{fine}");
        }
        assert!(!is_error(&[0xff; 2000]));
    }

    #[test]
    fn code_and_message_are_read_from_what_stores_send() {
        let xml = b"<Error><Code>NoSuchBucket</Code><Message>The bucket is not there</Message><Key>k</Key></Error>";
        let said = refused(404, xml);
        assert_eq!(said.to_string(), "status 404 NoSuchBucket The bucket is not there");
        assert_eq!(refused(400, b"{\"error\": \"invalid_grant\"}").code, "invalid_grant");
        assert_eq!(refused(502, b"<html>Bad\nGateway</html>").to_string(), "status 502 <html>Bad Gateway</html>");
        assert_eq!(refused(503, b"").to_string(), "status 503");
        assert_eq!(refused(500, &[0xff, 0xfe]).code, "");
    }

    #[test]
    fn a_list_is_told_from_an_object() {
        assert!(is_list("list-type=2&prefix=index%2F") && is_list("restype=container&comp=list"));
        assert!(!is_list("") && !is_list("prefix=list-type%3D2"));
    }
}
