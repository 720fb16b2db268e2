//! Trouble on what a node deletes, to make room or because an operator wants it: on the first of the two deletes of a pack
//! and on the second.

use std::process::{Child, Command, Stdio};

use kvd_tests::Daemon;

use super::*;

const SHARE: u64 = 8 << 20;
const PACK: u64 = 1 << 20;
const EVICTED: &str = "kvd_object_packs_total{outcome=\"evicted\"}";

fn field(test: &str) -> Option<Field> {
    let settings = [("tiers.object.share", "8MiB"), ("tiers.object.pack_bytes", "1MiB")];
    Field::prepare(test, Behind::Writer, &settings)
}

#[test]
fn packs_that_cannot_be_deleted_count_until_they_are() {
    let Some(mut field) = field("evict") else { return };
    for (part, trouble) in [INDEX, PACKS].into_iter().flat_map(|part| COMMON.map(|trouble| (part, trouble))) {
        let writer = field.writer.engine(1);
        let met = field.meet(Kind::Delete, part, trouble);
        // As many bytes as the share: something has to go.
        within(&format!("a reason is counted for {}", met.case), || {
            let chain = field.chain();
            work_locally(&writer, chain, &met.case);
            field.has_met(&met)
        });
        let packs = field.store.objects().into_iter().filter(|(name, _)| name.starts_with("packs/"));
        let bytes: u64 = packs.map(|(_, bytes)| bytes).sum();
        assert!(bytes <= SHARE + PACK, "{}: {bytes} bytes where {SHARE} may be", met.case);
        let own = field.writer.metric("kvd_object_own_bytes");
        assert!(own <= SHARE, "{}: {own} own bytes where {SHARE} may be", met.case);
        let gone = field.writer.metric(EVICTED);
        field.over(&met);
        within(&format!("packs go again after {}", met.case), || {
            writer.store(field.chain(), 0, BLOCKS);
            field.writer.metric(EVICTED) > gone
        });
    }
    field.expect_no_leak();
    // What is counted is what is there: nothing was left behind between two deletes.
    within("what is there is what is counted", || {
        let objects = field.store.objects();
        let of = |folder: &str| objects.iter().filter(|(name, _)| name.starts_with(folder)).count() as u64;
        let own = field.writer.metric("kvd_object_own_packs");
        (of("packs/"), of("index/")) == (own, own)
    });
}

#[test]
fn a_purge_in_trouble_leaves_nothing_in_the_end() {
    let Some(mut field) = field("purge") else { return };
    for (part, trouble) in [INDEX, PACKS].into_iter().flat_map(|part| COMMON.map(|trouble| (part, trouble))) {
        let chain = field.chain();
        assert_eq!(field.writer.engine(1).store(chain, 0, BLOCKS).granted, BLOCKS);
        served(&field.reader.engine(2), chain);
        let met = field.meet(Kind::Delete, part, trouble);
        let mut purge = purge(&field.writer);
        within(&format!("a reason is counted for {}", met.case), || field.has_met(&met));
        field.proxy.clear();
        // It goes on by itself. Only with a refusal it ends, and says so: then an operator repeats it.
        let first = purge.wait().expect("it ends").success();
        assert!(first || matches!(trouble, Trouble::Status(403, _)), "{}: the purge failed", met.case);
        if !first {
            within(&format!("a purge succeeds after {}", met.case), || {
                self::purge(&field.writer).wait().expect("it ends").success()
            });
        }
        assert_eq!(field.store.objects(), [], "after {}", met.case);
        assert_eq!(field.writer.metric("kvd_object_own_bytes"), 0, "after {}", met.case);
        field.over(&met);
    }
    field.expect_no_leak();
}

#[test]
fn what_a_purge_has_yet_to_reach_is_not_fetched() {
    let Some(mut field) = field("reach") else { return };
    let (engine, chain) = (field.writer.engine(1), field.chain());
    assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS);
    served(&field.reader.engine(2), chain);
    let met = field.meet(Kind::Delete, INDEX, Trouble::Status(503, "SlowDown"));
    let mut purge = purge(&field.writer);
    within("the purge asks the store to delete", || field.has_met(&met));
    assert_eq!(engine.find(chain, BLOCKS).blocks(), 0, "it is in the store still, and would outlive the purge here");
    field.proxy.clear();
    assert!(purge.wait().expect("it ends").success());
    assert_eq!(engine.find(chain, BLOCKS).blocks(), 0, "what is gone does not come back");
    field.over(&met);
}

fn purge(node: &Node) -> Child {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["purge", "--all", "--yes", "--socket"]).arg(node.scratch.socket());
    kvd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    kvd.spawn().expect("kvd can be started")
}
