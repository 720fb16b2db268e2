//! Compiles the admin API with protox, so that no protoc is needed.

use std::path::PathBuf;

/// Enum fields print as their lower-case names in `--json`.
const ENUM_FIELDS: &[(&str, &str)] = &[
    ("StatusResponse.state", "daemon_state_name"),
    ("TierStatus.tier", "tier_name"),
    ("Copy.tier", "tier_name"),
    ("DeviceStatus.state", "device_state_name"),
    ("GetObjectTierResponse.condition", "store_condition_name"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let includes = PathBuf::from("../client/proto/proto");
    let file = includes.join("kvd/admin/v1/admin.proto");
    println!("cargo::rerun-if-changed={}", file.display());
    println!("cargo::rerun-if-env-changed=KVD_COMMIT");
    let mut compiler = protox::Compiler::new([&includes])?;
    compiler.include_source_info(true).include_imports(true).open_files([&file])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("admin.descriptors"), compiler.encode_file_descriptor_set())?;
    let mut builder = tonic_prost_build::configure().type_attribute(".", "#[derive(serde::Serialize)]");
    for (field, function) in ENUM_FIELDS {
        let attribute = format!("#[serde(serialize_with = \"crate::service::proto::{function}\")]");
        builder = builder.field_attribute(format!("kvd.admin.v1.{field}"), attribute);
    }
    builder.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
