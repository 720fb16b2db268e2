//! The configuration of the running daemon and its reload, by SIGHUP or by the admin API.

use tokio::sync::Mutex;

use super::admin::Asks;
use crate::config::{self, ConfigError, Loaded, Problem, Reload, Sources};
use crate::core::admin::{AdminCommand, AdminError, LiveSettings};
use crate::machine::SystemMachine;
use crate::telemetry::{Telemetry, TelemetryError};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The sources have mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The core did not take the settings.
    #[error("the core did not take the new settings: {0}")]
    Core(#[from] AdminError),
    /// The log level could not be changed.
    #[error(transparent)]
    Log(#[from] TelemetryError),
}

/// What runs, and where it was read from.
#[derive(Debug)]
pub struct LiveConfig {
    sources: Sources,
    log: Telemetry,
    /// Guards the values in force; held while a reload asks the core, so that two reloads go one after the other.
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    loaded: Loaded,
    remarks: Vec<Problem>,
}

impl LiveConfig {
    /// The configuration that the daemon was started with.
    pub fn new(sources: Sources, loaded: Loaded, remarks: Vec<Problem>, log: Telemetry) -> LiveConfig {
        LiveConfig { sources, log, running: Mutex::new(Running { loaded, remarks }) }
    }

    /// The values in force.
    pub async fn loaded(&self) -> Loaded {
        self.running.lock().await.loaded.clone()
    }

    /// What [`config::check`] had to remark about them.
    pub async fn remarks(&self) -> Vec<String> {
        self.running.lock().await.remarks.iter().map(ToString::to_string).collect()
    }

    /// Reads the sources again and takes over what can change. All or nothing: on any error the daemon goes on as it was.
    ///
    /// # Errors
    /// Anything is wrong with the sources, or the core does not take the settings.
    pub async fn reload<C: Asks>(&self, core: &C) -> Result<Reload, ReloadError> {
        let mut running = self.running.lock().await;
        let machine = SystemMachine::default();
        let mut new = config::load(&self.sources, &machine)?;
        // A default follows the free space of this moment, but a running daemon's sizes do not: they are compared as set.
        keep_default_sizes(&running.loaded, &mut new);
        let remarks = new.checked(&machine)?;
        let reload = config::compare(&running.loaded, &new);
        let (old_level, level) = (running.loaded.config.log.level.clone(), new.config.log.level.clone());
        self.log.set_level(&level)?;
        let settings = LiveSettings {
            lease_bytes_max: Some(new.config.lease.bytes_max.0),
            lease_idle: Some(new.config.lease.idle.0),
            match_deadline: Some(new.config.r#match.deadline.0),
            gate_enabled: Some(new.config.gate.enabled),
        };
        if let Err(error) = core.ask(AdminCommand::SetConfig(settings)).await {
            self.log.set_level(&old_level)?;
            return Err(error.into());
        }
        take_over(&mut running.loaded, new, &reload);
        running.remarks = remarks;
        Ok(reload)
    }
}

fn keep_default_sizes(running: &Loaded, new: &mut Loaded) {
    let (old, tiers) = (&running.config.tiers, &mut new.config.tiers);
    let unset = |key: &str, loaded: &Loaded| !loaded.origins.contains_key(key);
    let origins = Loaded { config: running.config.clone(), origins: new.origins.clone() };
    if unset("tiers.dram.capacity", running) && unset("tiers.dram.capacity", &origins) {
        tiers.dram.capacity = old.dram.capacity;
        if unset("tiers.dram.floor", running) && unset("tiers.dram.floor", &origins) {
            tiers.dram.floor = old.dram.floor;
        }
    }
    // Its default is a share of the capacity that is in force, which only a restart changes.
    if unset("lease.bytes_max", &origins) {
        new.config.lease.bytes_max = config::Size(old.dram.capacity.0 / 2);
    }
    if unset("tiers.nvme.capacity", running) && unset("tiers.nvme.capacity", &origins) {
        tiers.nvme.capacity = old.nvme.capacity;
    }
    keep_default_object(running, new);
}

/// The object tier's default sizes come from the free space too, and whether there is one.
fn keep_default_object(running: &Loaded, new: &mut Loaded) {
    let unset = |key: &str| !running.origins.contains_key(key) && !new.origins.contains_key(key);
    let (unset_url, unset_enabled) = (unset("tiers.object.url"), unset("tiers.object.enabled"));
    let (unset_share, unset_pack) = (unset("tiers.object.share"), unset("tiers.object.pack_bytes"));
    let (old, object) = (&running.config.tiers.object, &mut new.config.tiers.object);
    if unset_url && unset_enabled {
        object.enabled = old.enabled;
    }
    if old.url == object.url && unset_share {
        object.share = old.share;
        if unset_pack {
            object.pack_bytes = old.pack_bytes;
        }
    }
}

fn take_over(running: &mut Loaded, new: Loaded, reload: &Reload) {
    running.config.log.level = new.config.log.level;
    running.config.lease = new.config.lease;
    running.config.r#match = new.config.r#match;
    running.config.gate = new.config.gate;
    for key in &reload.applied {
        match new.origins.get(key) {
            Some(origin) => running.origins.insert(key.clone(), origin.clone()),
            None => running.origins.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fake::FakeMachine;

    #[test]
    fn a_default_that_follows_the_free_space_is_no_change() {
        let load = |free_bytes: u64, assignments: &[&str]| {
            let mut machine = FakeMachine::healthy();
            for filesystem in machine.filesystems.values_mut() {
                filesystem.free_bytes = free_bytes;
            }
            let assignments = assignments.iter().map(|text| text.to_string()).collect();
            config::load(&Sources { assignments, ..Sources::default() }, &machine).expect("loads")
        };
        let differs = |set: &[&str]| {
            let (running, mut new) = (load(8 << 30, &[]), load(200 << 20, set));
            keep_default_sizes(&running, &mut new);
            config::compare(&running, &new).needs_restart
        };
        let arena = "tiers.dram.path=/dev/shm/kvd-0123";
        assert_eq!(differs(&[]), [""; 0]);
        assert_eq!(differs(&["tiers.object.share=256MiB"]), ["tiers.object.pack_bytes", "tiers.object.share"]);
        assert_eq!(differs(&[arena]), ["tiers.dram.path"]);
    }
}
