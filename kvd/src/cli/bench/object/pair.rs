//! Two daemons that share the bucket: one writes, the other has nothing of its own and reads.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ENGINES;
use super::bucket::{Bucket, failed};
use super::interrupt::Interrupt;
use super::plan::{Plan, SHARE};
use crate::cli::admin::Admin;
use crate::cli::bench::cpu::process_cpu;
use crate::cli::bench::node::{Node, NodeOptions, PIECE_BYTES};
use crate::cli::exit::Failure;
use crate::service::proto;

/// A daemon that comes no further for so long is given up.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);
/// A look costs the daemon some hundred microseconds, and what is waited for is known a look late: a hundredth of the time
/// that it takes, within these.
const LOOK_EVERY: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_millis(100);
/// A daemon at rest spends less than a tenth of a core.
const REST: Duration = Duration::from_millis(300);

/// The two.
pub(super) struct Pair {
    pub(super) writer: Side,
    pub(super) reader: Side,
    // Behind the daemons, which read it.
    _secret: TempDir,
}

/// One of them.
pub(super) struct Side {
    pub(super) node: Node,
    interrupt: Interrupt,
}

impl Pair {
    pub(super) fn start(bucket: &Bucket, plan: &Plan, interrupt: &Interrupt) -> Result<Pair, Failure> {
        let folder = tempfile::Builder::new().prefix("kvd-bench-").tempdir()?;
        let secret = folder.path().join("secret");
        fs::write(&secret, format!("{:032x}", rand::random::<u128>()))?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        // A quarter more than the records: what does not fill a segment, and what the engines are about to store.
        let records = plan.packs as u64 * plan.pack_bytes;
        let dram_bytes = (records + records / 4).next_multiple_of(PIECE_BYTES) + ENGINES as u64 * PIECE_BYTES;
        let common = [
            format!("tenant.secret_file={}", secret.display()),
            format!("lease.bytes_max={dram_bytes}"),
            format!("tiers.object.pack_bytes={}", plan.pack_bytes),
            format!("tiers.object.share={}GiB", SHARE.0 >> 30),
            "gate.enabled=false".to_owned(),
        ];
        let start = |label, own: &[&str]| {
            let set = bucket.set.iter().chain(&common).cloned().chain(own.iter().map(|&pair| pair.to_owned()));
            let (base, set) = (std::env::temp_dir(), set.collect());
            let node = Node::start(&NodeOptions { label, dram_bytes, nvme_bytes: None, base, set })?;
            Ok::<Side, Failure>(Side { node, interrupt: interrupt.clone() })
        };
        let pair = Pair {
            // A pack is uploaded when it is full, and the last one is full with the last record.
            writer: start("writer", &["tiers.object.pack_age=10m"])?,
            reader: start("reader", &["tiers.object.writable=false", "tiers.object.sync_every=250ms"])?,
            _secret: folder,
        };
        // From then on it has its turns, and knows what it has in the store: uploads begin at once.
        let found = pair.writer.until("nodes that write", 1, |found| found.get("kvd_object_nodes"))?;
        if found.get("kvd_object_nodes") != 1 {
            return Err(failed("somebody else writes below the prefix of this bench"));
        }
        pair.writer.rest()?;
        pair.reader.rest()?;
        Ok(pair)
    }
}

impl Side {
    /// What it counts.
    pub(super) fn metrics(&self) -> Result<Metrics, Failure> {
        let text = self.node.connection().run(async |mut admin: Admin| {
            Ok(admin.get_metrics(proto::GetMetricsRequest {}).await?.into_inner().text)
        })?;
        Ok(Metrics(text))
    }

    /// Waits until it does nothing any more: memory is made ready for a while after the start.
    fn rest(&self) -> Result<(), Failure> {
        let (pid, since) = (self.node.pid(), Instant::now());
        loop {
            let before = process_cpu(pid)?;
            std::thread::sleep(REST);
            self.interrupt.check()?;
            if process_cpu(pid)?.saturating_sub(before) < REST / 10 {
                return Ok(());
            }
            if since.elapsed() > STANDSTILL_MAX {
                return Err(failed("a daemon of the bench does not come to rest"));
            }
        }
    }

    /// Waits until it counts so many, as long as that grows.
    pub(super) fn until(
        &self,
        what: &str,
        wanted: u64,
        mut count: impl FnMut(&Metrics) -> u64,
    ) -> Result<Metrics, Failure> {
        let started = Instant::now();
        let (mut before, mut since) = (0, started);
        loop {
            self.interrupt.check()?;
            let found = self.metrics()?;
            let now = count(&found);
            if now >= wanted {
                return Ok(found);
            }
            if std::mem::replace(&mut before, now) != now {
                since = Instant::now();
            } else if since.elapsed() > STANDSTILL_MAX {
                let message = format!("a daemon of the bench stands still: {what}, {now} of {wanted}");
                return Err(failed(message).remedy("`kvd doctor` with the same tiers.object.* keys looks at the store"));
            }
            std::thread::sleep((started.elapsed() / 100).clamp(*LOOK_EVERY.start(), *LOOK_EVERY.end()));
        }
    }
}

/// Counters and gauges of a daemon, in the text format of Prometheus.
pub(super) struct Metrics(String);

impl Metrics {
    /// One series; 0 where there is none.
    pub(super) fn get(&self, series: &str) -> u64 {
        self.sum(|name| name == series)
    }

    /// Requests of this kind that were sent, whatever came of them: those that were made again or twice among them.
    pub(super) fn requests(&self, op: &str) -> u64 {
        self.get(&format!("kvd_object_requests_sent_total{{op=\"{op}\"}}"))
    }

    /// Records and packs that were meant for the store, and did not come there.
    pub(super) fn lost(&self) -> u64 {
        let of_records = "kvd_object_records_not_uploaded_total{";
        self.sum(|name| name.starts_with(of_records) && !name.contains("outcome=\"known\""))
    }

    fn sum(&self, which: impl Fn(&str) -> bool) -> u64 {
        let lines = self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        lines.filter(|(name, _)| which(name)).filter_map(|(_, value)| value.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_their_whole_name() {
        let metrics = Metrics(
            "# TYPE kvd_object_requests counter\n\
             kvd_object_requests_sent_total{op=\"get\"} 9\n\
             kvd_object_requests_sent_total{op=\"put\"} 4\n\
             kvd_object_records_not_uploaded_total{outcome=\"known\"} 3\n\
             kvd_object_records_not_uploaded_total{outcome=\"fallen\"} 1\n\
             kvd_object_nodes 1\nkvd_object_nodes_more 5\n"
                .into(),
        );
        assert_eq!((metrics.requests("get"), metrics.requests("put"), metrics.get("kvd_object_nodes")), (9, 4, 1));
        assert_eq!((metrics.lost(), metrics.get("kvd_object_runs_total")), (1, 0));
    }
}
