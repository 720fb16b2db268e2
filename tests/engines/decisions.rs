//! The connector's decisions by themselves.

use kvd_tests::skip;

use crate::setup::{Form, script, setup};

/// With vLLM's own block pool, and no model.
#[test]
fn the_connector_holds_and_lets_go() {
    let setup = match setup(Form::Short) {
        Ok(setup) => setup,
        Err(reason) => return skip("the vLLM connector's decisions", &reason),
    };
    let ended = setup.python().arg(script("scheduler.py")).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
