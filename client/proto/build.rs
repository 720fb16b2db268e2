//! Compiles the session protocol without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/kvd/session/v1/session.proto");
    let descriptors = protox::compile(["kvd/session/v1/session.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
