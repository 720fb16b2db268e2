//! What the engines are run with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kvd_tests::skip;
use serde_json::Value;

/// An installed engine.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// A Python that has vLLM.
    python: PathBuf,
    /// The wheel of this checkout, for its path.
    packages: PathBuf,
    /// The model's folder.
    pub(crate) model: PathBuf,
}

impl Setup {
    /// That Python, which finds the wheel.
    pub(crate) fn python(&self) -> Command {
        let mut python = Command::new(&self.python);
        python.env("PYTHONPATH", &self.packages);
        python
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// What a whole test run has time for.
    Short,
    /// Everything with one release of vLLM.
    All,
    /// Every release.
    Releases,
}

/// A script of this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engines").join(name)
}

/// The engine, or why there is none. Prepared by the first test that asks.
pub(crate) fn setup(form: Form) -> Result<Setup, String> {
    static SETUP: OnceLock<Result<Setup, String>> = OnceLock::new();
    let asked = wanted(form)?;
    let setup = SETUP.get_or_init(|| prepare(None)).clone();
    assert!(setup.is_ok() || asked == Form::Short, "an engine was asked for: {setup:?}");
    setup
}

/// The engine, where so much is run; else the test is reported as skipped.
pub(crate) fn needed(form: Form, test: &str) -> Option<Setup> {
    setup(form).inspect_err(|reason| skip(test, reason)).ok()
}

/// Another release of the engine.
pub(crate) fn setup_release(release: &str) -> Result<Setup, String> {
    wanted(Form::Releases)?;
    let setup = prepare(Some(release));
    assert!(setup.is_ok(), "vLLM {release} was asked for: {setup:?}");
    setup
}

/// What was asked for, where that is as much as this.
fn wanted(form: Form) -> Result<Form, String> {
    let asked = match std::env::var("KVD_ENGINES").as_deref() {
        Ok("releases") => Form::Releases,
        Ok("all") => Form::All,
        Ok("short") => Form::Short,
        _ => return Err("set KVD_ENGINES=short, or run make test-engines".into()),
    };
    let target = if form == Form::Releases { "make test-engine-releases" } else { "make test-engines" };
    if form > asked { Err(format!("{target} runs it")) } else { Ok(asked) }
}

/// What the script ends with where an engine is not to be had on this machine. Anything else is a failure of ours.
const NOT_TO_BE_HAD: i32 = 3;

fn prepare(release: Option<&str>) -> Result<Setup, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/engines.sh");
    let ended = Command::new(script).args(release).output().expect("the script can be started");
    let told = String::from_utf8_lossy(&ended.stderr);
    if ended.status.code() == Some(NOT_TO_BE_HAD) {
        return Err(told.lines().rfind(|line| !line.is_empty()).unwrap_or("no reason given").to_owned());
    }
    assert!(ended.status.success(), "deploy/engines.sh failed:\n{told}");
    let paths: Value = serde_json::from_slice(&ended.stdout).expect("one JSON object");
    let path = |name: &str| PathBuf::from(paths[name].as_str().expect("a path"));
    Ok(Setup { python: path("python"), packages: path("packages"), model: path("model") })
}
