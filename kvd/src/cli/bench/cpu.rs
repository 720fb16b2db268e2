//! How busy the machine is, so that a figure says under what load it was taken.

use std::fs;

/// The load average of the last minute; more than the bench's own threads means that others were at work.
pub(super) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}
