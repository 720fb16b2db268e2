use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that `test` was skipped and why. The line is printed, and added to the list that `make test` shows at its end,
/// so that a skipped test never looks like a passed one.
pub fn skip(test: &str, reason: &str) {
    let line = format!("{test}: skipped, {reason}");
    eprintln!("{line}");
    let Ok(list) = std::env::var("KVD_SKIP_LIST") else { return };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(list) {
        writeln!(file, "{line}").expect("the skip list can be written");
    }
}
