//! Starts that must be refused, with the place and the remedy, and machines that deny something, on which the daemon
//! serves all the same.
//!
//! What `kvd doctor` finds on such machines (more than twelve seeded faults) is tested where they can be seeded:
//! `kvd/src/doctor/tests.rs`.

#![forbid(unsafe_code)]

mod cgroup;
mod configuration;
mod denied;
mod twice;
