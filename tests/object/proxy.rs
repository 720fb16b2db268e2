//! A proxy between a daemon and its store that does to chosen requests what networks and servers do to them.
//!
//! It speaks just enough HTTP to see where a request and its answer begin and end: one request per connection, the
//! answer as the server sent it. Signatures stay valid, as neither the signed heads nor the name of the host change.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any head that is sent here.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Nothing of a test is silent for so long, but what the proxy silences.
const SILENCE_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A kind of request, as the client counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Put,
    List,
    Delete,
    Head,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Get, Self::Put, Self::List, Self::Delete, Self::Head];

    /// The word for it in metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Head => "head",
        }
    }

    fn of(method: &str, target: &str) -> Option<Self> {
        match method {
            "GET" if target.contains("list-type=2") => Some(Self::List),
            "GET" => Some(Self::Get),
            "PUT" => Some(Self::Put),
            "DELETE" => Some(Self::Delete),
            "HEAD" => Some(Self::Head),
            _ => None,
        }
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// This status with this code; the server hears nothing of it.
    Status(u16, &'static str),
    /// 200, and a document inside that says that it went wrong; the server hears nothing of it.
    ErrorInside,
    /// No answer, ever.
    Silence,
    /// The head of the answer, half of the body, then nothing.
    Stall,
    /// The head of the answer, half of the body, then the end of the connection.
    Cut,
    /// A longer body than was asked for, and a head that says so.
    Longer,
    /// The head of the answer, and as many bytes of another object that came before: intact records of other blocks.
    Other,
    /// One bit of the answer's body is another.
    Flip,
    /// The server gets half of the body, then the connections end.
    CutSent,
    /// One bit of the body is another when the server gets it.
    FlipSent,
    /// The server does it, and the answer is lost.
    Lost,
    /// Nobody listens, whatever is asked.
    Refused,
}

/// Which requests something happens to.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// `None` for all.
    kind: Option<Kind>,
    /// What the path has in it.
    part: &'static str,
    trouble: Trouble,
}

#[derive(Debug, Default)]
struct Shared {
    /// Guards the rule; held for moments, and nothing is taken above it.
    rule: Mutex<Option<Rule>>,
    /// The body of the last read that nothing happened to. Held for moments, and nothing is taken above it.
    last: Mutex<Vec<u8>>,
    /// Grows with each change of the rule: what was silenced before it ends.
    turn: AtomicU64,
    /// Requests that something happened to.
    met: AtomicU64,
    /// Nobody listens.
    refusing: AtomicBool,
    stop: AtomicBool,
}

