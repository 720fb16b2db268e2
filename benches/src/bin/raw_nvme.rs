//! How close a plain loop over `Io` comes to fio on the same file: the ceiling of everything kvd does with a disk.
//!
//! `raw_nvme FILE [PAIRS] [SECONDS] [FIO_ENGINE] [uring|blocking] [shared|private]` makes FILE (2 GiB of noise) if it does
//! not exist, then alternates fio and our loop for each block size and direction, and prints one JSON object with the
//! medians, the CPU time per GB of both and every single run. Memory is shared (tmpfs pages of 4 KiB, as the arena's)
//! or private (huge pages where the system gives them). Remove FILE afterwards.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvd_nixl::io::{
    BlockingIo, BlockingOptions, FileId, FileOptions, Io, IoDone, IoFile, IoOp, Seeded, UringIo, UringOptions,
};
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent, Region, memfd_sealed};
use serde::Serialize;

const FILE_BYTES: u64 = 2 << 30;
/// Block bytes and queue depth, as in acceptance line 12 of the node daemon's issue.
const SHAPES: [(usize, usize); 3] = [(64 << 10, 32), (256 << 10, 16), (1 << 20, 8)];

/// One run of either side.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    gb_per_second: f64,
    cpu_seconds_per_gb: f64,
}

