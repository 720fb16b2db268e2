//! One function per decoder of bytes that somebody else wrote. Each takes any bytes, must not panic, and checks what the
//! decoder promises of those that it accepts. Run by the fuzz targets beside this file and by `tests/hostile`.

use std::sync::LazyLock;

use kvd_nixl::io::{SimDisk, SimOptions};
use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::record::{HEADER_BYTES, SEED};
use kvd_proto::wire::ring::{Completion, ENTRY_BYTES, Op, Request, Status};
use kvd_proto::wire::session::{
    Body, GetSegment, Goodbye, Hello, ListSegments, ListShards, OpenView, Refused, RingGeometry, Segments,
    SetPrefillRate, ShardRange, Shards, ViewOpened, Welcome, decode_frame, encode_frame,
};
use kvd_proto::wire::slab::{
    CommitEntries, GRANTED_BYTES, Granted, GrantedStatus, LANDED_BYTES, Landed, hash_at, offer_bytes, put_commit,
};
use kvd_proto::{Epoch, GroupKind, GroupSpec, MissReason, Namespace, Plane, Shard, Sharding, Tier, UnitOrder};
use kvd_tiers::DeviceId;
use kvd_tiers::nvme::{Device, DeviceOptions, Geometry, OpenOptions, Restored, Uuid, fsck};
use kvd_tiers::object::PackIndex;
use kvd_tiers::object::pack::{TRAILER_BYTES, parse_trailer};
use kvd_tiers::record::{META_BYTES_MAX, Metadata};

/// Frames of the session socket, one after the other.
pub(crate) fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((body, used))) = decode_frame(rest) {
        assert!((4..=rest.len()).contains(&used));
        // Unknown fields and unusual spellings are dropped; what is left is written the same way ever after.
        let written = encode_frame(body).expect("no longer than it came");
        let (again, whole) = decode_frame(&written).expect("our own").expect("whole");
        assert_eq!(whole, written.len());
        assert_eq!(encode_frame(again).expect("the same"), written);
        rest = &rest[used..];
    }
}

/// Entries of either ring.
pub(crate) fn ring(data: &[u8]) {
    for entry in data.as_chunks::<ENTRY_BYTES>().0 {
        if let Ok(request) = Request::decode(entry) {
            assert_eq!(request.encode(), *entry);
        }
        if let Ok(completion) = Completion::decode(entry) {
            assert_eq!(completion.encode(), *entry);
        }
    }
}

/// What stands in slabs.
pub(crate) fn slab(data: &[u8]) {
    for entry in data.as_chunks::<LANDED_BYTES>().0 {
        if let Ok(landed) = Landed::decode(entry) {
            assert_eq!(landed.encode(), *entry);
        }
    }
    for entry in data.as_chunks::<GRANTED_BYTES>().0 {
        if let Ok(granted) = Granted::decode(entry) {
            assert_eq!(granted.encode(), *entry);
        }
    }
    let mut written = Vec::new();
    for entry in CommitEntries::new(data) {
        let checksums: Vec<u64> = entry.checksums().collect();
        assert_eq!((checksums.len(), checksums.len() * 8), (entry.units(), entry.checksum_bytes().len()));
        put_commit(&mut written, entry.index, &checksums);
    }
    assert!(data.starts_with(&written));
    if let Some((head, list)) = data.split_first_chunk::<9>() {
        let (at, len) = (usize::from(head[0]), usize::from(head[1]));
        if let Some(Ok(hash)) = hash_at(list, at, len) {
            assert_eq!(hash.padded(), list[at * 32..at * 32 + 32]);
        }
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let _ = offer_bytes(word(1), word(5));
    }
}

