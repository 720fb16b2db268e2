//! How busy the machine is, so that a figure says under what load it was taken, and what a process spends.

use std::fs;
use std::io;
use std::time::Duration;

/// The load average of the last minute; more than the bench's own threads means that others were at work.
pub(super) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// User and system time of a process, of threads that have ended too, in steps of a tick (10 ms).
pub(super) fn process_cpu(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as it should be")))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Fields 14 and 15, counted from 1. The second is a name in brackets that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(14 - 3);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_charged_for_user_and_system_time() {
        let stat = "42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 17 25 3 4 20 0 1 0 100 0 0\n";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!((ticks("42 (short) S 1"), ticks("")), (None, None));
        assert!(process_cpu(std::process::id()).is_ok() && process_cpu(u32::MAX).is_err());
    }
}
