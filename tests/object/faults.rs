//! What networks and servers do to requests, one kind of trouble after the other, on each kind of request.
//!
//! Goal: no wrong byte, no load beyond its deadline, an engine that stores and reads what is local as ever, a reason in
//! the metrics, and service by itself when the trouble is over. Method: a SeaweedFS server, one node that speaks to it
//! directly and one whose requests go through the proxy.

use std::time::{Duration, Instant};

use kvd_tests::{TestEngine, skip};
use serde_json::json;

use crate::pool::{BLOCKS, Node, Store, served, within};
use crate::proxy::{Kind, Proxy, Trouble};
use crate::server::Server;

/// What a load may take beyond its deadline of 2 s on a machine that does many things.
const SLACK: Duration = Duration::from_secs(3);
const LOAD_DEADLINE: Duration = Duration::from_secs(2);
const GIVEN_UP: &str = "kvd_object_packs_total{outcome=\"given_up\"}";

/// Both nodes, and what lies between one of them and the store.
struct Field {
    /// The one that speaks to the server directly.
    direct: Node,
    /// The one behind the proxy.
    behind: Node,
    proxy: Proxy,
    /// Chains that nobody has stored yet begin here.
    next: u64,
    /// The server, as long as the nodes need it.
    _store: Store,
}

impl Field {
    /// `None`, and said so, where there is no server.
    fn prepare(test: &str, more: &[(&str, &str)]) -> Option<Self> {
        let server = match Server::start() {
            Ok(server) => server,
            Err(reason) => {
                skip(&format!("object tier behind a bad network, {test}"), &reason);
                return None;
            }
        };
        let proxy = Proxy::start(server.port());
        let store = Store::Server(server);
        let endpoint = proxy.endpoint();
        let mut settings = vec![("tiers.object.request_timeout", "500ms"), ("tiers.object.pack_bytes", "4MiB")];
        settings.extend(more);
        let direct = Node::start(&format!("{test}-direct"), &store, &settings);
        settings.push(("tiers.object.endpoint", &endpoint));
        let behind = Node::start(&format!("{test}-behind"), &store, &settings);
        let mut field = Self { direct, behind, proxy, next: 1, _store: store };
        field.expect_service("before any trouble");
        Some(field)
    }

    fn chain(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What either node stores now the other serves, from the store.
    fn expect_service(&mut self, when: &str) {
        self.behind.expect_alive();
        let (direct, behind) = (self.direct.engine(1), self.behind.engine(2));
        let (theirs, ours) = (self.chain(), self.chain());
        assert_eq!(direct.store(theirs, 0, BLOCKS).granted, BLOCKS, "{when}");
        assert_eq!(behind.store(ours, 0, BLOCKS).granted, BLOCKS, "{when}");
        assert!(served(&behind, theirs).object > 0, "{when}: it can only have come from the store");
        assert!(served(&direct, ours).object > 0, "{when}: it can only have come from the store");
    }

    fn over(&mut self, case: &str) {
        self.proxy.clear();
        self.expect_service(&format!("after {case}"));
    }

    /// Loads through a trouble, from first to last within the deadline.
    fn load_in_trouble(&self, engine: &TestEngine, chain: u64, case: &str) -> u32 {
        let began = Instant::now();
        let checked = engine.check(chain, BLOCKS);
        assert_eq!(checked.wrong, 0, "a wrong byte in {case}: {checked:?}");
        assert!(began.elapsed() < LOAD_DEADLINE + SLACK, "a load hangs in {case}: {:?}", began.elapsed());
        checked.right
    }
}

/// What is told as a status, for every kind of request.
fn told() -> Vec<Trouble> {
    vec![
        Trouble::Status(503, "ServiceUnavailable"),
        Trouble::Status(429, "TooManyRequests"),
        Trouble::Status(503, "SlowDown"),
        Trouble::Status(500, "InternalError"),
        Trouble::ErrorInside,
        Trouble::Silence,
    ]
}

#[test]
fn reads_in_trouble_are_misses() {
    let Some(mut field) = Field::prepare("reads", &[]) else { return };
    let bodies = [Trouble::Stall, Trouble::Cut, Trouble::Longer, Trouble::Flip, Trouble::Lost, Trouble::Other];
    for trouble in told().into_iter().chain(bodies) {
        let case = format!("{trouble:?} on reads");
        let (writer, reader) = (field.direct.engine(1), field.behind.engine(2));
        let chain = field.chain();
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
        within("the other node learns of the chain", || reader.find(chain, BLOCKS).blocks() == BLOCKS);
        let corrupt = |node: &Node| node.metric("kvd_blocks_corrupt_total{tier=\"object\"}");
        let before = field.behind.faults(Kind::Get.label()) + corrupt(&field.behind);
        let met = field.proxy.met();
        field.proxy.trouble(Kind::Get, "/packs/", trouble);
        let right = field.load_in_trouble(&reader, chain, &case);
        assert!(right < BLOCKS, "{case}: it was not in the way");
        assert!(field.proxy.met() > met, "{case}: nobody met it");
        within(&format!("a reason is counted for {case}"), || {
            field.behind.faults(Kind::Get.label()) + corrupt(&field.behind) > before
        });
        // Others are not held up.
        let local = field.chain();
        assert_eq!(reader.store(local, 0, BLOCKS).granted, BLOCKS, "{case}");
        assert_eq!(field.load_in_trouble(&reader, local, &case), BLOCKS, "{case}: what is here is served");
        field.over(&case);
    }
}

#[test]
fn writes_in_trouble_hold_no_engine_up() {
    let Some(mut field) = Field::prepare("writes", &[]) else { return };
    let mut suspicious = Vec::new();
    for trouble in told().into_iter().chain([Trouble::CutSent, Trouble::FlipSent, Trouble::Lost]) {
        let case = format!("{trouble:?} on writes");
        // A lost answer need not be noticed by who sent it: the second try meets what the first put there.
        let noticed = !matches!(trouble, Trouble::Lost);
        let given_up = field.behind.metric(GIVEN_UP);
        let (reader, writer) = (field.direct.engine(1), field.behind.engine(2));
        let chain = field.chain();
        let (before, met) = (field.behind.faults(Kind::Put.label()), field.proxy.met());
        field.proxy.trouble(Kind::Put, "/packs/", trouble);
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS, "{case}: an engine never waits for the store");
        assert_eq!(field.load_in_trouble(&writer, chain, &case), BLOCKS, "{case}: what is here is served");
        within(&format!("{case} is met"), || field.proxy.met() > met);
        if noticed {
            within(&format!("a reason is counted for {case}"), || field.behind.faults(Kind::Put.label()) > before);
        }
        field.load_in_trouble(&reader, chain, &case);
        suspicious.push((case.clone(), chain));
        field.over(&case);
        // It is tried again by itself, unless the trouble lasted for all the tries that a pack has.
        if field.behind.metric(GIVEN_UP) == given_up {
            served(&reader, chain);
        }
    }
    // Whatever came of them: right or not there.
    let reader = field.direct.engine(1);
    for (case, chain) in suspicious {
        let right = field.load_in_trouble(&reader, chain, "what was written in trouble");
        println!("{}", json!({ "case": case, "blocks": BLOCKS, "right": right }));
    }
}

