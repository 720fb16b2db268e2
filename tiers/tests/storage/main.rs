//! Records and the NVMe device from outside: formats, damage, crashes, failing disks.

mod crash;
mod damage;
mod disk;
mod faults;
mod figures;
mod golden;
mod record;
mod records;
mod world;