/// The canonical encoding of a namespace, and shards.
pub(crate) fn namespace(data: &[u8]) {
    if let Ok(namespace) = Namespace::decode(data) {
        assert_eq!(namespace.encode().expect("it came so"), data, "one encoding each");
        // What the daemon works out next from what a client says.
        for group in &namespace.groups {
            let layers = group.planes.iter().map(|plane| plane.layers).max().unwrap_or(1);
            let heads = group.planes.iter().map(|plane| plane.heads).max().unwrap_or(1);
            if let Ok(shard) = Shard::whole(layers, heads) {
                assert_eq!(group.record_bytes(&shard).is_ok(), group.units(&shard).is_ok());
            }
        }
    }
    if let Some(bytes) = data.first_chunk()
        && let Ok(shard) = Shard::from_bytes(bytes)
    {
        assert_eq!(shard.to_bytes(), *bytes);
    }
}

/// Where whole sectors of every format keep their checksum.
const CHECKSUM: std::ops::Range<usize> = 16..24;

/// Puts the right checksum into changed sectors, so that what is behind that door is tried as well.
fn seal(seed: u64, sectors: &mut [u8]) {
    let head = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &sectors[..CHECKSUM.start]);
    let sum = ChecksumAlgorithm::Crc64Nvme.checksum(head, &sectors[CHECKSUM.end..]);
    sectors[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
}

/// A record's metadata, as it is and with its checksum put right. What follows the data is zeros.
pub(crate) fn record(data: &[u8]) {
    if data.len() > META_BYTES_MAX {
        return;
    }
    let mut sectors = data.to_vec();
    sectors.resize(data.len().max(HEADER_BYTES).next_multiple_of(4096), 0);
    let _ = Metadata::decode(&sectors);
    seal(SEED, &mut sectors);
    if let Ok(sealed) = Metadata::decode(&sectors) {
        let mut written = vec![0xee; sectors.len()];
        assert_eq!(sealed.metadata.encode(&mut written).expect("it was read"), sealed.meta_checksum);
        let len = sealed.metadata.meta_bytes();
        assert!(written[..len] == sectors[..len], "one encoding each");
    }
}

/// The seed of a pack index's checksum, docs/formats/pack.md.
const INDEX_SEED: u64 = u64::from_le_bytes(*b"KVDPIDX1");

/// The index of a pack, as it is and with its checksum put right; and the trailer behind it.
pub(crate) fn pack(data: &[u8]) {
    let _ = PackIndex::decode(data);
    let _ = data.last_chunk::<TRAILER_BYTES>().map(|trailer| parse_trailer(trailer));
    if data.len() < CHECKSUM.end {
        return;
    }
    let mut bytes = data.to_vec();
    seal(INDEX_SEED, &mut bytes);
    if let Ok(index) = PackIndex::decode(&bytes) {
        assert!(index.encode() == bytes, "one encoding each");
    }
}

fn golden_index() -> Vec<u8> {
    golden(include_str!("../golden/pack/v1.hex"), "index object")
}

/// A title of a golden file, what stands under it, and where on the device.
type Part = (u64, Vec<u8>);

const PLACES: [(&str, u64); 6] = [
    ("superblock A", 0),
    ("superblock B", 65536),
    ("journal", 1 << 20),
    ("zone header", 2 << 20),
    ("slot table", 3 << 20),
    ("zone", 4 << 20),
];

/// The golden device: one zone, five journaled entries, three records.
static GOLDEN: LazyLock<Vec<Part>> = LazyLock::new(|| {
    let text = include_str!("../golden/nvme/v1.hex");
    PLACES.iter().map(|(title, at)| (*at, golden(text, title))).collect()
});

/// The bytes under a title of a golden file: lines of an offset and 32 bytes, those of zeros left out.
fn golden(text: &str, title: &str) -> Vec<u8> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("# {title}, ")));
    let head = lines.next().expect("the title stands in the file");
    let len = head.split(' ').rev().nth(1).and_then(|len| len.parse().ok()).expect("a length");
    let mut bytes = vec![0; len];
    for line in lines.take_while(|line| !line.starts_with('#')) {
        let (offset, digits) = line.split_once(' ').expect("offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("hexadecimal");
        for at in 0..digits.len() / 2 {
            bytes[offset + at] = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).expect("hexadecimal");
        }
    }
    bytes
}

