//! Real engines on kvd: the Python wheel, and vLLM for CPUs with a model of 125 M parameters.
//!
//! Goal: an engine that is given blocks by kvd says the same tokens as one that computes everything, whatever happened to kvd
//! between. KVD_ENGINES=short runs what `make test` has time for, KVD_ENGINES=all the rest (`make test-engines`), and
//! KVD_ENGINES=releases every release of vLLM (`make test-engine-releases`); an engine that is not to be had here is reported as skipped.

#![forbid(unsafe_code)]

mod decisions;
mod engine;
mod faults;
mod releases;
mod setup;
mod together;
mod vllm;
mod wheel;
