//! A plain signed client: the library's own, as kvd configures it, on all threads it likes.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kvd_nixl::sys::MemoryExtent;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload};
use tokio::task::JoinSet;

use super::bucket::{Bucket, Run, failed};
use super::plan::Plan;
use super::report::Speed;
use crate::cli::bench::cpu::process_cpu;
use crate::cli::exit::{Exit, Failure};
use crate::cli::replay::payload::Words;

/// Objects like packs, and one who writes and reads them.
pub(super) struct Plain<'a> {
    bucket: &'a Bucket,
    client: Arc<dyn ObjectStore>,
    below: Path,
    plan: &'a Plan,
    /// As many contents as the daemon has packs in memory; objects take them in turn.
    contents: Vec<Bytes>,
}

impl<'a> Plain<'a> {
    pub(super) fn new(bucket: &'a Bucket, plan: &'a Plan) -> Result<Plain<'a>, Failure> {
        let (client, below) = bucket.plain()?;
        let contents = (0..plan.packs_in_memory).map(|number| {
            let mut content = vec![0; plan.pack_bytes as usize];
            Words::of(number).fill(&mut content);
            Bytes::from(content)
        });
        Ok(Plain { bucket, client, below, plan, contents: contents.collect() })
    }

    fn path(&self, object: usize) -> Path {
        self.below.clone().join(object.to_string())
    }

    fn content(&self, object: usize) -> &Bytes {
        &self.contents[object % self.contents.len()]
    }

    /// Writes an object for every pack.
    pub(super) fn put(&self) -> Result<Speed, Failure> {
        let put = |object: usize| {
            let (client, path) = (Arc::clone(&self.client), self.path(object));
            let payload = PutPayload::from(self.content(object).clone());
            async move { client.put(&path, payload).await.map(drop).map_err(failed) }
        };
        let bytes = self.plan.moved_bytes();
        self.timed(bytes, self.plan.put_requests, (0..self.plan.packs).map(put))
    }

    /// Reads ranges of them into memory, each where its object has its place.
    pub(super) fn get(&self, runs: &[Run], memory: &MemoryExtent) -> Result<Speed, Failure> {
        let get = |run: &Run| {
            let (client, path, memory) = (Arc::clone(&self.client), self.path(run.pack), memory.clone());
            let (range, mut at) = (run.range.clone(), self.place(run));
            async move {
                let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
                let answer = client.get_opts(&path, options).await.map_err(failed)?;
                let (end, mut body) = (at + (range.end - range.start) as usize, answer.into_stream());
                while let Some(chunk) = body.next().await {
                    let chunk = chunk.map_err(failed)?;
                    memory.write(at, &chunk).map_err(failed)?;
                    at += chunk.len();
                }
                if at == end { Ok(()) } else { Err(failed(format!("{path}: {range:?} ended early"))) }
            }
        };
        let bytes = runs.iter().map(|run| run.range.end - run.range.start).sum();
        self.timed(bytes, self.plan.get_requests, runs.iter().map(get))
    }

    /// What was read is what was written.
    pub(super) fn check(&self, runs: &[Run], memory: &MemoryExtent) -> Result<(), Failure> {
        let mut found = Vec::new();
        for run in runs {
            let (start, end) = (run.range.start as usize, run.range.end as usize);
            found.resize(end - start, 0);
            memory.read(self.place(run), &mut found).map_err(failed)?;
            if found != self.content(run.pack)[start..end] {
                let message = format!("the plain client read wrong bytes of object {}", run.pack);
                return Err(Failure::new(Exit::CheckFailed, message));
            }
        }
        Ok(())
    }

    fn place(&self, run: &Run) -> usize {
        run.pack * self.plan.pack_bytes as usize + run.range.start as usize
    }

    /// Makes requests, so many at a time.
    fn timed<F>(&self, bytes: u64, at_once: usize, requests: impl Iterator<Item = F>) -> Result<Speed, Failure>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let pid = std::process::id();
        let (cpu, started) = (process_cpu(pid)?, Instant::now());
        self.bucket.run(async {
            let mut flying = JoinSet::new();
            for request in requests {
                if flying.len() >= at_once {
                    flying.join_next().await.transpose().map_err(failed)?.transpose()?;
                }
                flying.spawn(request);
            }
            while let Some(done) = flying.join_next().await {
                done.map_err(failed)??;
            }
            Ok(())
        })?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Speed::of(bytes, seconds, process_cpu(pid)?.saturating_sub(cpu)))
    }
}
