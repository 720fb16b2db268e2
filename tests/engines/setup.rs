//! What the engines are run with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// An installed engine.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// A Python that has vLLM and the wheel of this checkout.
    pub(crate) python: PathBuf,
    /// The model's folder.
    pub(crate) model: PathBuf,
}

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// What a whole test run has time for.
    Short,
    /// Everything.
    All,
}

/// A script of this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engines").join(name)
}

/// The engine, or why there is none. Prepared by the first test that asks.
pub(crate) fn setup(form: Form) -> Result<Setup, String> {
    static SETUP: OnceLock<Result<Setup, String>> = OnceLock::new();
    let asked = match std::env::var("KVD_ENGINES").as_deref() {
        Ok("all") => Form::All,
        Ok("short") => Form::Short,
        _ => return Err("set KVD_ENGINES=short, or run make test-engines".into()),
    };
    if form > asked {
        return Err("make test-engines runs it".into());
    }
    SETUP.get_or_init(prepare).clone()
}

fn prepare() -> Result<Setup, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/engines.sh");
    let ended = Command::new(script).output().map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&ended.stderr);
    if !ended.status.success() {
        let last = told.lines().rfind(|line| !line.is_empty()).unwrap_or("no reason given");
        return Err(format!("vLLM cannot be prepared: {last}"));
    }
    let paths: Value = serde_json::from_slice(&ended.stdout).map_err(|error| error.to_string())?;
    let path = |name: &str| paths[name].as_str().map(PathBuf::from).ok_or_else(|| format!("no {name}"));
    Ok(Setup { python: path("python")?, model: path("model")? })
}
