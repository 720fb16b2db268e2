//! Goal: every fault of a store becomes the right [`Fault`] within the deadline, and both kinds of stores behave alike.
//! Method: one suite run on a folder and on a server that plays S3; then that server fails in every way in turn.

use std::path::Path as FilePath;

use futures_util::{StreamExt, TryStreamExt};

use super::*;
use s3::{BUCKET, FakeS3, Trouble, error_document};

mod s3;

/// How long a store may be silent where it is not meant to be: longer than a loaded machine makes one wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long where it is.
const SILENCE: Duration = Duration::from_millis(300);

fn options(url: StoreUrl) -> ObjectOptions {
    ObjectOptions { path_style: true, request_timeout: PATIENCE, ..ObjectOptions::sample(url) }
}

fn s3_options(fake: &FakeS3) -> ObjectOptions {
    let url = format!("s3://{BUCKET}/pre/fix").parse().expect("an address");
    ObjectOptions { endpoint: Some(format!("http://{}", fake.address)), ..options(url) }
}

fn environment() -> Vec<(String, String)> {
    let given = [
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        // What is asked stands in the configuration alone.
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"),
        ("AWS_CONDITIONAL_PUT", "disabled"),
    ];
    given.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

fn open(options: &ObjectOptions) -> Store {
    Store::open_with(options, &environment()).expect("a store")
}

fn folder_store(folder: &FilePath) -> Store {
    open(&options(StoreUrl::Folder(folder.join("objects"))))
}

async fn s3_store() -> (FakeS3, Store) {
    let fake = FakeS3::start().await;
    let store = open(&s3_options(&fake));
    (fake, store)
}

/// A store that is soon given up.
async fn silent_store() -> (FakeS3, Store) {
    let fake = FakeS3::start().await;
    let store = open(&ObjectOptions { request_timeout: SILENCE, ..s3_options(&fake) });
    (fake, store)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test)
}

