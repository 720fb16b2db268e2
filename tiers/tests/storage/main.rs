//! Records and the NVMe device from outside: formats, damage, crashes, failing disks.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test stops at the first surprise")]

mod crash;
mod damage;
mod disk;
mod faults;
mod figures;
mod golden;
mod record;
mod records;
mod world;
