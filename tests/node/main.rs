//! A real daemon and real engines, end to end: what a user does, and what must survive.

#![forbid(unsafe_code)]

mod life;
mod operate;
mod store;
