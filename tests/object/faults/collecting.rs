//! Trouble on what a collector does. It is the command, which takes a turn at once: the daemon's own comes every few minutes,
//! and is the same.

use std::process::{Command, Output};

use kvd_tests::Daemon;

use super::*;

/// How long a turn may take that meets trouble: each of its requests has a time of four times the daemon's patience.
const TURN_MAX: Duration = Duration::from_secs(30);

/// What the command says of a trouble: one of these.
fn said(trouble: Trouble) -> &'static [&'static str] {
    match trouble {
        Trouble::Status(403, _) => &["access denied"],
        Trouble::Status(503 | 429, _) => &["the store asks for fewer requests"],
        Trouble::Status(..) | Trouble::ErrorInside => &["the store failed"],
        Trouble::Silence => &["silent", "not done by its deadline"],
        _ => &["cannot be reached"],
    }
}

#[test]
fn a_collector_in_trouble_ends_and_the_next_one_goes_on() {
    let Some(mut field) = Field::prepare("collect", Behind::Writer, &[]) else { return };
    for kind in [Kind::List, Kind::Put, Kind::Head, Kind::Get, Kind::Delete] {
        for trouble in COMMON {
            let chain = field.chain();
            assert_eq!(field.writer.engine(1).store(chain, 0, BLOCKS).granted, BLOCKS);
            served(&field.reader.engine(2), chain);
            // The daemon is not in the way of this one, nor this of the daemon.
            let part = match kind {
                Kind::Put | Kind::Head => "/collector/",
                Kind::Get => INDEX,
                Kind::Delete => PACKS,
                Kind::List => "collector",
            };
            let case = format!("{trouble:?} on {} by a collector", kind.label());
            field.proxy.trouble(kind, part, trouble);
            let began = Instant::now();
            let ended = collect(&field.writer);
            assert!(began.elapsed() < TURN_MAX, "{case}: it takes {:?}", began.elapsed());
            let text = String::from_utf8_lossy(&ended.stderr).into_owned();
            // An index that is none is passed over, and where the store tells no time no orphan is old.
            let harmless = matches!((kind, trouble), (Kind::Get | Kind::Head, Trouble::ErrorInside));
            assert!(ended.status.success() == harmless, "{case}: {:?} {text}", ended.status);
            assert!(harmless || said(trouble).iter().any(|said| text.contains(said)), "{case}: {text}");
            field.proxy.clear();
            let ended = collect(&field.writer);
            assert!(ended.status.success(), "after {case}: {}", String::from_utf8_lossy(&ended.stderr));
        }
    }
    field.expect_service("after all of it");
    field.expect_no_leak();
}

/// Collects all that is older than a moment.
fn collect(node: &Node) -> Output {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["object", "gc"]).args(node.settings());
    kvd.args(["--set", "tiers.object.pack_age=10ms", "--set", "tiers.object.expire_after=11ms"]);
    kvd.output().expect("kvd can be started")
}