fn parts(texts: &[&'static str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
}

async fn read_range(store: &Store, path: &str, range: Range<u64>) -> Result<Vec<u8>, Fault> {
    let body = store.get_range(path, range, soon()).await?;
    let chunks: Vec<Bytes> = body.try_collect().await?;
    Ok(chunks.concat())
}

async fn conformance(store: &Store) {
    let short = |wanted, got| Err(Fault::Short { wanted, got, cut: false });
    assert_eq!(store.list("", None, 10, soon()).await, Ok(vec![]));
    assert_eq!(store.put_new("packs/ab/1", parts(&["hello ", "", "world"]), soon()).await, Ok(Put::Created));
    assert_eq!(store.put_new("packs/ab/1", parts(&["other"]), soon()).await, Ok(Put::AlreadyThere));
    assert_eq!(store.get("packs/ab/1", 11, soon()).await.as_deref(), Ok(&b"hello world"[..]));
    assert_eq!(store.get("packs/ab/1", 10, soon()).await, Err(Fault::Long { wanted: 10 }));
    assert_eq!(store.get("packs/ab/2", 10, soon()).await, Err(Fault::NotFound));
    assert_eq!(read_range(store, "packs/ab/1", 6..11).await, Ok(b"world".to_vec()));
    assert_eq!(read_range(store, "packs/ab/1", 6..12).await, short(6, 5));
    assert_eq!(read_range(store, "packs/ab/1", 11..12).await, short(1, 0));
    assert_eq!(read_range(store, "packs/ab/1", 99..102).await, short(3, 0));
    assert_eq!(read_range(store, "packs/ab/2", 0..1).await, Err(Fault::NotFound));
    assert!(matches!(read_range(store, "packs/ab/1", 3..3).await, Err(Fault::Other(_))));
    assert!(matches!(store.get("a//b", 1, soon()).await, Err(Fault::Other(_))));

    let head = store.head("packs/ab/1", soon()).await.expect("there");
    assert_eq!((head.path.as_str(), head.bytes), ("packs/ab/1", 11));
    assert_eq!(store.head("packs/ab/2", soon()).await, Err(Fault::NotFound));

    for name in ["index/n1/01", "index/n1/02", "index/n1/03", "index/n1-b/01", "index/n2/01", "indexes/x"] {
        assert_eq!(store.put_new(name, parts(&["x"]), soon()).await, Ok(Put::Created));
    }
    let names = async |prefix, after, max| -> Vec<String> {
        let listed = store.list(prefix, after, max, soon()).await.expect("listed");
        listed.into_iter().map(|listed| listed.path).collect()
    };
    assert_eq!(names("index/n1", None, 9).await, ["index/n1/01", "index/n1/02", "index/n1/03"]);
    assert_eq!(names("index/n1", None, 2).await, ["index/n1/01", "index/n1/02"]);
    assert_eq!(names("index/n1", Some("index/n1/01"), 9).await, ["index/n1/02", "index/n1/03"]);
    assert_eq!(names("index/n1", Some("index/n1/03"), 9).await, [""; 0]);
    assert_eq!(names("index/n1", None, 0).await, [""; 0]);
    assert_eq!(names("index", Some("index/n1/02"), 9).await, ["index/n1/03", "index/n2/01"]);
    assert_eq!(names("none", None, 9).await, [""; 0]);
    assert_eq!(names("", None, 99).await.len(), 7);

    assert_eq!(store.delete("packs/ab/1", soon()).await, Ok(()));
    assert_eq!(store.delete("packs/ab/1", soon()).await, Ok(()));
    assert_eq!(store.get("packs/ab/1", 99, soon()).await, Err(Fault::NotFound));
    assert_eq!(names("packs", None, 9).await, [""; 0]);

    let past = Instant::now();
    assert_eq!(store.get("index/n2/01", 9, past).await, Err(Fault::Timeout));
    assert_eq!(store.state(), StoreState::Up, "that was no fault of the store");
    assert_eq!(store.probe(soon()).await.map(|probe| probe.written), Ok(true));
    assert_eq!(names("canary", None, 9).await, [""; 0], "nothing is left of the check");
    let done: u64 = Op::ALL.iter().map(|op| store.counters().done(*op)).sum();
    assert!(done > 25 && store.counters().retries.get() == 0);
    assert!(store.counters().faults(Op::Get, &Fault::NotFound) >= 3);
}

#[test]
fn a_folder_and_a_bucket_behave_alike() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        conformance(&folder_store(folder.path())).await;
        let (fake, store) = s3_store().await;
        conformance(&store).await;
        assert!(fake.keys().iter().all(|key| key.starts_with("pre/fix/")), "{:?}", fake.keys());
    });
}

#[test]
fn a_list_goes_on_over_pages() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (fake, bucket) = s3_store().await;
        let in_folder = folder_store(folder.path());
        for n in 0..2100u32 {
            let path = format!("index/n{}/{n:04}", n % 3);
            fake.fill(format!("pre/fix/{path}"));
            let path = folder.path().join("objects").join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        for store in [&in_folder, &bucket] {
            let all = store.list("index", None, 5000, soon()).await.expect("listed");
            assert_eq!(all.len(), 2100);
            assert!(all.is_sorted_by(|a, b| a.path < b.path));
            assert_eq!(store.list("index", None, 1500, soon()).await.as_deref(), Ok(&all[..1500]));
            assert_eq!(store.list("index", Some(&all[1499].path), 5000, soon()).await.as_deref(), Ok(&all[1500..]));
        }
    });
}

#[test]
fn a_large_body_comes_in_pieces_and_is_measured() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (_fake, bucket) = s3_store().await;
        for store in [&folder_store(folder.path()), &bucket] {
            let body: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
            let halves = vec![Bytes::copy_from_slice(&body[..1 << 20]), Bytes::copy_from_slice(&body[1 << 20..])];
            store.put_new("packs/00/big", halves, soon()).await.expect("written");
            let range = 1000..(3 << 20) - 7;
            let got = read_range(store, "packs/00/big", range.clone()).await.expect("read");
            assert!(got == body[range.start as usize..range.end as usize]);
            let counters = store.counters();
            assert_eq!((counters.bytes_up.get(), counters.bytes_down.get()), (3 << 20, got.len() as u64));
            let speed = store.speed();
            assert!(speed.first_byte.is_some() && speed.first_byte_p95.is_some() && speed.bytes_per_second.is_some());
        }
    });
}

