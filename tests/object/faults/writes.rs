//! Trouble on what a node writes: packs, and the index objects that make them visible.

use super::*;

#[test]
fn packs_that_cannot_be_written_hold_no_engine_up() {
    written_in_trouble("write-packs", PACKS);
}

#[test]
fn index_objects_that_cannot_be_written_leave_their_packs_invisible() {
    written_in_trouble("write-index", INDEX);
}

fn written_in_trouble(test: &str, part: &'static str) {
    let Some(mut field) = Field::prepare(test, Behind::Writer, &[]) else { return };
    let mut stored = Vec::new();
    for trouble in COMMON.into_iter().chain(SENT) {
        let (writer, reader) = (field.writer.engine(1), field.reader.engine(2));
        let chain = field.chain();
        let given_up = field.writer.metric(GIVEN_UP);
        let met = field.meet(Kind::Put, part, trouble);
        work_locally(&writer, chain, &met.case);
        within(&format!("a reason is counted for {}", met.case), || field.has_met(&met));
        let right = load_in_trouble(&reader, chain, &met.case);
        // What is written though its answer is lost may be seen.
        assert!(right == 0 || matches!(trouble, Trouble::Lost), "{}: {right} blocks are visible", met.case);
        field.over(&met);
        // It is tried again by itself, unless the trouble lasted for all the tries that a pack has.
        if field.writer.metric(GIVEN_UP) == given_up {
            assert_eq!(served(&reader, chain).right, BLOCKS, "after {}", met.case);
        }
        stored.push((met.case, chain));
    }
    // Whatever came of them: right or not there.
    let reader = field.reader.engine(2);
    for (case, chain) in stored {
        load_in_trouble(&reader, chain, &format!("what was written in {case}"));
    }
    drop(reader);
    field.expect_no_leak();
}
