//! Marks in an engine's own work: what comes behind one comes behind all of it.

use std::time::{Duration, Instant};

use kvd_nixl::device::{Device, Launch, Mark};
use kvd_tests::skip;

#[test]
fn a_mark_is_reached_when_the_work_before_it_has_ended() {
    let test = "marks in an engine's stream";
    let gpu = match Device::cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => return skip(test, &error.to_string()),
    };
    let mut products = match gpu.products(8192, 64, Launch::OneByOne) {
        Ok(products) => products,
        Err(error) => return skip(test, &error.to_string()),
    };
    let started = Instant::now();
    let [before, behind] = products.begin().unwrap();
    assert!(!behind.is_reached().unwrap(), "64 products of 8192 rows take longer than a question");
    assert_eq!(behind.since(&before), None, "what is not reached has no time");
    assert!(!behind.wait(Duration::from_millis(1)).unwrap());
    assert!(behind.wait(Duration::from_secs(30)).unwrap());
    let (work, all) = (behind.since(&before).unwrap(), started.elapsed());
    assert!(work > Duration::from_millis(10) && work <= all, "{work:?} of {all:?}");
    assert_eq!(behind.since(&Mark::now()), None, "another clock");
}