/// A store whose every request meets this trouble, and an object in it.
async fn troubled(trouble: Trouble) -> (FakeS3, Store) {
    let silent = matches!(trouble, Trouble::Silence | Trouble::SilenceWithin);
    let (fake, store) = if silent { silent_store().await } else { s3_store().await };
    store.put_new("packs/ab/1", parts(&["0123456789abcdef"]), soon()).await.expect("written");
    fake.always(Some(trouble));
    (fake, store)
}

#[test]
fn every_trouble_of_a_read_has_its_own_name() {
    let cut = |wanted, got| Fault::Short { wanted, got, cut: true };
    let text = String::new;
    let html = "HTTP/1.1 200 OK\nContent-Length: 6\n";
    let cases = [
        (Trouble::Status(503, "SlowDown"), Fault::Throttled(text()), 4),
        (Trouble::Status(429, ""), Fault::Throttled(text()), 4),
        (Trouble::Status(500, "InternalError"), Fault::Server(text()), 4),
        (Trouble::Status(403, "SignatureDoesNotMatch"), Fault::Denied(text()), 1),
        (Trouble::Status(400, "ExpiredToken"), Fault::Denied(text()), 1),
        (Trouble::Status(404, "NoSuchBucket"), Fault::NoBucket(text()), 1),
        (Trouble::Status(404, "NoSuchKey"), Fault::NotFound, 1),
        (Trouble::Status(301, "PermanentRedirect"), Fault::Other(text()), 1),
        // Something in between that answers for the store.
        (Trouble::Raw(html, b"<html>"), Fault::Server(text()), 4),
        (
            Trouble::Raw("HTTP/1.1 206 OK\nContent-Length: 0\nETag: \"e\"\nLast-Modified: never\n", b""),
            Fault::Server(text()),
            4,
        ),
        (Trouble::Raw("no protocol of this world\n", b""), Fault::Unreachable(text()), 4),
        (Trouble::Silence, Fault::Stalled(SILENCE), 4),
        (Trouble::SilenceWithin, Fault::Stalled(SILENCE), 1),
        (Trouble::Cut, cut(8, 4), 1),
        (Trouble::Reset, Fault::Unreachable(text()), 4),
        (Trouble::ResetWithin, Fault::Unreachable(text()), 1),
        (Trouble::Longer, Fault::Long { wanted: 8 }, 1),
    ];
    for (trouble, expected, requests) in cases {
        run(async {
            let (fake, store) = troubled(trouble.clone()).await;
            let fault = read_range(&store, "packs/ab/1", 2..10).await.expect_err("a fault");
            assert_eq!(fault.label(), expected.label(), "{trouble:?}: {fault}");
            if matches!(expected, Fault::Short { .. } | Fault::Long { .. } | Fault::Stalled(_)) {
                assert_eq!(fault, expected, "{trouble:?}");
            }
            let asked = fake.seen().iter().filter(|request| request.starts_with("GET")).count();
            assert_eq!(asked, requests, "{trouble:?}: {:?}", fake.seen());
            assert_eq!(store.counters().faults(Op::Get, &fault), requests as u64);
        });
    }
}

#[test]
fn a_body_that_breaks_off_gives_what_came_and_then_its_fault() {
    run(async {
        let (fake, store) = silent_store().await;
        store.put_new("packs/ab/1", parts(&["0123456789abcdef"]), soon()).await.expect("written");
        fake.then([Trouble::Cut]);
        let body = store.get_range("packs/ab/1", 0..16, soon()).await.expect("opened");
        let items: Vec<Result<Bytes, Fault>> = body.collect().await;
        let (last, before) = items.split_last().expect("something");
        assert_eq!(last, &Err(Fault::Short { wanted: 16, got: 8, cut: true }));
        let bytes: Vec<u8> = before.iter().flat_map(|item| item.clone().expect("bytes")).collect();
        assert_eq!(bytes, b"01234567");
        // A whole object is read again by itself.
        fake.then([Trouble::Cut, Trouble::SilenceWithin, Trouble::ResetWithin]);
        assert_eq!(store.get("packs/ab/1", 99, soon()).await.as_deref(), Ok(&b"0123456789abcdef"[..]));
        assert!(store.counters().retries.get() >= 3);
    });
}

