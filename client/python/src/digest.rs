//! Digests of weights.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use crate::errors::released;

/// Read at a time: what all cores hash while the next is read from the page cache.
const CHUNK_BYTES: usize = 16 << 20;

/// BLAKE3 of a file's bytes, on all cores.
#[pyfunction]
pub(crate) fn file_digest(py: Python<'_>, path: PathBuf) -> PyResult<[u8; 32]> {
    Ok(released(py, || digest(&path))??)
}

fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hasher) = (File::open(path)?, blake3::Hasher::new());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(*hasher.finalize().as_bytes());
        }
        hasher.update_rayon(&chunk[..read]);
    }
}
