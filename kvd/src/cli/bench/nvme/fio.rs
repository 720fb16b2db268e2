//! fio on the same file: what everybody compares disks with.

use std::process::Command;

use serde_json::Value;

use super::disk::Disk;
use super::{Run, Shape, failed};
use crate::cli::exit::{Exit, Failure};

/// What `fio --version` says; `None` where there is no fio.
pub(super) fn version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One run of libaio.
pub(super) fn run(disk: &Disk, shape: Shape) -> Result<Run, Failure> {
    let mut fio = Command::new("fio");
    fio.args(["--name=kvd", "--direct=1", "--norandommap", "--randrepeat=0", "--time_based", "--output-format=json"]);
    fio.args(["--group_reporting", "--fallocate=none", "--overwrite=1", "--zero_buffers", "--ioengine=libaio"]);
    fio.arg(format!("--filename={}", disk.path.display()));
    fio.arg(format!("--offset={}", disk.data_at())).arg(format!("--size={}", disk.data_bytes()));
    fio.arg(format!("--bs={}", shape.block_bytes)).arg(format!("--iodepth={}", shape.queue_depth));
    fio.arg(format!("--runtime={}ms", shape.limit.as_millis()));
    fio.arg(if shape.write { "--rw=randwrite" } else { "--rw=randread" });
    let output = fio.output()?;
    if !output.status.success() {
        return Err(Failure::new(Exit::Failure, format!("fio: {}", String::from_utf8_lossy(&output.stderr))));
    }
    parsed(&serde_json::from_slice(&output.stdout).map_err(failed)?, shape.write)
        .ok_or_else(|| failed("fio's report lacks a number"))
}

fn parsed(report: &Value, write: bool) -> Option<Run> {
    let job = report.get("jobs")?.get(0)?;
    let side = job.get(if write { "write" } else { "read" })?;
    let number = |from: &Value, name: &str| from.get(name)?.as_f64();
    let seconds = number(side, "runtime")? / 1e3;
    let cpu = (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0 * seconds;
    Some(Run::of(number(side, "io_bytes")?, seconds, cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bytes_time_and_processor_time() {
        let text =
            r#"{"jobs": [{"usr_cpu": 10.0, "sys_cpu": 15.0, "write": {"io_bytes": 4000000000, "runtime": 2000}}]}"#;
        let report = serde_json::from_str(text).unwrap();
        let run = parsed(&report, true).unwrap();
        assert_eq!((run.gb_per_second, run.cpu_seconds_per_gb), (2.0, 0.125));
        assert!(parsed(&report, false).is_none());
    }
}