/// One that has read often enough to know what is slow.
async fn measured_store(fake: &FakeS3, requests_max: usize) -> Store {
    let store = open(&ObjectOptions { requests_max, ..s3_options(fake) });
    store.put_new("packs/ab/1", parts(&["0123456789abcdef"]), soon()).await.expect("written");
    for _ in 0..40 {
        read_range(&store, "packs/ab/1", 0..16).await.expect("read");
    }
    store
}

#[test]
fn a_read_that_is_slow_is_asked_for_twice_within_the_budget() {
    run(async {
        let fake = FakeS3::start().await;
        let store = measured_store(&fake, 128).await;
        let hedges = || store.counters().hedges.get();
        let before = hedges();
        // The first is never answered: without the second, the read would end with a fault after the store's silence.
        fake.then([Trouble::Silence]);
        assert_eq!(read_range(&store, "packs/ab/1", 2..4).await.as_deref(), Ok(&b"23"[..]));
        assert_eq!((hedges(), store.counters().faults(Op::Get, &Fault::Stalled(PATIENCE))), (before + 1, 0));
        // What is not there is not asked for again and again.
        assert_eq!(read_range(&store, "packs/ab/2", 0..1).await, Err(Fault::NotFound));
        // A store that answers nobody is not asked more than its budget has for it.
        fake.always(Some(Trouble::Silence));
        let deadline = Instant::now() + 2 * SILENCE;
        let reads = (0..40).map(|_| store.get_range("packs/ab/1", 0..16, deadline));
        assert!(futures_util::future::join_all(reads).await.iter().all(Result::is_err));
        let more = hedges() - before - 1;
        assert!((1..=6).contains(&more), "{more} of 40: four at once, and a fiftieth of the reads");
    });
}

#[test]
fn while_others_fill_the_line_a_read_is_asked_for_twice_later() {
    run(async {
        let fake = FakeS3::start().await;
        let store = measured_store(&fake, 16).await;
        let others = (0..4).map(|_| store.get_range("packs/ab/1", 0..16, soon()));
        let others = futures_util::future::join_all(others).await;
        assert!(others.iter().all(Result::is_ok), "they are open, and nobody has read them yet");
        let before = store.counters().hedges.get();
        let slow = store.inner.estimator.slow().expect("there were reads").max(Duration::from_millis(5));
        fake.then([Trouble::Silence]);
        let begun = Instant::now();
        assert_eq!(read_range(&store, "packs/ab/1", 2..4).await.as_deref(), Ok(&b"23"[..]));
        assert!(begun.elapsed() >= 4 * slow, "{:?}, where nearly all take less than {slow:?}", begun.elapsed());
        assert_eq!(store.counters().hedges.get(), before + 1);
        drop(others);
        fake.then([Trouble::Silence]);
        assert_eq!(read_range(&store, "packs/ab/1", 2..4).await.as_deref(), Ok(&b"23"[..]));
        assert_eq!(store.counters().hedges.get(), before + 2, "as ever, when they are done");
    });
}

