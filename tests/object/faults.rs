//! What networks and servers do to requests: each kind of trouble on each kind of request.
//!
//! Goal: no wrong byte, no wait beyond a deadline, an engine that stores and reads what is local as ever, the right reason
//! in the metrics, service by itself when the trouble is over, and nothing left behind in the daemon. Method: a SeaweedFS
//! server, a node that writes and a node that only reads - so that nobody waits for turns - and a proxy between one of
//! them and the server.

mod collecting;
mod deletes;
mod reads;
mod writes;

use std::fs;
use std::time::{Duration, Instant};

use kvd_tests::{TestEngine, skip};

use crate::pool::{BLOCKS, Node, Store, served, value, within};
use crate::proxy::{Kind, Proxy, Trouble};

/// What a load may take beyond its deadline of 2 s on a machine that does many things.
const SLACK: Duration = Duration::from_secs(3);
const LOAD_DEADLINE: Duration = Duration::from_secs(2);
/// What a request may take, and be silent.
const REQUEST_TIMEOUT: &str = "500ms";
/// Files that a daemon may open for itself meanwhile: those of its catalog.
const FILES_SLACK: usize = 16;

const CORRUPT: &str = "kvd_blocks_corrupt_total{tier=\"object\"}";
const UNREADABLE: &str = "kvd_object_packs_seen_total{outcome=\"unreadable\"}";
const GIVEN_UP: &str = "kvd_object_packs_total{outcome=\"given_up\"}";

/// What can be told as a status, or happen to a connection, with every kind of request.
const COMMON: [Trouble; 9] = [
    Trouble::Status(503, "ServiceUnavailable"),
    Trouble::Status(429, "TooManyRequests"),
    Trouble::Status(503, "SlowDown"),
    Trouble::Status(500, "InternalError"),
    Trouble::Status(403, "ExpiredToken"),
    Trouble::ErrorInside,
    Trouble::Silence,
    Trouble::Lost,
    Trouble::Refused,
];
/// What can happen to the body of an answer.
const BODIES: [Trouble; 5] = [Trouble::Stall, Trouble::Cut, Trouble::Longer, Trouble::Flip, Trouble::Other];
/// What can happen to the body of a request.
const SENT: [Trouble; 2] = [Trouble::CutSent, Trouble::FlipSent];

/// The series of which one grows when a trouble meets a request for such an object.
fn reasons(kind: Kind, part: &str, trouble: Trouble) -> Vec<String> {
    let outcomes: &[&str] = match trouble {
        Trouble::Status(403, _) => &["denied"],
        Trouble::Status(500, _) => &["server"],
        Trouble::Status(..) => &["throttled"],
        Trouble::ErrorInside | Trouble::FlipSent => &["server"],
        Trouble::Silence | Trouble::Stall => &["stalled", "timeout"],
        // A list that breaks off is an answer that cannot be read; of an object's bytes it is known how many there are.
        Trouble::Cut if kind == Kind::List => &["server", "unreachable", "short"],
        Trouble::Cut => &["short"],
        Trouble::Longer => &["long"],
        Trouble::Other | Trouble::Flip => &["server"],
        Trouble::CutSent | Trouble::Lost | Trouble::Refused => &["unreachable"],
    };
    // Where nobody listens, whatever is asked first finds out.
    let kinds = if let Trouble::Refused = trouble { Kind::ALL.to_vec() } else { vec![kind] };
    let of_kind = |kind: Kind| {
        let op = kind.label();
        outcomes.iter().map(move |outcome| format!("kvd_object_requests_total{{op=\"{op}\",outcome=\"{outcome}\"}}"))
    };
    let of_bytes = matches!(trouble, Trouble::Flip | Trouble::Other | Trouble::Longer | Trouble::ErrorInside);
    let seen = if part == PACKS { CORRUPT } else { UNREADABLE };
    let seen = (kind == Kind::Get && of_bytes).then(|| seen.to_owned());
    kinds.into_iter().flat_map(of_kind).chain(seen).collect()
}

const PACKS: &str = "/packs/";
const INDEX: &str = "/index/";

/// Who speaks to the server through the proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Writer,
    Reader,
}

/// Both nodes, and what lies between one of them and the store.
struct Field {
    writer: Node,
    reader: Node,
    behind: Behind,
    proxy: Proxy,
    /// Chains that nobody has stored yet begin here.
    next: u64,
    /// What the daemon behind the proxy held when nothing had happened yet.
    held: Held,
    store: Store,
}

/// A trouble under way.
struct Met {
    case: String,
    trouble: Trouble,
    reasons: Vec<String>,
    counted: u64,
    met: u64,
}