const UUID: [u8; 16] = *b"golden-golden-go";

/// The golden device with bytes changed, each change 8 bytes of data: which part, whether the checksum is put right, where,
/// and what. Superblock, journal pages, zone headers and slot entries are read by recovery and by fsck.
pub(crate) fn nvme(data: &[u8]) {
    let geometry = Geometry::new(64 << 10, 1, 8).expect("the golden device's");
    let mut parts = GOLDEN.clone();
    for change in data.as_chunks::<8>().0.iter().take(64) {
        let part = usize::from(change[0] & 0x7f) % parts.len();
        let bytes = &mut parts[part].1;
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % bytes.len();
        let end = (at + 1 + usize::from(change[3] % 4)).min(bytes.len());
        bytes[at..end].copy_from_slice(&change[4..4 + end - at]);
        if change[0] & 0x80 != 0 {
            restore(part, &mut bytes[at / 4096 * 4096..][..4096], at % 4096);
        }
    }
    let disk = SimDisk::new(1, SimOptions::default());
    let file = disk.add_file(geometry.end());
    parts.iter().for_each(|(at, bytes)| disk.alter(file, *at, bytes));
    disk.set_automatic(true);
    // Errors are answers; only what they promise is checked.
    if let Ok(report) = fsck(&mut disk.io(), file, geometry.end(), &mut |_| {}) {
        assert!(report.bad_count <= report.records && report.records <= 8);
    }
    let open = OpenOptions { bytes: geometry.end(), geometry, uuid: Uuid::new(UUID), epoch: Epoch::new(9) };
    let mut records = 0;
    let opened = Device::open(disk.io(), file, open, DeviceOptions::new(DeviceId(0)), &mut |found| {
        records += u64::from(matches!(found, Restored::Record(_)));
    });
    if let Ok((_, opened)) = opened {
        assert_eq!(opened.records, records);
    }
}

/// Puts the checksums of a changed sector right: its own, or that of the entry at `at`.
fn restore(part: usize, sector: &mut [u8], at: usize) {
    let seed = |kind: &[u8; 8]| ChecksumAlgorithm::Crc64Nvme.checksum(u64::from_le_bytes(*kind), &UUID);
    match PLACES[part].0 {
        "superblock A" | "superblock B" => seal(u64::from_le_bytes(*b"KVDSUPER"), sector),
        "journal" => seal(seed(b"KVDJRNL1"), sector),
        "zone header" => seal(seed(b"KVDZONE1"), sector),
        "slot table" => {
            // The zone's generation stands in its header.
            let generation = &GOLDEN[3].1[24..32];
            let seed = ChecksumAlgorithm::Crc64Nvme.checksum(seed(b"KVDSLOT1"), generation);
            let entry = &mut sector[at / 128 * 128..][..128];
            let sum = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &entry[8..]);
            entry[..8].copy_from_slice(&sum.to_le_bytes());
        }
        _ => {}
    }
}

/// A decoder under test.
pub(crate) type Decoder = fn(&[u8]);

/// All of them, by the names of their fuzz targets.
pub(crate) const DECODERS: &[(&str, Decoder)] = &[
    ("frames", frames),
    ("ring", ring),
    ("slab", slab),
    ("namespace", namespace),
    ("record", record),
    ("pack", pack),
    ("nvme", nvme),
];

/// Checks that what [`nvme`] and [`pack`] put right is what the product writes: else it would try nothing behind the checksums.
pub(crate) fn golden_device_is_sealed_as_the_product_does() {
    for (part, (_, bytes)) in GOLDEN.iter().enumerate().take(5) {
        let mut sector = bytes[..4096].to_vec();
        restore(part, &mut sector, 0);
        assert!(sector == bytes[..4096], "{}", PLACES[part].0);
    }
    let mut index = golden_index();
    seal(INDEX_SEED, &mut index);
    assert!(index == golden_index(), "pack index");
}

