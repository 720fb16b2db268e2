//! The connector's two sides by themselves.

use crate::setup::{Form, needed, script};

/// With vLLM's own block pool, and no model.
#[test]
fn the_connector_holds_and_lets_go() {
    by_itself("the vLLM connector's decisions", "scheduler.py");
}

/// Behind marks that a test reaches, and no GPU.
#[test]
fn the_connector_moves_nothing_before_the_engine_has_ended_its_own_work() {
    by_itself("the vLLM connector's moves", "worker.py");
}

fn by_itself(test: &str, name: &str) {
    let Some(setup) = needed(Form::Short, test) else { return };
    let ended = setup.python().arg(script(name)).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
