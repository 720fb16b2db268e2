//! Walks the repository's own sources, and the rules that look at one file at a time.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code a file may have, tests apart, before it must be split by idea (STYLE 5).
const LINES_MAX: usize = 600;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_path_buf()
}

/// All files below `folder` with one of `extensions`, sorted, without build outputs.
pub(crate) fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if extensions.iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The file's text up to its unit tests.
pub(crate) fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are readable UTF-8");
    match text.find("\n#[cfg(test)]\nmod tests {") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

fn check(rule: impl Fn(&str, &str) -> Option<String>) {
    let faults: Vec<String> =
        files(&root(), &["rs"]).iter().filter_map(|path| rule(&relative(path), &code(path))).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn modules_are_named_after_their_file() {
    check(|path, _| path.ends_with("/mod.rs").then(|| format!("{path}: use name.rs beside name/ (STYLE 4)")));
}

#[test]
fn files_stay_small() {
    check(|path, text| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{path}: {lines} lines, at most {LINES_MAX}: split it by idea (STYLE 5)"))
    });
}

#[test]
fn unsafe_lives_in_sys_only() {
    check(|path, text| {
        let home = path.starts_with("nixl/src/sys") || path.starts_with("client/python/src/sys");
        let used = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//")
                && (line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl"))
        });
        let quoted = path.starts_with("tests/tidy/");
        (used && !home && !quoted).then(|| format!("{path}: unsafe belongs in nixl/src/sys (STYLE 30)"))
    });
}

#[test]
fn crates_forbid_unsafe() {
    for head in
        ["client/proto/src/lib.rs", "client/src/lib.rs", "tiers/src/lib.rs", "kvd/src/lib.rs", "kvd/src/main.rs"]
    {
        let text = fs::read_to_string(root().join(head)).expect("crate roots exist");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{head}: add #![forbid(unsafe_code)] (STYLE 30)");
    }
}

#[test]
fn decisions_read_no_clock_and_start_no_thread() {
    let banned = ["Instant::now", "SystemTime", "thread::spawn", "std::net", "rand::", "Mutex<", "HashMap<"];
    check(|path, text| {
        let tests = path.contains("/tests/");
        if tests || !path.starts_with("tiers/src/ladder") && !path.starts_with("tiers/src/policy") {
            return None;
        }
        let hit = banned.iter().find(|word| text.contains(**word))?;
        Some(format!("{path}: `{hit}` in the decision core: time and randomness come in as arguments (STYLE 24)"))
    });
}
