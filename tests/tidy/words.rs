//! Words that must not stand in the repository, and documents that must.

use std::fs;

use crate::sources::{code, files, root};

#[test]
fn no_unfinished_business() {
    let banned = ["todo!(", "unimplemented!(", concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK:")];
    for path in files(&root(), &["rs", "toml", "sh", "md", "proto"]) {
        let text = fs::read_to_string(&path).expect("sources are readable UTF-8");
        for word in banned {
            let quoted = path.starts_with(root().join("tests/tidy"));
            assert!(quoted || !text.contains(word), "{}: `{word}` must not land", path.display());
        }
    }
}

#[test]
fn libraries_do_not_print() {
    for folder in ["client/src", "client/proto/src", "nixl/src", "tiers/src", "kvd/src"] {
        for path in files(&root().join(folder), &["rs"]) {
            let shown = path.display().to_string();
            let test = shown.ends_with("/tests.rs") || shown.ends_with("/figures.rs") || shown.contains("/tests/");
            if test || shown.contains("/kvd/src/cli") || shown.ends_with("/kvd/src/main.rs") {
                continue;
            }
            for word in ["println!(", "eprintln!("] {
                assert!(
                    !code(&path).contains(word),
                    "{shown}: {word}) belongs to the CLI; libraries use tracing or results"
                );
            }
        }
    }
}

#[test]
fn the_documents_stand() {
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "docs/formats/record.md",
        "docs/formats/nvme.md",
        "docs/formats/arena.md",
        "docs/formats/session.md",
        "docs/formats/pack.md",
    ] {
        assert!(root().join(name).is_file(), "{name} is missing");
    }
}
