//! Programs out of Python packages, in an environment below the cache folder.

use rustix::fs::{FlockOperation, flock};

use super::*;

/// The program of a package, installed where it is not.
pub(super) fn program(package: &str, name: &str) -> Result<PathBuf, String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cache = cache.ok_or("there is no cache folder")?.join("kvd");
    fs::create_dir_all(&cache).map_err(told)?;
    let lock = File::create(cache.join("venv-object.lock")).map_err(told)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
    let venv = cache.join("venv-object");
    let program = venv.join("bin").join(name);
    if !program.exists() {
        if !venv.join("bin/pip").exists() {
            run(Path::new("python3"), &["-m", "venv", "--clear", &venv.display().to_string()])?;
        }
        run(&venv.join("bin/pip"), &["install", "--quiet", package])?;
    }
    if program.exists() { Ok(program) } else { Err(format!("the package {package} has no program {name}")) }
}

fn run(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let ended = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| format!("{}: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().to_owned();
    if ended.status.success() { Ok(()) } else { Err(format!("{} {arguments:?}: {said}", program.display())) }
}
