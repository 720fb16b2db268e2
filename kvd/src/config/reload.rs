//! What a running daemon can take over from a changed configuration.

use serde::Serialize;

use super::effective::effective;
use super::{Loaded, find};

/// The difference between the running configuration and a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// Keys that change at once.
    pub applied: Vec<String>,
    /// Keys that differ, but need a restart; the running values stay.
    pub needs_restart: Vec<String>,
}

/// Compares key by key.
pub fn compare(running: &Loaded, new: &Loaded) -> Reload {
    let mut reload = Reload::default();
    for (old, new) in effective(running).into_iter().zip(effective(new)) {
        debug_assert_eq!(old.key, new.key, "both lists are the list of keys");
        if old.value == new.value {
            continue;
        }
        let reloadable = find(&new.key).is_some_and(|key| key.reloadable);
        if reloadable { &mut reload.applied } else { &mut reload.needs_restart }.push(new.key);
    }
    reload
}
