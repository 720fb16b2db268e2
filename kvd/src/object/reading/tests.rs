//! Goal: an answer waits for others a moment, and for nothing else.
//! Method: a run that is given its bytes by hand. They are no records, so each answer is "corrupt", which is as good as any.

use futures_util::stream;
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{BlockKey, Shard, TenantKey};
use kvd_tiers::{ObjectPlace, SlotState, TenantId};

use super::*;
use crate::core::ObjectOptions;
use crate::object::options::StoreUrl;
use crate::object::tier::without_threads;

type Answers = crossbeam::channel::Receiver<(MoveId, Outcome)>;

fn wanted(number: u32, payload_bytes: u32) -> Wanted {
    let bytes = payload_bytes + 4096;
    let memory: Arc<dyn Memory> = Arc::new(Region::new(bytes as usize).expect("memory"));
    let expect = SlotEntry {
        state: SlotState::Resident,
        generation: 1,
        tenant: TenantId(1),
        namespace_prefix: 0,
        group: 0,
        shard: Shard::whole(1, 1).expect("a shard"),
        key: BlockKey::new([number as u8; 16]),
        parent_key: None,
        position: number,
        payload_bytes,
        meta_checksum: 1,
    };
    let from = ObjectPlace { pack: 0, offset: number * bytes, bytes };
    Wanted { id: MoveId(u64::from(number)), from, expect, memory: MemoryExtent::whole(memory) }
}

/// Four records of a pack, of which nothing has come.
fn run_of_four(folder: &tempfile::TempDir, payload_bytes: u32) -> (Run, Answers) {
    let options = ObjectOptions::sample(StoreUrl::Folder(folder.path().join("objects")));
    let (shared, answers) = without_threads(&options, folder.path(), TenantKey::new([1; 32]));
    let records = (0..4).map(|number| wanted(number, payload_bytes)).collect();
    (Run::new(shared, records), answers)
}

fn told(answers: &Answers) -> Vec<u64> {
    answers.try_iter().map(|(id, _)| id.0).collect()
}

#[tokio::test]
async fn answers_gather_until_they_are_a_mebibyte_or_the_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut run, answers) = run_of_four(&folder, 512 << 10);
    let name = PackName::new([1; 16]);
    let record = vec![0; (512 << 10) + 4096];
    run.take(name, &record[1..]);
    assert_eq!((told(&answers), run.done), (vec![], 0), "a byte is missing");
    run.take(name, &record[..1]);
    assert_eq!((told(&answers), run.done), (vec![], 1));
    run.take(name, &record);
    assert_eq!(told(&answers), [0, 1]);
    run.take(name, &record);
    assert_eq!(told(&answers), [0; 0]);
    run.take(name, &record);
    assert_eq!(told(&answers), [2, 3], "there is nothing more to come");
    drop(run);
    assert_eq!(told(&answers), [0; 0], "each is told once");
}

#[tokio::test]
async fn answers_do_not_wait_for_a_body_that_is_silent_nor_for_the_next_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut run, answers) = run_of_four(&folder, 4096);
    let name = PackName::new([1; 16]);
    run.take(name, &[0; 8192]);
    assert_eq!(told(&answers), [0; 0]);
    let mut silent: Body = Box::pin(stream::pending());
    let waited = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::select! {
            _ = run.next_chunk(&mut silent) => panic!("nothing comes"),
            answer = async {
                loop {
                    match answers.try_recv() {
                        Ok((id, _)) => break id,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            } => answer,
        }
    });
    assert_eq!(waited.await, Ok(MoveId(0)));
    run.take(name, &[0; 8192]);
    assert_eq!(told(&answers), [0; 0]);
    // There is no such pack: the attempt fails, after the answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    assert_eq!(run.attempt(name, deadline).await, Err(Fault::NotFound));
    assert_eq!(told(&answers), [1]);
    run.take(name, &[0; 8192]);
    drop(run);
    assert_eq!(told(&answers), [2, 3], "what came, and what did not");
}
