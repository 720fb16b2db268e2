//! Seeds that once found something in the product, by what they found. Each is planted again by `bugs.sh` under the name
//! given, so that a change of the worlds which makes a seed harmless does not go unnoticed.

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

/// `segment_retried`: a segment that someone held on to was emptied again and again without a pause.
#[test]
fn a_segment_that_cannot_be_emptied_is_left_alone() {
    run(25);
}
