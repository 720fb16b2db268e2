//! Request traces: one chain of block ids per request. Recorded ones in Mooncake's format, generated ones from a seed.

use std::io::BufRead;
use std::path::Path;

use anyhow::Context;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

/// Block ids of each request, in chain order. The same id always follows the same prefix.
pub type Trace = Vec<Vec<u32>>;

#[derive(Deserialize)]
struct Line {
    hash_ids: Vec<u32>,
}

/// Reads a trace in Mooncake's format: a JSON object per line.
pub fn read(path: &Path) -> anyhow::Result<Trace> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let parse = |(number, line): (usize, std::io::Result<String>)| {
        let line: Line = serde_json::from_str(&line?).with_context(|| format!("line {}", number + 1))?;
        Ok(line.hash_ids)
    };
    std::io::BufReader::new(file).lines().enumerate().map(parse).collect()
}

struct Generator {
    random: SmallRng,
    next_id: u32,
}

impl Generator {
    fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), next_id: 0 }
    }

    fn blocks(&mut self, count: std::ops::Range<u32>) -> Vec<u32> {
        let count = self.random.random_range(count);
        let first = self.next_id;
        self.next_id += count;
        (first..self.next_id).collect()
    }

    /// A rank below `count` with probability proportional to 1 / (rank + 1).
    fn zipf(&mut self, count: usize) -> usize {
        let weight = |rank: usize| 1.0 / (rank as f64 + 1.0);
        let mut rest = self.random.random::<f64>() * (0..count).map(weight).sum::<f64>();
        (0..count)
            .find(|rank| {
                rest -= weight(*rank);
                rest <= 0.0
            })
            .unwrap_or(count - 1)
    }
}

/// Agents that grow their context step by step on shared system prompts, one-shot questions, and scans of documents.
pub fn agents(seed: u64) -> Trace {
    let mut g = Generator::new(seed);
    let prompts: Vec<_> = (0..40).map(|_| g.blocks(4..28)).collect();
    let mut running: Vec<(Vec<u32>, u32)> = Vec::new();
    let mut trace = Trace::new();
    while trace.len() < 8_000 {
        let kind: f64 = g.random.random();
        if kind < 0.10 || running.is_empty() {
            let mut chain = prompts[g.zipf(prompts.len())].clone();
            chain.extend(g.blocks(2..12));
            trace.push(chain.clone());
            let steps = g.random.random_range(3..23);
            running.push((chain, steps));
            if running.len() > 150 {
                running.remove(0);
            }
        } else if kind < 0.80 {
            let at = g.random.random_range(0..running.len());
            let grown = g.blocks(1..5);
            let (chain, steps) = &mut running[at];
            chain.extend(grown);
            *steps -= 1;
            trace.push(chain.clone());
            if *steps == 0 {
                running.swap_remove(at);
            }
        } else if kind < 0.92 {
            let mut chain = prompts[g.zipf(prompts.len())].clone();
            chain.extend(g.blocks(1..31));
            trace.push(chain);
        } else {
            trace.push(g.blocks(20..200));
        }
    }
    trace
}

/// Three evaluation jobs that go round and round over 60, 250 and 900 prompts, with some passers-by.
pub fn loops(seed: u64) -> Trace {
    let mut g = Generator::new(seed);
    let jobs: Vec<Vec<_>> = [60, 250, 900].iter().map(|n| (0..*n).map(|_| g.blocks(6..18)).collect()).collect();
    let mut at = [0; 3];
    let mut trace = Trace::new();
    while trace.len() < 10_000 {
        let job = g.random.random_range(0..3);
        trace.push(jobs[job][at[job] % jobs[job].len()].clone());
        at[job] += 1;
        if g.random.random_bool(0.1) {
            trace.push(g.blocks(1..41));
        }
    }
    trace
}

/// A drifting working set: a prompt is asked again the sooner the more recently it was asked, whatever its past.
pub fn recency(seed: u64) -> Trace {
    let mut g = Generator::new(seed);
    let mut trace = Trace::new();
    while trace.len() < 10_000 {
        if trace.is_empty() || g.random.random_bool(0.35) {
            trace.push(g.blocks(4..24));
            continue;
        }
        let mut back = 1;
        while back < trace.len() && g.random.random_bool(0.995) {
            back += 1;
        }
        let mut chain = trace[trace.len() - back].clone();
        if chain.len() < 80 && g.random.random_bool(0.3) {
            chain.extend(g.blocks(1..4));
        }
        trace.push(chain);
    }
    trace
}

/// Half of each of the others, one after the other: what was learnt goes stale twice.
pub fn phases(seed: u64) -> Trace {
    let mut trace = Trace::new();
    let mut offset = 0;
    for part in [recency(seed), loops(seed + 1), agents(seed + 2)] {
        let end = part.iter().flatten().max().map_or(0, |id| id + 1);
        trace.extend(part.into_iter().take(5_000).map(|chain| chain.into_iter().map(|id| id + offset).collect()));
        offset += end;
    }
    trace
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_id_always_follows_the_same_id() {
        for trace in [agents(1), loops(1), recency(1), phases(1)] {
            let mut before = HashMap::new();
            for chain in &trace {
                for (position, id) in chain.iter().enumerate() {
                    let parent = position.checked_sub(1).map(|at| chain[at]);
                    assert_eq!(*before.entry(*id).or_insert(parent), parent);
                }
            }
        }
        assert_eq!(agents(7), agents(7), "a seed gives the same trace");
    }
}
