//! The file that all sides share: a whole device of kvd's, of whose zones the plain sides use the bytes.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvd_nixl::io::Seeded;
use kvd_nixl::sys::{MemoryExtent, Region};
use kvd_tiers::nvme::{PreparedFile, prepare};

use super::failed;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;

/// Far more than a virtual disk's host is likely to keep in its cache for one guest's burst.
const FILE_BYTES: u64 = 2 << 30;
const PREFIX: &str = "kvd-bench-nvme-";
const NOISE_BYTES: usize = 1 << 20;

/// The file, and whether it goes with this value.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) prepared: PreparedFile,
    own: bool,
}

impl Disk {
    /// A new file in the folder `path`, or the file or block device `path` itself: what it holds is lost.
    pub(super) fn new(path: &Path, yes: bool, output: Output) -> Result<Disk, Failure> {
        let (path, own) = match path.is_dir() {
            true => (path.join(format!("{PREFIX}{}", std::process::id())), true),
            false => (path.to_owned(), !path.exists()),
        };
        if !own {
            output.confirm(yes, &format!("Overwrite {} with noise?", path.display()))?;
        }
        let prepared = prepare(&path, FILE_BYTES).inspect_err(|_| {
            if own {
                let _ = fs::remove_file(&path);
            }
        });
        let prepared = prepared.map_err(failed)?;
        let disk = Disk { path, prepared, own };
        disk.fill()?;
        Ok(disk)
    }

    /// Where the zones begin.
    pub(super) fn data_at(&self) -> u64 {
        self.prepared.geometry.end() - self.data_bytes()
    }

    /// Bytes of all zones.
    pub(super) fn data_bytes(&self) -> u64 {
        u64::from(self.prepared.geometry.zones()) * u64::from(self.prepared.geometry.zone_bytes())
    }

    /// Noise everywhere: extents that were only reserved are read without the disk, and their first write costs more. What
    /// a used file says of itself goes too.
    fn fill(&self) -> Result<(), Failure> {
        let memory = MemoryExtent::whole(Arc::new(Region::new(NOISE_BYTES)?));
        let mut random = Seeded::new(1);
        let noise: Vec<u8> = (0..NOISE_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
        memory.zero(0, NOISE_BYTES).map_err(failed)?;
        let mut at = 0;
        while at < self.prepared.geometry.end() {
            if memory.write_to_file(self.prepared.file.as_fd(), at)? != NOISE_BYTES {
                let message = format!("{} could not be filled", self.path.display());
                return Err(Failure::new(Exit::Failure, message));
            }
            at += NOISE_BYTES as u64;
            // The directory stays zero: that is an empty device.
            if at >= self.data_at() && at < self.data_at() + NOISE_BYTES as u64 {
                memory.write(0, &noise).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.own {
            let _ = fs::remove_file(&self.path);
        }
    }
}
