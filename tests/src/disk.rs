//! Small file systems, and programs of the system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip;

/// Runs a program of the system; its answer, or why there is none.
pub fn system(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("no {program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A tmpfs of limited size, unmounted with the value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Over `folder`; `None`, and said so, where this user may not mount.
    pub fn mount(test: &str, folder: &Path, size: &str) -> Option<Self> {
        // The kernel knows M, and newer ones nothing behind it.
        let options = format!("size={},mode=0700", size.trim_end_matches("iB"));
        match system("mount", &["-t", "tmpfs", "-o", &options, "kvd-test", &folder.display().to_string()]) {
            Ok(_) => Some(Self(folder.to_owned())),
            Err(why) => {
                skip(test, &format!("no tmpfs can be mounted: {why}"));
                None
            }
        }
    }

    /// With other options.
    pub fn remount(&self, option: &str) -> Result<String, String> {
        system("mount", &["-o", &format!("remount,{option}"), &self.0.display().to_string()])
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that is killed after this may still have files open here.
        let _ = system("umount", &["-l", &self.0.display().to_string()]);
    }
}
