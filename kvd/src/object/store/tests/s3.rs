//! A server that speaks as much S3 as the client asks for, and every way of failing that a test wants.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(super) const BUCKET: &str = "kv-test";
const DATE: &str = "Fri, 27 Nov 2026 10:00:00 GMT";

/// What a request meets, in place of service.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// This status, with this code in the usual document.
    Status(u16, &'static str),
    /// The head of an answer and its body, as they are.
    Raw(&'static str, &'static [u8]),
    /// Nothing, for ever.
    Silence,
    /// The true head, the first half of the body, then nothing.
    SilenceWithin,
    /// The true head, the first half of the body, then the end of the connection.
    Cut,
    /// A body one byte longer than the range that its head names.
    Longer,
    /// The connection is broken off before an answer.
    Reset,
    /// The connection is broken off within the body.
    ResetWithin,
    /// The request is carried out, and its answer lost.
    Lost,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    trouble: VecDeque<Trouble>,
    /// What every request meets once the queue is empty.
    always: Option<Trouble>,
    seen: Vec<String>,
    /// Methods that are not allowed.
    denied: Vec<&'static str>,
    writes_over: bool,
    in_flight: usize,
    in_flight_most: usize,
}

/// The server; it runs as long as the runtime of the test.
#[derive(Clone)]
pub(super) struct FakeS3 {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl FakeS3 {
    pub(super) async fn start() -> FakeS3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let fake = FakeS3 { address: listener.local_addr().expect("an address"), state: Arc::default() };
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        fake
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next requests meet these, one each.
    pub(super) fn then(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.with(|state| state.trouble.extend(troubles));
    }

    /// From now on every request meets this, or service again.
    pub(super) fn always(&self, trouble: Option<Trouble>) {
        self.with(|state| state.always = trouble);
    }