impl Field {
    /// `None`, and said so, where there is no server.
    fn prepare(test: &str, behind: Behind, more: &[(&str, &str)]) -> Option<Self> {
        let store = match Store::server(test) {
            Ok(store) => store,
            Err(reason) => {
                skip(&format!("object tier behind a bad network, {test}"), &reason);
                return None;
            }
        };
        let proxy = Proxy::start(store.of_server().port());
        let endpoint = proxy.endpoint();
        let mut settings = vec![("tiers.object.request_timeout", REQUEST_TIMEOUT), ("tiers.object.pack_bytes", "4MiB")];
        settings.extend(more);
        let start = |side: Behind, more: &[(&str, &str)]| {
            let mut settings = settings.clone();
            settings.extend(more);
            if side == behind {
                settings.push(("tiers.object.endpoint", &endpoint));
            }
            Node::start(test, &store, &settings)
        };
        let writer = start(Behind::Writer, &[]);
        let reader = start(Behind::Reader, &[("tiers.object.writable", "false")]);
        let mut field = Self { writer, reader, behind, proxy, next: 1, held: Held::default(), store };
        field.expect_service("before any trouble");
        field.held = Held::of(field.behind());
        Some(field)
    }

    fn behind(&self) -> &Node {
        match self.behind {
            Behind::Writer => &self.writer,
            Behind::Reader => &self.reader,
        }
    }

    fn chain(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What the one stores now the other serves, from the store.
    fn expect_service(&mut self, when: &str) {
        self.writer.expect_alive();
        self.reader.expect_alive();
        let chain = self.chain();
        assert_eq!(self.writer.engine(1).store(chain, 0, BLOCKS).granted, BLOCKS, "{when}");
        let served = served(&self.reader.engine(2), chain);
        assert_eq!(served.object, BLOCKS, "{when}: it can only have come from the store");
    }

    fn counted(&self, reasons: &[String]) -> u64 {
        let metrics = self.behind().metrics();
        reasons.iter().map(|series| value(&metrics, series)).sum()
    }

    /// From now on this happens to requests of the kind for objects whose name has `part` in it.
    fn meet(&self, kind: Kind, part: &'static str, trouble: Trouble) -> Met {
        let case = format!("{trouble:?} on {} of {}", kind.label(), part.trim_matches('/'));
        let reasons = reasons(kind, part, trouble);
        let (counted, met) = (self.counted(&reasons), self.proxy.met());
        self.proxy.trouble(kind, part, trouble);
        Met { case, trouble, reasons, counted, met }
    }

    /// Whether it has met a request, and its reason is counted.
    fn has_met(&self, met: &Met) -> bool {
        let refused = matches!(met.trouble, Trouble::Refused);
        (refused || self.proxy.met() > met.met) && self.counted(&met.reasons) > met.counted
    }

    fn over(&mut self, met: &Met) {
        self.proxy.clear();
        self.expect_service(&format!("after {}", met.case));
    }

    /// After all troubles: the daemon holds no more than before them.
    fn expect_no_leak(&mut self) {
        let node = self.behind();
        within("nothing is buffered", || {
            let metrics = node.metrics();
            value(&metrics, "kvd_object_buffered_bytes") + value(&metrics, "kvd_object_waiting_records") == 0
        });
        let before = self.held;
        within("connections and threads of requests that failed are gone", || Held::of(node).is_within(before));
    }
}

/// What a process holds of the system.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    files: usize,
    sockets: usize,
    threads: usize,
}

impl Held {
    fn of(node: &Node) -> Self {
        let daemon = node.daemon.as_ref().expect("it runs");
        let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
        let links = fs::read_dir(format!("{process}/fd")).expect("our child").flatten();
        let links: Vec<_> = links.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        let sockets = links.iter().filter(|link| link.to_string_lossy().starts_with("socket:")).count();
        let threads = fs::read_dir(format!("{process}/task")).expect("our child").count();
        Self { files: links.len() - sockets, sockets, threads }
    }

    fn is_within(self, before: Self) -> bool {
        self.sockets <= before.sockets && self.threads <= before.threads && self.files <= before.files + FILES_SLACK
    }
}

/// Loads through a trouble, from first to last within the deadline.
fn load_in_trouble(engine: &TestEngine, chain: u64, case: &str) -> u32 {
    let began = Instant::now();
    let checked = engine.check(chain, BLOCKS);
    assert_eq!(checked.wrong, 0, "a wrong byte in {case}: {checked:?}");
    assert!(began.elapsed() < LOAD_DEADLINE + SLACK, "a load hangs in {case}: {:?}", began.elapsed());
    checked.right
}

/// Stores and loads what is new and local, as if nothing had happened.
fn work_locally(engine: &TestEngine, chain: u64, case: &str) {
    assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS, "{case}: an engine never waits for the store");
    assert_eq!(load_in_trouble(engine, chain, case), BLOCKS, "{case}: what is here is served");
}