/// The proxy; it ends with the value.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// To the server at `server`, a port of this machine.
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("it has an address").port();
        let shared = Arc::new(Shared::default());
        let state = shared.clone();
        let listening = std::thread::spawn(move || listen(&state, listener, port, server));
        Self { shared, port, listening: Some(listening) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on this happens to requests of the kind whose path has `part` in it.
    pub(crate) fn trouble(&self, kind: Kind, part: &'static str, trouble: Trouble) {
        self.shared.refusing.store(matches!(trouble, Trouble::Refused), Ordering::SeqCst);
        self.set(Some(Rule { kind: Some(kind), part, trouble }));
    }

    /// From now on this happens to every request.
    pub(crate) fn trouble_all(&self, trouble: Trouble) {
        self.set(Some(Rule { kind: None, part: "", trouble }));
    }

    /// Nothing happens to requests any more.
    pub(crate) fn clear(&self) {
        self.shared.refusing.store(false, Ordering::SeqCst);
        self.set(None);
    }

    /// Requests that something happened to; of refused connections nobody knows.
    pub(crate) fn met(&self) -> u64 {
        self.shared.met.load(Ordering::SeqCst)
    }

    fn set(&self, rule: Option<Rule>) {
        *self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner) = rule;
        self.shared.turn.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.clear();
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

/// Accepts until the end. A port that nobody listens at is the only way to have a connection refused.
fn listen(shared: &Arc<Shared>, first: TcpListener, port: u16, server: u16) {
    let mut listener = Some(first);
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.refusing.load(Ordering::SeqCst) {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(("127.0.0.1", port)).ok();
        }
        let accepted = listener.as_ref().and_then(|listener| {
            listener.set_nonblocking(true).expect("a socket can be told so");
            listener.accept().ok()
        });
        match accepted {
            Some((client, _)) => {
                let shared = shared.clone();
                // A connection that breaks is what the daemon has to live with: it is no fault of the test.
                std::thread::spawn(move || serve(&shared, client, server));
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    /// Both words of the first line after which the rest does not matter here.
    fn asked(&self) -> (String, String) {
        let line = String::from_utf8_lossy(&self.head);
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// The head with the fields of this name left out, and others put in.
    fn head_with(&self, without: &[&str], with: &str) -> Vec<u8> {
        let text = String::from_utf8_lossy(&self.head);
        let named = |line: &str, name: &str| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
        let kept = text.trim_end().split("\r\n").filter(|line| !without.iter().any(|name| named(line, name)));
        let mut head = kept.collect::<Vec<_>>().join("\r\n");
        head.push_str("\r\n");
        head.push_str(with);
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// Reads a message: its head, and as much of a body as the head says, or with `to_end` all there is.
fn read(stream: &mut TcpStream, to_end: bool) -> io::Result<Message> {
    let mut bytes = Vec::new();
    let mut more = [0; 16 << 10];
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let count = stream.read(&mut more)?;
        if count == 0 || bytes.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&more[..count]);
    };
    let mut body = bytes.split_off(head);
    if to_end {
        stream.read_to_end(&mut body)?;
    } else {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let missing = length.unwrap_or(0).saturating_sub(body.len());
        stream.take(missing as u64).read_to_end(&mut body)?;
    }
    Ok(Message { head: bytes, body })
}

fn serve(shared: &Shared, mut client: TcpStream, server: u16) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(SILENCE_MAX))?;
    let mut request = read(&mut client, false)?;
    let (method, target) = request.asked();
    let turn = shared.turn.load(Ordering::SeqCst);
    let rule = *shared.rule.lock().unwrap_or_else(PoisonError::into_inner);
    let of_kind = |rule: &Rule| rule.kind.is_none_or(|kind| Kind::of(&method, &target) == Some(kind));
    let meant = |rule: &Rule| of_kind(rule) && target.contains(rule.part);
    let trouble = rule.filter(meant).map(|rule| rule.trouble);
    if trouble.is_some() {
        shared.met.fetch_add(1, Ordering::SeqCst);
    }
    // What ends before the server is asked, or changes what it is asked.
    match &trouble {
        Some(Trouble::Status(status, code)) => return client.write_all(&document(*status, code)),
        Some(Trouble::ErrorInside) => return client.write_all(&document(200, "InternalError")),
        Some(Trouble::Silence) => {
            wait(shared, turn);
            return Ok(());
        }
        Some(Trouble::Refused) => return Ok(()),
        Some(Trouble::FlipSent) => flip(&mut request.body),
        _ => {}
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.set_read_timeout(Some(SILENCE_MAX))?;
    upstream.write_all(&request.head_with(&["connection"], "Connection: close\r\n"))?;
    if let Some(Trouble::CutSent) = trouble {
        upstream.write_all(&request.body[..request.body.len() / 2])?;
        return upstream.shutdown(Shutdown::Both);
    }
    upstream.write_all(&request.body)?;
    let mut answer = read(&mut upstream, true)?;
    let half = answer.body.len() / 2;
    match trouble {
        Some(Trouble::Lost) => return Ok(()),
        Some(Trouble::Stall | Trouble::Cut) => {
            client.write_all(&answer.head)?;
            client.write_all(&answer.body[..half])?;
            if let Some(Trouble::Stall) = trouble {
                wait(shared, turn);
            }
            return Ok(());
        }
        Some(Trouble::Longer) => {
            answer.body.extend_from_slice(&[b'!'; 4096]);
            let length = format!("Content-Length: {}\r\n", answer.body.len());
            answer.head = answer.head_with(&["content-length", "transfer-encoding"], &length);
        }
        Some(Trouble::Other) => {
            let last = shared.last.lock().unwrap_or_else(PoisonError::into_inner);
            answer.body = last.iter().copied().cycle().take(answer.body.len()).collect();
        }
        Some(Trouble::Flip) => flip(&mut answer.body),
        Some(_) => {}
        None if target.contains("/packs/") && method == "GET" => {
            shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&answer.body);
        }
        None => {}
    }
    client.write_all(&answer.head)?;
    client.write_all(&answer.body)
}

/// Changes a bit in the middle.
fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 4;
    }
}

/// An error as S3 tells it.
fn document(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
    );
    let length = body.len();
    format!("HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// Until the rule is another.
fn wait(shared: &Shared, turn: u64) {
    let looks = SILENCE_MAX.as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..looks {
        if shared.turn.load(Ordering::SeqCst) != turn || shared.stop.load(Ordering::SeqCst) {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
