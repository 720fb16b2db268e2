//! The Prometheus registry: names, units and labels of everything that is counted.

use std::fmt;
use std::sync::Arc;

use kvd_proto::wire::ring::Op;
use kvd_proto::{MissReason, Tier};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::counters::{Counters, Edge, LATENCY_BOUNDS_NANOS, Latency};
use super::object;
use crate::core::admin::DeviceState;

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct MetricsFacts {
    /// The daemon's version.
    pub version: String,
    /// The number of this start.
    pub epoch: u64,
    /// Files of the devices, at most 16.
    pub devices: Vec<String>,
}

/// The registry over the daemon's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Names everything that `counters` counts.
    pub fn new(counters: Arc<Counters>, facts: MetricsFacts) -> Metrics {
        let mut registry = Registry::default();
        let labels = vec![("version", facts.version.clone()), ("epoch", facts.epoch.to_string())];
        registry.register("kvd_build", "Version and epoch of the running daemon", Info::new(labels));
        registry.register_collector(Box::new(Counted { counters, facts }));
        Metrics { registry }
    }

    /// Everything, in the OpenMetrics text format that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, and our own collector has no error of its own.
        encode(&mut text, &self.registry).expect("a String takes any text");
        text
    }
}

#[derive(Debug)]
struct Counted {
    counters: Arc<Counters>,
    facts: MetricsFacts,
}

/// One value as a counter or a gauge.
struct Value(MetricType, u64);

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self.0 {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&self.1, None),
            _ => encoder.encode_gauge(&i64::try_from(self.1).unwrap_or(i64::MAX)),
        }
    }

    fn metric_type(&self) -> MetricType {
        self.0
    }
}

struct Seconds<'a>(&'a Latency);

impl EncodeMetric for Seconds<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = LATENCY_BOUNDS_NANOS.iter().map(|nanos| *nanos as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets()).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.sum_nanos() as f64 / 1e9, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Writes families; keeps the calls below to one line a metric.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn family<const N: usize>(
        &mut self,
        kind: MetricType,
        (name, unit, help): (&str, Option<&Unit>, &str),
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in series {
            // An empty set of labels is no family: the value stands alone.
            if N == 0 {
                return Value(kind, value).encode(encoder);
            }
            Value(kind, value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Counter, (name, None, help), series)
    }

    pub(super) fn counter_bytes<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Counter, (name, Some(&Unit::Bytes), help), series)
    }

    pub(super) fn gauge<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Gauge, (name, None, help), series)
    }

    pub(super) fn gauge_bytes<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        self.family(MetricType::Gauge, (name, Some(&Unit::Bytes), help), series)
    }

    fn latency<'l>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ((&'static str, String), &'l Latency)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (label, latency) in series {
            Seconds(latency).encode(encoder.encode_family(&[label])?)?;
        }
        Ok(())
    }
}

