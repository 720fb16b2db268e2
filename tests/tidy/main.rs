//! House rules that a reviewer should not have to repeat: arrows between crates, the home of `unsafe`, file sizes,
//! banned words. Each rule is a table and a walk over the sources; the message says what to do.

#![forbid(unsafe_code)]

mod arrows;
mod kernels;
mod sources;
mod words;
