//! One suite of promises, run by every way to reach a disk.
//!
//! Goal: device code may trust what `Io` says, whichever implementation stands behind it. Method: each promise is a
//! function over a factory; each backend runs them all; and planted liars show that every promise can be broken and is
//! then noticed.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "io_conformance/backends.rs"]
mod backends;
#[path = "io_conformance/liars.rs"]
mod liars;
#[path = "io_conformance/suite.rs"]
mod suite;
