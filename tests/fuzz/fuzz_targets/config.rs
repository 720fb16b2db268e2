//! The configuration file: TOML to values or problems, each with its place.
#![no_main]

use std::cell::OnceCell;

use kvd::config::{Sources, check, load};
use kvd::machine::SystemMachine;
use tempfile::NamedTempFile;

thread_local! {
    static FILE: OnceCell<NamedTempFile> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    FILE.with(|file| {
        let file = file.get_or_init(|| NamedTempFile::new().expect("a file"));
        std::fs::write(file.path(), data).expect("written");
        let machine = SystemMachine::default();
        let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
        match load(&sources, &machine) {
            Ok(loaded) => drop(check(&loaded, &machine)),
            Err(error) => assert!(!error.problems.is_empty()),
        }
    });
});