    pub(super) fn deny(&self, methods: &[&'static str]) {
        self.with(|state| state.denied = methods.to_vec());
    }

    pub(super) fn write_over(&self) {
        self.with(|state| state.writes_over = true);
    }

    /// Puts an object there without a request.
    pub(super) fn fill(&self, key: String) {
        self.with(|state| state.objects.insert(key, vec![]));
    }

    /// Methods and keys of all requests so far.
    pub(super) fn seen(&self) -> Vec<String> {
        self.with(|state| state.seen.clone())
    }

    pub(super) fn in_flight_most(&self) -> usize {
        self.with(|state| state.in_flight_most)
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.with(|state| state.objects.keys().cloned().collect())
    }

    async fn serve(self, mut stream: TcpStream) {
        while let Some(request) = read(&mut stream).await {
            let trouble = self.with(|state| {
                state.seen.push(format!("{} {}", request.method, request.key));
                state.in_flight += 1;
                state.in_flight_most = state.in_flight_most.max(state.in_flight);
                state.trouble.pop_front().or_else(|| state.always.clone())
            });
            // Others get to send theirs too.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            let done = self.answer(&mut stream, request, trouble).await;
            self.with(|state| state.in_flight -= 1);
            if done.is_none() {
                return;
            }
        }
    }

    /// `None` where the connection is at its end.
    async fn answer(&self, stream: &mut TcpStream, request: Request, trouble: Option<Trouble>) -> Option<()> {
        let silence = std::future::pending::<()>();
        match trouble {
            None => write(stream, &self.with(|state| state.carry_out(&request)).whole()).await,
            Some(Trouble::Status(status, code)) => write(stream, &error(status, code).whole()).await,
            Some(Trouble::Raw(head, body)) => {
                let head = head.replace('\n', "\r\n") + "\r\n";
                write(stream, &[head.as_bytes(), body].concat()).await?;
                None
            }
            Some(Trouble::Silence) => {
                silence.await;
                None
            }
            Some(Trouble::Reset) => reset(stream),
            Some(Trouble::Lost) => {
                self.with(|state| state.carry_out(&request));
                reset(stream)
            }
            Some(within) => {
                let answer = self.with(|state| state.carry_out(&request));
                if let Trouble::Longer = within {
                    return write(stream, &answer.longer().whole()).await;
                }
                let whole = answer.whole();
                write(stream, &whole[..whole.len() - answer.body.len() / 2]).await?;
                stream.flush().await.ok()?;
                match within {
                    Trouble::SilenceWithin => silence.await,
                    Trouble::ResetWithin => {
                        // What was sent is to arrive: a reset throws away what has not.
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        return reset(stream);
                    }
                    _ => {}
                }
                None
            }
        }
    }
}

impl State {
    fn carry_out(&mut self, request: &Request) -> Answer {
        if self.denied.contains(&request.method.as_str()) {
            return error(403, "AccessDenied");
        }
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        match request.method.as_str() {
            "GET" if request.query.contains_key("list-type") => self.list(&request.query),
            "GET" => match (self.objects.get(&request.key), header("range")) {
                (None, _) => error(404, "NoSuchKey"),
                (Some(object), None) => object_answer(200, object.clone()),
                (Some(object), Some(range)) => ranged(object, range),
            },
            "HEAD" => match self.objects.get(&request.key) {
                None => Answer { status: 404, headers: vec![], body: vec![] },
                Some(object) => object_answer(200, object.clone()).without_body(),
            },
            "PUT" => {
                let only_new = header("if-none-match") == Some("*") && !self.writes_over;
                if only_new && self.objects.contains_key(&request.key) {
                    return error(412, "PreconditionFailed");
                }
                self.objects.insert(request.key.clone(), request.body.clone());
                Answer { status: 200, headers: vec![("ETag", "\"e\"".into())], body: vec![] }
            }
            "DELETE" => {
                self.objects.remove(&request.key);
                Answer { status: 204, headers: vec![], body: vec![] }
            }
            _ => error(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Answer {
        let text = |name: &str| query.get(name).map_or("", String::as_str);
        let prefix = text("prefix");
        let after = query.get("continuation-token").map_or(text("start-after"), String::as_str);
        let most: usize = text("max-keys").parse().unwrap_or(1000);
        let mut body = Vec::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult>");
        let (mut count, mut last, mut more) = (0, String::new(), false);
        for (key, object) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after) {
            if count == most {
                more = true;
                break;
            }
            count += 1;
            last.clone_from(key);
            write!(
                body,
                "<Contents><Key>{key}</Key><LastModified>2026-11-27T10:00:00.000Z</LastModified>\
                 <ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                object.len()
            )
            .expect("written");
        }
        if more {
            write!(body, "<NextContinuationToken>{last}</NextContinuationToken>").expect("written");
        }
        body.extend_from_slice(b"</ListBucketResult>");
        Answer { status: 200, headers: vec![], body }
    }
}

fn object_answer(status: u16, body: Vec<u8>) -> Answer {
    Answer { status, headers: vec![("ETag", "\"e\"".into()), ("Last-Modified", DATE.into())], body }
}

fn ranged(object: &[u8], range: &str) -> Answer {
    let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let (start, end) = bounds.expect("a range with both ends");
    let (start, end): (usize, usize) = (start.parse().expect("a number"), end.parse().expect("a number"));
    if start >= object.len() {
        return error(416, "InvalidRange");
    }
    let end = (end + 1).min(object.len());
    let mut answer = object_answer(206, object[start..end].to_vec());
    answer.headers.push(("Content-Range", format!("bytes {start}-{}/{}", end - 1, object.len())));
    answer
}

pub(super) fn error_document(code: &str) -> String {
    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>")
}

fn error(status: u16, code: &str) -> Answer {
    Answer { status, headers: vec![], body: error_document(code).into_bytes() }
}

impl Answer {
    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Said\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    fn whole(&self) -> Vec<u8> {
        let length = if self.headers.iter().any(|(name, _)| *name == "Content-Length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", self.body.len())
        };
        [format!("{}{length}\r\n", self.head()).as_bytes(), &self.body].concat()
    }

    fn longer(mut self) -> Answer {
        self.body.push(b'!');
        self
    }

    fn without_body(mut self) -> Answer {
        self.headers.push(("Content-Length", self.body.len().to_string()));
        self.body.clear();
        self
    }
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).await.ok()
}

#[expect(deprecated, reason = "with no time to linger, closing does not block: it resets")]
fn reset(stream: &mut TcpStream) -> Option<()> {
    stream.set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
    None
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).expect("a head of text");
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = bytes.split_off(head_end + 4);
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().expect("a number"));
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').strip_prefix(BUCKET).expect("requests name the bucket in their path");
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(name, value)| (name.to_owned(), decoded(value))).collect();
    Some(Request { method, key: decoded(key.trim_start_matches('/')), query, headers, body })
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = String::from_utf8(bytes.by_ref().take(2).collect()).expect("two digits");
            out.push(u8::from_str_radix(&hex, 16).expect("two digits"));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).expect("keys are text")
}
