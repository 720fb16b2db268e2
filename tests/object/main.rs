//! Two nodes and one store between them: what one stored the other serves, and nothing else.
//!
//! Goal: right bytes or a miss, whatever becomes of the store and of whoever writes to it. Method: real daemons with folders
//! of their own, a shared secret, and a store that is a folder, a SeaweedFS server, or one of another make; payloads derive
//! from their place, so every loaded byte is checked. What a network does to requests is done by a proxy between a daemon and the server.

#![forbid(unsafe_code)]

mod bench;
mod bound;
mod faults;
mod makes;
mod operator;
mod outages;
mod pool;
mod proxy;
mod server;
mod sharing;
mod together;
mod trouble;
