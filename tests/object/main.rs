//! Two nodes and one store between them: what one stored the other serves, and nothing else.
//!
//! Goal: right bytes or a miss, whatever becomes of the store and of whoever writes to it. Method: real daemons with folders
//! of their own, a shared secret, and a store that is a folder or a SeaweedFS server; payloads derive from their place, so
//! every loaded byte is checked.

#![forbid(unsafe_code)]

mod pool;
mod server;
mod sharing;
mod trouble;
