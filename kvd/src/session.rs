//! The engines' side: a Unix socket for handshakes and file descriptors, and the deaths of processes.
//!
//! Payload never passes here, nor any request of the fast path: those travel in the rings that a handshake sets up.
