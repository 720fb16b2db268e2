//! Seeds that once found something in the product, by what they found. Those with a name are planted again by `bugs.sh`,
//! so that a change of the worlds which makes a seed harmless does not go unnoticed.

use crate::run::run;

/// `idle_spin`: a match lease in use beyond its idle time kept the core calling every nanosecond.
#[test]
fn a_busy_idle_lease_is_looked_at_again_later() {
    run(0);
}

/// `loose_parent`: a block purged while it was filled could not be committed, nor refused as unwanted.
#[test]
fn a_filled_block_keeps_the_parent_it_was_offered_under() {
    run(1);
}

/// `segment_retried`: a segment that someone held on to was emptied again and again without a pause; in the second seed
/// because holds of the caller's own counted as somebody letting go.
#[test]
fn a_segment_that_cannot_be_emptied_is_left_alone() {
    run(25);
    run(7872);
}

/// A queue of spills was left lying when the steps of the last call that came were used up.
#[test]
fn spills_go_on_without_further_calls() {
    run(2544);
}

/// A slot held by more processes than the steps of one call kept the fences of those that were not looked at.
#[test]
fn every_fence_of_a_dead_client_falls() {
    run(7737);
}

/// `get_overrun`: two records longer than a run of the object tier were read at a time, and were more bytes than may be.
#[test]
fn a_record_longer_than_a_run_is_read_when_there_is_room_for_it() {
    run(11);
}
