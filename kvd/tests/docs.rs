//! The reference pages say what the source says. `KVD_UPDATE_DOCS=1 cargo test -p kvd --test docs` writes them again.

use std::path::Path;

fn compare(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("KVD_UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).expect("the page is written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/{name} differs from the source: KVD_UPDATE_DOCS=1 cargo test -p kvd --test docs");
}

#[test]
fn the_configuration_reference_is_that_of_the_schema() {
    compare("configuration.md", &kvd::config::reference_markdown());
}

#[test]
fn the_list_of_metrics_is_that_of_the_registry() {
    compare("metrics.md", &kvd::metrics::reference_markdown());
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    compare("exit-codes.md", &kvd::cli::exit::exit_codes_markdown());
}