#[test]
fn an_error_inside_of_success_is_no_success() {
    let document = error_document("InternalError");
    let head = format!("HTTP/1.1 200 OK\nETag: \"e\"\nContent-Length: {}\n", document.len());
    let trouble = Trouble::Raw(head.leak(), document.leak().as_bytes());
    run(async {
        let (_fake, store) = troubled(trouble).await;
        let listed = store.list("packs", None, 9, soon()).await.expect_err("not an empty list");
        assert!(matches!(&listed, Fault::Server(text) if text.contains("InternalError")), "{listed}");
        let put = store.put_new("packs/ab/2", parts(&["x"]), soon()).await.expect_err("not written");
        assert!(matches!(put, Fault::Server(_)), "{put}");
    });
    run(async {
        let (_fake, store) = troubled(Trouble::Raw("HTTP/1.1 200 OK\nContent-Length: 9\n", b"not a list")).await;
        let listed = store.list("packs", None, 9, soon()).await.expect_err("not an empty list");
        assert!(matches!(listed, Fault::Server(_) | Fault::Unreachable(_)), "{listed}");
    });
}

#[test]
fn a_write_whose_answer_was_lost_is_there_already() {
    run(async {
        let (fake, store) = s3_store().await;
        fake.then([Trouble::Lost]);
        assert_eq!(store.put_new("packs/ab/1", parts(&["mine"]), soon()).await, Ok(Put::AlreadyThere));
        assert_eq!(store.get("packs/ab/1", 9, soon()).await.as_deref(), Ok(&b"mine"[..]));
        // Somebody writes the same name at this moment: neither done nor there.
        fake.then([Trouble::Status(409, "ConditionalRequestConflict")]);
        assert_eq!(store.put_new("packs/ab/2", parts(&["mine"]), soon()).await, Ok(Put::Created));
        for status in [409, 412] {
            fake.then([Trouble::Status(status, "BlobAlreadyExists")]);
            assert_eq!(store.put_new("packs/ab/3", parts(&["mine"]), soon()).await, Ok(Put::AlreadyThere));
        }
    });
}

#[test]
fn nothing_is_written_by_a_node_that_only_reads() {
    run(async {
        let fake = FakeS3::start().await;
        let store = open(&ObjectOptions { writable: false, ..s3_options(&fake) });
        assert_eq!(store.put_new("packs/ab/1", parts(&["x"]), soon()).await, Err(Fault::ReadOnly));
        assert_eq!(store.delete("packs/ab/1", soon()).await, Err(Fault::ReadOnly));
        assert_eq!(store.probe(soon()).await.map(|probe| probe.written), Ok(false));
        assert_eq!(fake.seen(), ["GET "]);
    });
}

#[test]
fn a_deadline_is_kept_whatever_the_store_does() {
    run(async {
        for trouble in [Trouble::Silence, Trouble::SilenceWithin, Trouble::Status(503, "")] {
            let (_fake, store) = troubled(trouble.clone()).await;
            let deadline = Instant::now() + SILENCE / 4;
            let fault = match store.get_range("packs/ab/1", 0..9, deadline).await {
                Ok(body) => body.try_collect::<Vec<Bytes>>().await.expect_err("a fault"),
                Err(fault) => fault,
            };
            assert!(matches!(fault, Fault::Timeout | Fault::Throttled(_)), "{trouble:?}: {fault}");
        }
    });
}

#[test]
fn requests_in_flight_are_bounded_and_a_body_holds_its_place() {
    run(async {
        let (fake, store) = s3_store().await;
        store.put_new("packs/ab/1", parts(&["0123456789abcdef"]), soon()).await.expect("written");
        let reads = (0..24).map(|_| read_range(&store, "packs/ab/1", 0..16));
        let read = futures_util::future::join_all(reads).await;
        assert!(read.iter().all(|bytes| bytes.as_deref() == Ok(b"0123456789abcdef")));
        assert!((2..=4).contains(&fake.in_flight_most()), "{}", fake.in_flight_most());

        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(store.get_range("packs/ab/1", 0..16, soon()).await.expect("opened"));
        }
        let asked = fake.seen().len();
        let waited = store.get("packs/ab/1", 99, Instant::now() + SILENCE).await;
        assert_eq!((waited, fake.seen().len()), (Err(Fault::Timeout), asked), "it had no place");
        assert_eq!(store.state(), StoreState::Up);
        drop(held);
        assert!(store.get("packs/ab/1", 99, soon()).await.is_ok());
    });
}