/// The seeds of a target: small, valid, of every kind.
pub(crate) fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "frames" => frame_seeds(),
        "ring" => {
            let request = |op: Op| Request {
                op,
                flags: 0,
                view: 1,
                slab: 2,
                first: 3,
                count: 4,
                token: 5,
                lease: 6,
                deadline_us: 7,
                arg: 8,
            };
            let completion = Completion {
                token: 1,
                status: Status::Ok,
                reason: Some(MissReason::Cold),
                tier: Some(Tier::Dram),
                count: 2,
                lease: 3,
                epoch: Epoch::new(4),
                arg: 5,
            };
            let requests = Op::ALL.iter().map(|op| request(*op).encode().to_vec());
            requests.chain([completion.encode().to_vec()]).collect()
        }
        "slab" => {
            let landed = Landed { slot_bytes: 8192, ..Landed::missed(MissReason::Corrupt) };
            let granted = Granted::without_slot(GrantedStatus::Present, None);
            let mut commit = Vec::new();
            put_commit(&mut commit, 1, &[2, 3]);
            put_commit(&mut commit, 4, &[]);
            vec![landed.encode().to_vec(), granted.encode().to_vec(), commit]
        }
        "namespace" => vec![sample_namespace().encode().expect("valid")],
        "record" => {
            let text = include_str!("../golden/record/v1.hex");
            vec![golden(text, "xxh3 with parent and tokens"), golden(text, "two sectors of metadata")]
                .into_iter()
                .map(|image| image[..4096].to_vec())
                .collect()
        }
        "pack" => vec![golden_index()],
        // One change in each part, sealed.
        _ => (0x80..0x86).map(|part| vec![part, 40, 0, 3, 1, 2, 3, 4]).collect(),
    }
}

fn sample_namespace() -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: 2,
        heads: 4,
        unit_bytes: 8192,
        unit_order: UnitOrder::TokenKvDim,
        k_dim: 128,
        v_dim: 128,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    Namespace {
        model: "tiny".into(),
        weights_digest: [1; 32],
        kv_dtype: "bf16".into(),
        scale_scheme: String::new(),
        hash_algorithm: "sha256".into(),
        hash_seed: vec![1, 2],
        lora: None,
        block_tokens: 16,
        groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let hello =
        Hello { version_min: 1, version_max: 1, instance: vec![1; 16], features: vec!["a".into()], ..Hello::default() };
    let namespace = sample_namespace().encode().expect("valid");
    let range = ShardRange { layer_end: 2, head_end: 4, interleave_of: 1, ..ShardRange::default() };
    let view = OpenView { namespace, shard: Some(range), hash_bytes: 32, ..OpenView::default() };
    let geometry =
        Some(RingGeometry { memory_bytes: 1 << 22, ring_entries: 256, slabs: 16, ..RingGeometry::default() });
    let bodies = [
        Body::Hello(hello),
        Body::Welcome(Welcome { version: 1, geometry, ..Welcome::default() }),
        Body::Refused(Refused { code: 3, message: "full".into(), remedy: "wait".into() }),
        Body::OpenView(view),
        Body::ListShards(ListShards { view: 1 }),
        Body::Shards(Shards { view: 1, shards: vec![range; 2] }),
        Body::ListSegments(ListSegments {}),
        Body::Segments(Segments { segments: vec![0, 7, 300] }),
        Body::ViewOpened(ViewOpened { view: 1, payload_bytes: 65536, ..ViewOpened::default() }),
        Body::GetSegment(GetSegment { segment: 7 }),
        Body::SetPrefillRate(SetPrefillRate { view: 1, tokens_per_second: 1e4 }),
        Body::Goodbye(Goodbye {}),
    ];
    bodies.into_iter().map(|body| encode_frame(body).expect("small")).collect()
}
