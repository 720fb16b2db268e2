//! The object tier: a folder that others cannot look into and that stays, or a bucket that answers as it must.

use std::path::Path;

use crate::config::{Config, Object};
use crate::machine::{EntryKind, Machine};
use crate::object::options::StoreUrl;

use super::super::Notes;

pub(super) fn store(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let object = &config.tiers.object;
    let Some(options) = config.object_options() else { return notes.ok("there is no object tier") };
    if let StoreUrl::Folder(path) = &object.url
        && !folder(object, path, machine, notes)
    {
        return;
    }
    match machine.probe_store(&options) {
        Ok(probe) if probe.written => {
            notes.ok(format!("{} takes, gives back and keeps what it has (in {:.0?})", object.url, probe.took));
        }
        Ok(probe) => notes.ok(format!("{} can be listed (in {:.0?}); this node only reads it", object.url, probe.took)),
        Err(error) => notes.fail(format!("{}: {error}", object.url), error.remedy()),
    }
}

/// Whether there is a folder to try; one that will be made at the first start is not made for a look.
fn folder(object: &Object, path: &Path, machine: &dyn Machine, notes: &mut Notes) -> bool {
    let shown = path.display();
    match machine.filesystem(path) {
        Ok(fs) if fs.read_only && object.writable => {
            notes.fail(format!("{shown} is mounted read-only"), "remount it, or set tiers.object.writable = false");
            return false;
        }
        Ok(fs) if fs.is_memory() => notes.warn(
            format!("{shown} is on {}: the object tier would be kept in memory, and gone with the power", fs.kind),
            "choose a folder on a disk or on a network, or set tiers.object.enabled = false",
        ),
        Ok(fs) if fs.kind == "overlayfs" => notes.warn(
            format!("{shown} is on overlayfs, the container's own layer: slow, and gone with the container"),
            "mount a volume there, or set tiers.object.enabled = false",
        ),
        Ok(_) => {}
        Err(error) => {
            notes.fail(format!("{shown} cannot be looked at: {error}"), "choose another folder");
            return false;
        }
    }
    match machine.entry(path) {
        Ok(Some(entry)) if entry.kind == EntryKind::Folder => {
            if entry.mode & 0o077 != 0 {
                notes.warn(
                    format!(
                        "{shown} can be entered by others (mode {:04o}): it holds prompts in another form",
                        entry.mode
                    ),
                    format!("chmod 700 {shown}, unless it is meant for the daemons of several users"),
                );
            }
            true
        }
        Ok(None) if machine.writable(path) => {
            notes.ok(format!("{shown} will be made"));
            false
        }
        // Said with its remedy by the check of the configuration.
        Ok(_) | Err(_) => false,
    }
}