#[test]
fn a_store_that_fails_is_left_alone_and_found_again() {
    run(async {
        let (fake, store) = troubled(Trouble::Status(500, "InternalError")).await;
        for _ in 0..2 {
            assert!(matches!(store.get("packs/ab/1", 99, soon()).await, Err(Fault::Server(_))));
        }
        let StoreState::Down { last_error, .. } = store.state() else { panic!("{:?}", store.state()) };
        assert!(last_error.contains("InternalError"), "{last_error}");
        let asked = fake.seen().len();
        assert_eq!(store.get("packs/ab/1", 99, soon()).await, Err(Fault::Open));
        assert_eq!(store.list("", None, 9, soon()).await, Err(Fault::Open));
        assert_eq!(fake.seen().len(), asked, "it was not asked");
        assert!(!store.admits(Op::Get));

        fake.always(None);
        while !store.admits(Op::Get) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(store.state(), StoreState::Trying);
        // The one that goes out to see is dropped before its end: the next may go.
        drop(store.get_range("packs/ab/1", 0..1, soon()).await.expect("opened"));
        assert!(store.get("packs/ab/1", 99, soon()).await.is_ok());
        assert_eq!(store.state(), StoreState::Up);
    });
}

#[test]
fn a_refusal_closes_its_own_kind_of_requests() {
    run(async {
        let (fake, store) = s3_store().await;
        store.put_new("packs/ab/1", parts(&["x"]), soon()).await.expect("written");
        fake.deny(&["PUT"]);
        assert!(matches!(store.put_new("packs/ab/2", vec![], soon()).await, Err(Fault::Denied(_))));
        assert_eq!(store.put_new("packs/ab/2", vec![], soon()).await, Err(Fault::Open));
        assert!(store.get("packs/ab/1", 9, soon()).await.is_ok());
        assert_eq!(fake.seen().iter().filter(|request| request.starts_with("PUT")).count(), 2);
    });
}

#[test]
fn retries_end_with_their_budget() {
    run(async {
        let (fake, store) = s3_store().await;
        store.put_new("packs/ab/1", parts(&["x"]), soon()).await.expect("written");
        // Each call fails twice and then has its answer, so the breaker stays open-minded.
        let mut failed = 0;
        for _ in 0..12 {
            let troubles = [Trouble::Status(500, ""), Trouble::Status(500, "")];
            fake.then(troubles);
            failed += usize::from(store.get("packs/ab/1", 9, soon()).await.is_err());
            // What a call without budget has left over.
            while store.get("packs/ab/1", 9, soon()).await.is_err() {}
        }
        let counters = store.counters();
        let requests = counters.done(Op::Get) + counters.faults(Op::Get, &Fault::Server(String::new()));
        assert!(counters.retries.get() <= 10 + requests / 10, "{} of {requests}", counters.retries.get());
        assert!(failed >= 6 && counters.retries_saved.get() >= 6, "{failed}");
    });
}

#[test]
fn the_check_of_a_store_names_one_cause() {
    let told = |probed: Result<Probe, ProbeError>| {
        let error = probed.expect_err("not fit");
        assert!(!error.remedy().is_empty());
        error.to_string()
    };
    run(async {
        let (fake, store) = s3_store().await;
        fake.write_over();
        let said = told(store.probe(soon()).await);
        assert_eq!(said, "this store does not honour create-only writes; kvd cannot share it safely");
        assert_eq!(fake.keys(), [""; 0], "nothing is left of the check");

        let (fake, store) = s3_store().await;
        fake.deny(&["PUT", "DELETE"]);
        assert!(told(store.probe(soon()).await).contains("can be listed, but not written"));

        let (fake, store) = s3_store().await;
        fake.deny(&["DELETE"]);
        assert!(told(store.probe(soon()).await).contains("do not allow deleting it"));

        for (trouble, says) in [
            (Trouble::Status(403, "SignatureDoesNotMatch"), "does not accept the credentials"),
            (Trouble::Status(403, "AccessDenied"), "do not allow listing"),
            (Trouble::Status(404, "NoSuchBucket"), "no such bucket"),
            (Trouble::Status(301, "PermanentRedirect"), "in another region"),
            (Trouble::Silence, "nobody answers there"),
        ] {
            let (fake, store) = silent_store().await;
            fake.always(Some(trouble));
            let said = told(store.probe(soon()).await);
            assert!(said.contains(says), "{said}");
        }

        let (fake, store) = s3_store().await;
        // Listed, then a server that has never heard of the condition.
        fake.then([Trouble::Raw("HTTP/1.1 200 OK\nContent-Length: 37\n", b"<ListBucketResult></ListBucketResult>")]);
        fake.always(Some(Trouble::Status(501, "NotImplemented")));
        assert!(told(store.probe(soon()).await).contains("create-only"));
    });
}

