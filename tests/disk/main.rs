//! Disks that are full, gone, read-only, broken or slow, under a daemon that goes on.
//!
//! Goal: what can be served is, the rest are misses, nobody waits beyond a deadline, it is over by itself when the disk is
//! well again, and the operator reads the device's name in the log and in a metric. Method: a real daemon on a small file
//! system, on a file whose end is cut off under it (reads come back short) and on a loop device whose backing file is
//! (the kernel answers EIO).

#![forbid(unsafe_code)]

mod broken;
mod full;
mod gone;
mod place;
mod slow;
