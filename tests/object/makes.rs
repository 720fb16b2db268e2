//! Another make of server, and one behind TLS with an authority of its own.

use kvd_tests::skip;

use crate::outages::{condition, doctor};
use crate::pool::{BLOCKS, Node, Store, served, within};
use crate::server::Make;
use crate::sharing::one_stores_and_the_other_serves;

#[test]
fn through_moto() {
    let store = match Store::own_server(Make::Moto) {
        Ok(store) => store,
        Err(reason) => return skip("object tier on moto", &reason),
    };
    one_stores_and_the_other_serves(&store, "moto");
    // What is new there goes as well: bounds, listings behind a name, deletes.
    let share = [("tiers.object.share", "4MiB"), ("tiers.object.pack_bytes", "1MiB")];
    let node = Node::start("moto-bound", &store, &share);
    let engine = node.engine(3);
    let mut chain = 100;
    within("packs are evicted", || {
        chain += 1;
        engine.store(chain, 0, BLOCKS);
        node.metric("kvd_object_packs_total{outcome=\"evicted\"}") > 4
    });
    assert!(node.metric("kvd_object_own_bytes") <= 4 << 20);
    assert_eq!(doctor(&node), None);
}

#[test]
fn through_tls_with_an_authority_of_its_own() {
    let store = match Store::own_server(Make::MotoTls) {
        Ok(store) => store,
        Err(reason) => return skip("object tier behind TLS", &reason),
    };
    let authority = store.of_server().authority().display().to_string();
    let known = [("tiers.object.ca_file", authority.as_str())];
    let (a, b) = (Node::start("tls-a", &store, &known), Node::start("tls-b", &store, &known));
    assert_eq!(a.engine(1).store(1, 0, BLOCKS).granted, BLOCKS);
    assert_eq!(served(&b.engine(2), 1).object, BLOCKS);
    assert_eq!(doctor(&a), None);

    // Without it nothing is believed, and it is said what is missing.
    let stranger = Node::start("tls-stranger", &store, &[]);
    let told = doctor(&stranger).expect("a finding");
    assert!(told.contains("certificate") && told.contains("tiers.object.ca_file"), "{told}");
    let engine = stranger.engine(3);
    assert_eq!(engine.store(2, 0, BLOCKS).granted, BLOCKS, "an engine never waits for the store");
    assert_eq!(engine.check(2, BLOCKS).right, BLOCKS);
    within("it is said", || condition(&stranger).is_some_and(|why| why.contains("certificate")));
}
