//! The table of allowed arrows between crates. A new arrow is a reviewed change of this table.

use std::fs;

use crate::sources::{code, files, root};

const ARROWS: &[(&str, &[&str])] = &[
    ("client/proto", &[]),
    ("nixl", &[]),
    ("tiers", &["kvd-nixl", "kvd-proto"]),
    ("client", &["kvd-nixl", "kvd-proto"]),
    ("client/python", &["kvd-client"]),
    ("kvd", &["kvd-tiers", "kvd-nixl", "kvd-proto", "kvd-client"]),
];

#[test]
fn arrows_point_downward() {
    for (folder, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("every crate has a manifest");
        let ours =
            manifest.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|n| n.starts_with("kvd-"));
        for name in ours {
            assert!(allowed.contains(&name), "{folder} may not depend on {name}: see DESIGN, Layout");
        }
    }
}

#[test]
fn only_the_cli_uses_the_client() {
    for path in files(&root().join("kvd/src"), &["rs"]) {
        let shown = path.display().to_string();
        if shown.contains("/src/cli") {
            continue;
        }
        assert!(!code(&path).contains("kvd_client::"), "{shown}: only kvd/src/cli may use kvd-client");
    }
}

#[test]
fn generated_types_end_at_the_service() {
    for path in files(&root().join("kvd/src"), &["rs"]) {
        let shown = path.display().to_string();
        let home = shown.contains("/src/service") || shown.contains("/src/cli");
        assert!(home || !code(&path).contains("tonic::include_proto"), "{shown}: .proto messages end at service/");
    }
}