#[test]
fn lists_in_trouble_are_read_again() {
    let Some(mut field) = Field::prepare("lists", &[]) else { return };
    let bodies = [Trouble::Stall, Trouble::Cut, Trouble::Flip, Trouble::Lost];
    for trouble in told().into_iter().chain(bodies) {
        let case = format!("{trouble:?} on lists");
        // A bit of a list may be one that nobody looks at.
        let noticed = !matches!(trouble, Trouble::Flip);
        let (writer, reader) = (field.direct.engine(1), field.behind.engine(2));
        let chain = field.chain();
        let (before, met) = (field.behind.faults(Kind::List.label()), field.proxy.met());
        field.proxy.trouble(Kind::List, "", trouble);
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
        within(&format!("{case} is met"), || field.proxy.met() > met);
        if noticed {
            within(&format!("a reason is counted for {case}"), || field.behind.faults(Kind::List.label()) > before);
        }
        field.load_in_trouble(&reader, chain, &case);
        field.over(&case);
        // What was published meanwhile is learned of as well.
        served(&reader, chain);
    }
}

#[test]
fn deletes_in_trouble_keep_the_bound_and_go_on() {
    let share = [("tiers.object.share", "8MiB"), ("tiers.object.pack_bytes", "1MiB")];
    let Some(mut field) = Field::prepare("deletes", &share) else { return };
    let evicted = |node: &Node| node.metric("kvd_object_packs_total{outcome=\"evicted\"}");
    for trouble in told().into_iter().chain([Trouble::Lost]) {
        let case = format!("{trouble:?} on deletes");
        let writer = field.behind.engine(2);
        let (before, met) = (field.behind.faults(Kind::Delete.label()), field.proxy.met());
        field.proxy.trouble(Kind::Delete, "", trouble);
        // As many bytes as the share: something has to go.
        within(&format!("{case} is met"), || {
            let chain = field.chain();
            assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS, "{case}: an engine never waits for the store");
            assert_eq!(field.load_in_trouble(&writer, chain, &case), BLOCKS, "{case}");
            field.proxy.met() > met
        });
        within(&format!("a reason is counted for {case}"), || field.behind.faults(Kind::Delete.label()) > before);
        let own = field.behind.metric("kvd_object_own_bytes");
        assert!(own <= 8 << 20, "{case}: {own} bytes where 8 MiB may be");
        let gone = evicted(&field.behind);
        field.over(&case);
        within(&format!("packs go again after {case}"), || {
            let chain = field.chain();
            writer.store(chain, 0, BLOCKS);
            evicted(&field.behind) > gone
        });
    }
}

#[test]
fn a_server_that_refuses_connections_is_an_outage_and_no_more() {
    let Some(mut field) = Field::prepare("refused", &[]) else { return };
    let (writer, reader) = (field.direct.engine(1), field.behind.engine(2));
    let (known, local) = (field.chain(), field.chain());
    assert_eq!(writer.store(known, 0, BLOCKS).granted, BLOCKS);
    within("the other node learns of the chain", || reader.find(known, BLOCKS).blocks() == BLOCKS);
    let before = field.behind.faults(Kind::Get.label());
    field.proxy.refuse();
    let case = "refused connections";
    // A connection that stood already may serve the first request.
    within("reads fail", || {
        field.load_in_trouble(&reader, known, case);
        field.behind.faults(Kind::Get.label()) + field.behind.faults(Kind::List.label()) > before
    });
    within("it is said", || field.behind.metric("kvd_object_up") == 0);
    assert_eq!(reader.store(local, 0, BLOCKS).granted, BLOCKS, "an engine never waits for the store");
    assert_eq!(field.load_in_trouble(&reader, local, case), BLOCKS, "what is here is served");
    let began = Instant::now();
    assert_eq!(reader.check(1_000_000, BLOCKS).matched, 0, "what nobody stored is a miss");
    assert!(began.elapsed() < SLACK, "a miss takes {:?}", began.elapsed());
    field.over(case);
    // It was not forgotten.
    assert_eq!(served(&writer, local).right, BLOCKS);
}
