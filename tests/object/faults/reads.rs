//! Trouble on what a node reads: packs, index objects, lists.

use super::*;

#[test]
fn packs_that_cannot_be_read_are_misses() {
    let Some(mut field) = Field::prepare("read-packs", Behind::Reader, &[]) else { return };
    for trouble in COMMON.into_iter().chain(BODIES) {
        let (writer, reader) = (field.writer.engine(1), field.reader.engine(2));
        let (chain, local) = (field.chain(), field.chain());
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
        within("the other node learns of the chain", || reader.find(chain, BLOCKS).blocks() == BLOCKS);
        let met = field.meet(Kind::Get, PACKS, trouble);
        within(&format!("a reason is counted for {}", met.case), || {
            let right = load_in_trouble(&reader, chain, &met.case);
            // A connection that stood already may serve a request more, and what precedes too many bytes may be right.
            let harmless = matches!(trouble, Trouble::Refused | Trouble::Longer);
            assert!(right < BLOCKS || harmless, "{}: it was not in the way", met.case);
            field.has_met(&met)
        });
        work_locally(&reader, local, &met.case);
        let began = Instant::now();
        assert_eq!(reader.check(1_000_000, BLOCKS).matched, 0, "what nobody stored is a miss");
        assert!(began.elapsed() < SLACK, "{}: a miss takes {:?}", met.case, began.elapsed());
        drop((writer, reader));
        field.over(&met);
    }
    field.expect_no_leak();
}

#[test]
fn index_objects_that_cannot_be_read_are_read_again() {
    let Some(mut field) = Field::prepare("read-index", Behind::Reader, &[]) else { return };
    for trouble in COMMON.into_iter().chain(BODIES) {
        let (writer, reader) = (field.writer.engine(1), field.reader.engine(2));
        let (chain, local) = (field.chain(), field.chain());
        let met = field.meet(Kind::Get, INDEX, trouble);
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
        within(&format!("a reason is counted for {}", met.case), || field.has_met(&met));
        assert_eq!(load_in_trouble(&reader, chain, &met.case), 0, "{}: nobody can know of it", met.case);
        work_locally(&reader, local, &met.case);
        field.over(&met);
        // What was published meanwhile is learned of as well, and soon.
        assert_eq!(served(&reader, chain).object, BLOCKS, "after {}", met.case);
    }
    field.expect_no_leak();
}

#[test]
fn lists_that_cannot_be_read_are_read_again() {
    let Some(mut field) = Field::prepare("lists", Behind::Reader, &[]) else { return };
    for trouble in COMMON.into_iter().chain(BODIES) {
        // A bit of a list, or what stands behind it, may be nothing that anybody looks at.
        let noticed = !matches!(trouble, Trouble::Flip | Trouble::Longer);
        let (writer, reader) = (field.writer.engine(1), field.reader.engine(2));
        let (chain, local) = (field.chain(), field.chain());
        let met = field.meet(Kind::List, "", trouble);
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
        within(&format!("a reason is counted for {}", met.case), || match noticed {
            true => field.has_met(&met),
            false => field.proxy.met() > met.met,
        });
        load_in_trouble(&reader, chain, &met.case);
        work_locally(&reader, local, &met.case);
        field.over(&met);
        assert_eq!(served(&reader, chain).right, BLOCKS, "after {}", met.case);
    }
    field.expect_no_leak();
}