/// One shape and direction.
#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    block_bytes: usize,
    queue_depth: usize,
    ours_gb_per_second: f64,
    fio_gb_per_second: f64,
    /// Median over the pairs of ours / fio.
    ratio: f64,
    ours_cpu_seconds_per_gb: f64,
    fio_cpu_seconds_per_gb: f64,
    ours: Vec<Run>,
    fio: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Report {
    file: String,
    direct: bool,
    io: String,
    memory: String,
    fio_engine: String,
    seconds: f64,
    rows: Vec<Row>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| arguments.get(index).map_or(default.to_owned(), Clone::clone);
    let path = arguments
        .first()
        .context("usage: raw_nvme FILE [PAIRS] [SECONDS] [FIO_ENGINE] [uring|blocking] [shared|private]")?;
    let pairs: usize = argument(1, "5").parse()?;
    let seconds: f64 = argument(2, "2").parse()?;
    let engine = argument(3, "libaio");
    let kind = argument(4, "uring");
    let memory = argument(5, "shared");
    let file = Arc::new(IoFile::open(Path::new(path), FileOptions { create: true, direct: true })?);
    if file.bytes()? < FILE_BYTES {
        fill(&file)?;
    }
    let mut rows = Vec::new();
    for (block_bytes, queue_depth) in SHAPES {
        for write in [false, true] {
            let shape = Shape { block_bytes, queue_depth, write, seconds, shared: memory == "shared" };
            let (mut ours, mut fio) = (Vec::new(), Vec::new());
            for pair in 0..pairs {
                // Who goes first alternates, so that drift of the disk hits both sides alike.
                if pair % 2 == 0 {
                    fio.push(run_fio(path, &engine, shape)?);
                    ours.push(run_ours(&file, &kind, shape)?);
                } else {
                    ours.push(run_ours(&file, &kind, shape)?);
                    fio.push(run_fio(path, &engine, shape)?);
                }
            }
            rows.push(row(shape, ours, fio));
        }
    }
    let report =
        Report { file: path.clone(), direct: file.is_direct(), io: kind, memory, fio_engine: engine, seconds, rows };
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

#[derive(Clone, Copy)]
struct Shape {
    block_bytes: usize,
    queue_depth: usize,
    write: bool,
    seconds: f64,
    shared: bool,
}

fn row(shape: Shape, ours: Vec<Run>, fio: Vec<Run>) -> Row {
    let speed = |runs: &[Run]| median(runs.iter().map(|run| run.gb_per_second));
    let cpu = |runs: &[Run]| median(runs.iter().map(|run| run.cpu_seconds_per_gb));
    Row {
        op: if shape.write { "write" } else { "read" },
        block_bytes: shape.block_bytes,
        queue_depth: shape.queue_depth,
        ours_gb_per_second: speed(&ours),
        fio_gb_per_second: speed(&fio),
        ratio: median(ours.iter().zip(&fio).map(|(ours, fio)| ours.gb_per_second / fio.gb_per_second)),
        ours_cpu_seconds_per_gb: cpu(&ours),
        fio_cpu_seconds_per_gb: cpu(&fio),
        ours,
        fio,
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Noise everywhere: extents that were only reserved would be read without the disk.
fn fill(file: &IoFile) -> Result<()> {
    let memory = MemoryExtent::whole(Arc::new(Region::new(1 << 20)?));
    let mut random = Seeded::new(1);
    let noise: Vec<u8> = (0..memory.len() / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
    memory.write(0, &noise)?;
    for at in (0..FILE_BYTES).step_by(memory.len()) {
        if memory.write_to_file(file.as_fd(), at)? != memory.len() {
            bail!("the file could not be filled");
        }
    }
    Ok(())
}

fn run_ours(file: &Arc<IoFile>, kind: &str, shape: Shape) -> Result<Run> {
    let depth = u32::try_from(shape.queue_depth)?;
    match kind {
        "uring" => {
            let mut io = UringIo::new(UringOptions { depth, memories: 4 })?;
            let id = io.add_file(Arc::clone(file))?;
            measure(&mut io, id, shape)
        }
        "blocking" => {
            let mut io = BlockingIo::new(BlockingOptions { depth: shape.queue_depth, ..BlockingOptions::default() })?;
            let id = io.add_file(Arc::clone(file))?;
            measure(&mut io, id, shape)
        }
        other => bail!("no Io is called {other}"),
    }
}

fn measure(io: &mut impl Io, file: FileId, shape: Shape) -> Result<Run> {
    let bytes_in_flight = shape.block_bytes * shape.queue_depth;
    let region: Arc<dyn Memory> = if shape.shared {
        let memfd = memfd_sealed("kvd-raw", bytes_in_flight as u64)?;
        Arc::new(Mapping::new(memfd.as_fd(), 0, bytes_in_flight)?)
    } else {
        Arc::new(Region::new(bytes_in_flight)?)
    };
    region.zero(0, region.len())?;
    let registered = io.register_memory(&region);
    let mut random = Seeded::new(shape.block_bytes as u64);
    let blocks = FILE_BYTES / shape.block_bytes as u64;
    let mut next = |slot: u64| -> Result<IoOp> {
        let at = random.below(blocks) * shape.block_bytes as u64;
        let from = usize::try_from(slot)? * shape.block_bytes;
        let memory = MemoryExtent::new(Arc::clone(&region), from, shape.block_bytes)?;
        Ok(if shape.write { IoOp::write(slot, file, at, memory) } else { IoOp::read(slot, file, at, memory) })
    };
    let cpu_before = cpu_seconds()?;
    let start = Instant::now();
    let limit = Duration::from_secs_f64(shape.seconds);
    for slot in 0..shape.queue_depth as u64 {
        io.submit(next(slot)?).ok().context("an empty queue takes its depth")?;
    }
    let mut done: Vec<IoDone> = Vec::with_capacity(shape.queue_depth);
    let mut bytes = 0_u64;
    while io.in_flight() > 0 {
        io.wait(None);
        io.poll(&mut done);
        let going_on = start.elapsed() < limit;
        for done in done.drain(..) {
            done.result?;
            bytes += shape.block_bytes as u64;
            if going_on {
                io.submit(next(done.tag)?).ok().context("a completion leaves room")?;
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    if registered {
        io.unregister_memory(&region);
    }
    let gb = bytes as f64 / 1e9;
    Ok(Run { gb_per_second: gb / elapsed, cpu_seconds_per_gb: (cpu_seconds()? - cpu_before) / gb })
}

/// User and system time of this process, threads of the kernel's io_uring pool included.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("a stat line")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a stat line")?.parse::<u64>()? as f64) };
    // utime and stime are fields 14 and 15 of proc(5), in ticks of 10 ms on every Linux in use.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn run_fio(path: &str, engine: &str, shape: Shape) -> Result<Run> {
    let mut fio = Command::new("fio");
    fio.args(["--name=raw", "--direct=1", "--norandommap", "--randrepeat=0", "--time_based", "--output-format=json"]);
    fio.args(["--group_reporting", "--fallocate=none", "--overwrite=1", "--zero_buffers"]);
    fio.arg(format!("--filename={path}")).arg(format!("--ioengine={engine}")).arg(format!("--size={FILE_BYTES}"));
    fio.arg(format!("--bs={}", shape.block_bytes)).arg(format!("--iodepth={}", shape.queue_depth));
    fio.arg(format!("--runtime={}ms", (shape.seconds * 1000.0) as u64));
    fio.arg(if shape.write { "--rw=randwrite" } else { "--rw=randread" });
    if engine == "io_uring" {
        fio.args(["--registerfiles=1", "--fixedbufs=1"]);
    }
    let output = fio.output().context("fio is needed: apt-get install fio")?;
    if !output.status.success() {
        bail!("fio: {}", String::from_utf8_lossy(&output.stderr));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let job = &report["jobs"][0];
    let side = &job[if shape.write { "write" } else { "read" }];
    let number = |value: &serde_json::Value| value.as_f64().context("fio's report lacks a number");
    let gb = number(&side["io_bytes"])? / 1e9;
    let seconds = number(&side["runtime"])? / 1000.0;
    let cpu = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0 * seconds;
    Ok(Run { gb_per_second: gb / seconds, cpu_seconds_per_gb: cpu / gb })
}