#[test]
fn nobody_at_the_address_is_unreachable() {
    run(async {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let url = format!("s3://{BUCKET}").parse().expect("an address");
        let store = open(&ObjectOptions { endpoint: Some(format!("http://{port}")), ..options(url) });
        let fault = store.get("x", 9, soon()).await.expect_err("nobody is there");
        assert!(matches!(fault, Fault::Unreachable(_)), "{fault}");
        assert!(matches!(store.probe(soon()).await, Err(ProbeError::Unreachable(_) | ProbeError::Fault { .. })));
    });
}

#[test]
fn a_folder_is_private_survives_its_client_and_is_missed_when_it_goes() {
    use std::os::unix::fs::PermissionsExt;
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder_store(folder.path());
        let root = folder.path().join("objects");
        assert_eq!(std::fs::metadata(&root).expect("made").permissions().mode() & 0o777, 0o700);
        store.put_new("packs/ab/1", parts(&["x"]), soon()).await.expect("written");
        drop(store);
        let store = folder_store(folder.path());
        assert_eq!(store.get("packs/ab/1", 9, soon()).await.as_deref(), Ok(&b"x"[..]));
        std::fs::rename(&root, folder.path().join("unmounted")).expect("moved");
        assert!(matches!(store.list("packs", None, 9, soon()).await, Err(Fault::NoBucket(_))));
        assert!(!root.exists(), "it is not made anew beside its mount");
        let gone = options(StoreUrl::Folder(root));
        let refused = Store::open_with(&ObjectOptions { writable: false, ..gone }, &[]).expect_err("no folder");
        assert!(matches!(refused, StoreError::Folder { .. }), "{refused}");
    });
}

#[test]
fn a_client_that_cannot_be_built_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, "no certificate, no credentials").expect("written");
    let url = || -> StoreUrl { "s3://kv-cache".parse().expect("an address") };
    let with_ca = ObjectOptions { ca_file: Some(path.clone()), ..options(url()) };
    let error = Store::open_with(&with_ca, &environment()).expect_err("no certificate");
    assert!(error.to_string().starts_with("tiers.object.ca_file /"), "{error}");
    let with_file = ObjectOptions { credentials_file: Some(path), ..options(url()) };
    let error = Store::open_with(&with_file, &[]).expect_err("no credentials").to_string();
    assert!(error.starts_with("tiers.object.credentials_file /") && error.contains("aws_access_key_id"), "{error}");
    let azure = options("az://kv-cache".parse().expect("an address"));
    assert!(matches!(Store::open_with(&azure, &[]), Err(StoreError::Client(_))), "no account");
    let named = [("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), "account".to_owned())];
    assert!(Store::open_with(&azure, &named).is_ok());
    assert!(Store::open_with(&options("gs://kv-cache".parse().expect("an address")), &[]).is_ok());
}

#[test]
fn a_request_may_go_to_another_thread() {
    fn goes<T: Send>(_: T) {}
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder_store(folder.path());
    goes(store.put_new("a", vec![], soon()));
    goes(store.get("a", 1, soon()));
    goes(store.get_range("a", 0..1, soon()));
    goes(read_range(&store, "a", 0..1));
    goes(store.list("a", None, 1, soon()));
    goes(store.probe(soon()));
    goes(store);
}
