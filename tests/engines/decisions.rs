//! The connector's decisions by themselves.

use crate::setup::{Form, needed, script};

/// With vLLM's own block pool, and no model.
#[test]
fn the_connector_holds_and_lets_go() {
    let Some(setup) = needed(Form::Short, "the vLLM connector's decisions") else { return };
    let ended = setup.python().arg(script("scheduler.py")).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