pub(super) fn one(value: u64) -> [([(&'static str, String); 0], u64); 1] {
    [([], value)]
}

const TIERS: [Tier; 3] = [Tier::Dram, Tier::Nvme, Tier::Object];

impl Counted {
    fn blocks(&self, out: &mut Families<'_>) -> fmt::Result {
        let c = &self.counters;
        let tier = |tier: Tier| ("tier", tier.as_str().to_owned());
        out.counter(
            "kvd_block_hits",
            "Blocks matched, by the slowest tier of their match",
            TIERS.map(|t| ([tier(t)], c.hits(t).get())),
        )?;
        let reason = |reason: MissReason| ("reason", reason.as_str().to_owned());
        out.counter(
            "kvd_block_misses",
            "Blocks asked for and not served, by reason",
            MissReason::ALL.into_iter().map(|r| ([reason(r)], c.misses(r).get())),
        )?;
        out.counter("kvd_blocks_offered", "Blocks that engines offered to store", one(c.blocks_offered.get()))?;
        out.counter("kvd_blocks_committed", "Blocks that engines committed", one(c.blocks_committed.get()))?;
        out.counter(
            "kvd_blocks_corrupt",
            "Copies that did not verify and were dropped",
            TIERS.map(|t| ([tier(t)], c.corrupt(t).get())),
        )?;
        let evicted = [(Tier::Dram, &c.dram_evicted), (Tier::Nvme, &c.nvme_evicted)];
        out.counter(
            "kvd_records_evicted",
            "Records that fell to make room",
            evicted.map(|(t, count)| ([tier(t)], count.get())),
        )?;
        let edge = |(from, to): (&str, &str)| [("from", from.to_owned()), ("to", to.to_owned())];
        out.counter_bytes(
            "kvd_moved",
            "Bytes moved, by edge",
            Edge::ALL.map(|e| (edge(e.labels()), c.moved(e).get())),
        )?;
        out.gauge(
            "kvd_blocks",
            "Blocks that are here: of each group the records of the shard that has the most",
            one(c.blocks.get()),
        )?;
        out.gauge("kvd_records", "Records that are here", one(c.records.get()))?;
        let used = [(Tier::Dram, c.dram_used_bytes.get()), (Tier::Nvme, c.nvme_used_bytes.get())];
        out.gauge_bytes("kvd_tier_used", "Bytes of slots in use", used.map(|(t, bytes)| ([tier(t)], bytes)))?;
        let capacity = [(Tier::Dram, c.dram_capacity_bytes.get()), (Tier::Nvme, c.nvme_capacity_bytes.get())];
        out.gauge_bytes(
            "kvd_tier_capacity",
            "Bytes that the tier may hold",
            capacity.map(|(t, bytes)| ([tier(t)], bytes)),
        )
    }

    fn sessions(&self, out: &mut Families<'_>) -> fmt::Result {
        let c = &self.counters;
        let op = |op: Op| ("op", format!("{op:?}").to_lowercase());
        out.counter(
            "kvd_requests",
            "Requests of engines, by operation",
            Op::ALL.into_iter().map(|o| ([op(o)], c.ops(o).get())),
        )?;
        out.latency(
            "kvd_request_duration",
            "From the ring to the last completion, by operation",
            Op::ALL.into_iter().map(|o| (op(o), c.op_latency(o))),
        )?;
        out.counter("kvd_requests_bad", "Requests that made no sense", one(c.bad_requests.get()))?;
        out.counter("kvd_requests_refused", "Requests refused for a bound", one(c.refused_requests.get()))?;
        out.counter(
            "kvd_completions_delayed",
            "Completions that waited for a client which does not read",
            one(c.completions_delayed.get()),
        )?;
        out.gauge("kvd_sessions", "Sessions connected", one(c.sessions.get()))?;
        out.counter("kvd_sessions_opened", "Sessions accepted", one(c.sessions_opened.get()))?;
        out.counter("kvd_sessions_cut", "Sessions closed for misbehaving", one(c.sessions_cut.get()))?;
        out.counter(
            "kvd_handshakes_failed",
            "Connections refused or cut before they became sessions",
            one(c.handshakes_failed.get()),
        )?;
        out.counter(
            "kvd_accept_backoffs",
            "Times that accept waited for want of descriptors",
            one(c.accept_backoffs.get()),
        )?;
        out.counter("kvd_clients_died", "Engine processes that ended with a session open", one(c.clients_died.get()))?;
        out.gauge("kvd_leases", "Leases held", one(c.leases.get()))?;
        out.counter("kvd_core_beats", "Beats of the core thread; they must go on", one(c.heartbeat.get()))
    }

    fn devices(&self, out: &mut Families<'_>) -> fmt::Result {
        let c = &self.counters;
        let paths = || (0..).zip(&self.facts.devices);
        let devices = || paths().map(|(device, _)| (("device", device.to_string()), c.device(device)));
        let states = paths().flat_map(|(device, path)| {
            let now = DeviceState::of_code(c.device(device).state.get());
            DeviceState::ALL.map(move |state| {
                let labels =
                    [("device", device.to_string()), ("path", path.clone()), ("state", state.as_str().to_owned())];
                (labels, u64::from(state == now))
            })
        });
        out.gauge("kvd_device_state", "1 for the state that the device is in, 0 for the others", states)?;
        let kind = |kind: &str| ("kind", kind.to_owned());
        out.counter_bytes(
            "kvd_device_read",
            "Bytes read from the device",
            devices().map(|(label, d)| ([label], d.read_bytes.get())),
        )?;
        out.counter_bytes(
            "kvd_device_written",
            "Bytes written to the device",
            devices().map(|(label, d)| ([label], d.written_bytes.get())),
        )?;
        let operations = devices().flat_map(|(label, d)| {
            [([label.clone(), kind("read")], d.reads.get()), ([label, kind("write")], d.writes.get())]
        });
        out.counter("kvd_device_operations", "Operations done by the device", operations)?;
        let errors = devices().flat_map(|(label, d)| {
            [([label.clone(), kind("read")], d.read_errors.get()), ([label, kind("write")], d.write_errors.get())]
        });
        out.counter("kvd_device_errors", "Operations that the device failed", errors)?;
        out.gauge(
            "kvd_device_queued",
            "Moves queued or under way",
            devices().map(|(label, d)| ([label], d.queued.get())),
        )?;
        out.latency("kvd_device_duration", "From command to outcome", devices().map(|(label, d)| (label, &d.latency)))
    }
}

impl Collector for Counted {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.blocks(&mut out)?;
        self.sessions(&mut out)?;
        self.devices(&mut out)?;
        object::encode(&self.counters.object, &mut out)
    }
}

/// docs/metrics.md, from the registry.
pub fn reference_markdown() -> String {
    let facts = MetricsFacts { version: String::new(), epoch: 0, devices: vec![String::new()] };
    let scrape = Metrics::new(Arc::default(), facts).text();
    let mut text = String::from(
        "# Metrics\n\nServed at `/metrics` of `metrics.listen`, and printed by `kvd status --metrics`. Every series stands from the start with its zero.\n\
         A test compares this page with the registry.\n\n| name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    let lines: Vec<&str> = scrape.lines().collect();
    for help in lines.iter().filter_map(|line| line.strip_prefix("# HELP ")) {
        let Some((name, meaning)) = help.split_once(' ') else { continue };
        let find = |prefix: String| lines.iter().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default();
        let kind = find(format!("# TYPE {name} "));
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels = find(format!("{name}{suffix}{{")).split('}').next().unwrap_or_default().to_owned();
        let labels = if kind == "histogram" {
            find(format!("{name}_bucket{{")).split('}').next().unwrap_or_default().to_owned()
        } else {
            labels
        };
        let names: Vec<String> =
            labels.split("\",").filter_map(|pair| Some(format!("`{}`", pair.split_once('=')?.0))).collect();
        text.push_str(&format!(
            "| `{name}{suffix}` | {kind} | {} | {} |\n",
            names.join(", "),
            meaning.trim_end_matches('.')
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (Arc<Counters>, Metrics) {
        let counters = Arc::new(Counters::default());
        let facts = MetricsFacts { version: "1.2.3".into(), epoch: 7, devices: vec!["/a".into(), "/b".into()] };
        (counters.clone(), Metrics::new(counters, facts))
    }

    #[test]
    fn every_reason_stands_with_its_zero_before_the_first_miss() {
        let text = fresh().1.text();
        for reason in MissReason::ALL {
            let line = format!("kvd_block_misses_total{{reason=\"{}\"}} 0", reason.as_str());
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(text.contains("kvd_build_info{version=\"1.2.3\",epoch=\"7\"} 1"), "{text}");
        assert!(text.contains("kvd_device_errors_total{device=\"1\",kind=\"write\"} 0"), "{text}");
        assert!(text.contains("kvd_device_state{device=\"1\",path=\"/b\",state=\"ok\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_counted_is_shown() {
        let (counters, metrics) = fresh();
        counters.misses(MissReason::Corrupt).add(3);
        counters.op_latency(Op::Match).record(std::time::Duration::from_micros(12));
        counters.sessions.set(2);
        let text = metrics.text();
        assert!(text.contains("kvd_block_misses_total{reason=\"corrupt\"} 3"), "{text}");
        assert!(text.contains("kvd_sessions 2"), "{text}");
        assert!(text.contains("kvd_request_duration_seconds_bucket{le=\"0.000015\",op=\"match\"} 1"), "{text}");
        assert!(text.contains("kvd_request_duration_seconds_bucket{le=\"+Inf\",op=\"match\"} 1"), "{text}");
        assert!(text.contains("kvd_request_duration_seconds_count{op=\"match\"} 1"), "{text}");
    }

    #[test]
    fn names_follow_the_conventions() {
        for line in fresh().1.text().lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split_whitespace().nth(2).unwrap_or_default();
            assert!(name.starts_with("kvd_"), "{line}");
            assert!(!name.ends_with("_ms") && !name.ends_with("_us"), "base units only: {line}");
        }
    }
}
