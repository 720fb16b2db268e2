//! Metadata is read back as written or not at all; a record is what its table says it is, or a mismatch.

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{BlockHash, BlockKey, InstanceId, Interleave, NamespaceDigest, Shard, UnitOrder};
use kvd_tiers::record::{
    Arrival, Expect, META_BYTES_MAX, Metadata, MetadataError, Mismatch, Scratch, TokenIds, UnitChecksums, meta_bytes,
    verify_metadata, verify_record,
};
use proptest::prelude::*;

use crate::records::{Recipe, memory};

/// What is said of a record that lies in a slot; a whole one that comes there in pieces is told the same of.
fn verify(image: &[u8], expect: &Expect) -> Result<(), Mismatch> {
    let slot = memory(image.len());
    slot.write(0, image).unwrap();
    let lying = verify_record(&slot, expect, &mut Scratch::default());
    if image.len().is_multiple_of(4096) {
        for piece in [1000, image.len()] {
            assert_eq!(arrive(image, expect, piece), lying, "in pieces of {piece}");
        }
    }
    lying
}

/// The same of a record that comes in pieces: it lies in its slot afterwards, and one with wrong metadata leaves the slot as it was.
fn arrive(image: &[u8], expect: &Expect, piece: usize) -> Result<(), Mismatch> {
    let slot = memory(image.len());
    let mut arrival = Arrival::new(slot.clone(), image.len(), expect.clone());
    for bytes in image.chunks(piece) {
        assert!(arrival.finish().is_err(), "there is more to come");
        assert_eq!(arrival.take(bytes), [0; 0]);
    }
    assert_eq!((arrival.left(), arrival.take(&[1, 2])), (0, &[1, 2][..]), "the next record's bytes are left");
    let mut stored = vec![0; image.len()];
    slot.read(0, &mut stored).unwrap();
    let sealed = arrival.finish().map(|sealed| sealed.meta_checksum);
    match sealed {
        Ok(_) | Err(Mismatch::Unit { .. }) => assert_eq!(stored, image),
        Err(_) => assert!(stored.iter().all(|byte| *byte == 0)),
    }
    sealed.map(|meta_checksum| assert_eq!(meta_checksum, expect.meta_checksum))
}

#[test]
fn no_flipped_bit_of_the_metadata_is_read() {
    let made = Recipe::new(7, 3, 5000).make();
    let mut sector = made.image[..made.meta_bytes].to_vec();
    let sealed = Metadata::decode(&sector).unwrap();
    assert_eq!(sealed.meta_checksum, made.entry.meta_checksum);
    for bit in 0..sector.len() * 8 {
        sector[bit / 8] ^= 1 << (bit % 8);
        assert!(Metadata::decode(&sector).is_err(), "bit {bit}");
        sector[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn no_flipped_bit_of_the_payload_is_served() {
    for algorithm in [ChecksumAlgorithm::Crc64Nvme, ChecksumAlgorithm::Xxh3] {
        // A last unit that is short, and one that is not whole stripes.
        let made = Recipe { algorithm, unit_bytes: 700, ..Recipe::new(7, 3, 2111) }.make();
        let expect = Expect::from(&made.entry);
        let mut image = made.image.clone();
        assert_eq!(verify(&image, &expect), Ok(()));
        for bit in 0..2111 * 8 {
            let at = made.meta_bytes + bit / 8;
            image[at] ^= 1 << (bit % 8);
            let unit = (bit / 8 / 700) as u32;
            assert_eq!(verify(&image, &expect), Err(Mismatch::Unit { unit }), "bit {bit}");
            image[at] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn another_record_is_not_this_one() {
    let wanted = Recipe::new(7, 3, 5000);
    let expect = Expect::from(&wanted.make().entry);
    let others = [
        ("key", Recipe { number: 8, ..wanted }),
        ("generation", Recipe { generation: 2, ..wanted }),
        ("length", Recipe { payload_bytes: 5001, ..wanted }),
        ("meta_checksum", Recipe { tokens: 15, ..wanted }),
    ];
    for (what, other) in others {
        assert_eq!(verify(&other.make().image, &expect), Err(Mismatch::Identity(what)));
    }
    let shard = Shard::new(4..36, 2..6, Interleave::WHOLE).unwrap();
    assert_eq!(verify(&wanted.make().image, &Expect { shard, ..expect.clone() }), Err(Mismatch::Identity("shard")));
    // The metadata of the one, the payload of the other, all of it intact.
    let (mut image, other) = (wanted.make().image, Recipe { number: 8, ..wanted }.make());
    image[other.meta_bytes..].copy_from_slice(&other.image[other.meta_bytes..]);
    assert_eq!(verify(&image, &expect), Err(Mismatch::Unit { unit: 0 }));
}

#[test]
fn units_that_changed_places_fail() {
    let made = Recipe::new(7, 3, 4096).make();
    let mut image = made.image.clone();
    let (first, second) = image[made.meta_bytes..].split_at_mut(1024);
    first.swap_with_slice(&mut second[..1024]);
    assert_eq!(verify(&image, &Expect::from(&made.entry)), Err(Mismatch::Unit { unit: 0 }));
}

#[test]
fn a_slot_too_small_is_a_mismatch() {
    let made = Recipe::new(7, 3, 5000).make();
    let expect = Expect::from(&made.entry);
    let end = made.meta_bytes + 5000;
    assert_eq!(verify(&made.image[..end], &expect), Ok(()));
    let got = end - 1;
    assert_eq!(verify(&made.image[..got], &expect), Err(Mismatch::Bounds { wanted: end, got }));
    assert!(matches!(verify(&made.image[..4000], &expect), Err(Mismatch::Bounds { .. })));
    assert!(verify_metadata(&made.memory(), &expect, &mut Scratch::default()).is_ok());
}

#[test]
fn what_comes_for_a_slot_of_another_length_is_not_stored() {
    let made = Recipe::new(7, 3, 5000).make();
    let expect = Expect::from(&made.entry);
    let bytes = made.image.len();
    let mut cut = Arrival::new(made.memory(), bytes, expect.clone());
    cut.take(&made.image[..bytes - 1]);
    assert_eq!(
        cut.finish().err(),
        Some(Mismatch::Bounds { wanted: bytes, got: bytes - 1 }),
        "its last byte is missing"
    );
    for (slot_bytes, bytes) in [(bytes - 1, bytes), (bytes + 1, bytes), (bytes + 100, bytes + 100), (4096, 4096)] {
        let slot = memory(slot_bytes);
        let mut arrival = Arrival::new(slot.clone(), bytes, expect.clone());
        arrival.take(&made.image);
        assert_eq!(arrival.finish().err(), Some(Mismatch::Bounds { wanted: bytes, got: slot_bytes }));
        let mut stored = vec![0; slot_bytes];
        slot.read(0, &mut stored).unwrap();
        assert!(stored.iter().all(|byte| *byte == 0));
    }
    // Room for metadata of two sectors, where it has one.
    let mut arrival = Arrival::new(memory(bytes + 4096), bytes + 4096, expect);
    arrival.take(&made.image);
    arrival.take(&[0; 4096]);
    assert_eq!(arrival.finish().err(), Some(Mismatch::Bounds { wanted: 8192, got: 4096 }));
}

#[test]
fn metadata_stays_within_its_share_of_space() {
    // Llama-3.1-8B, 16 tokens: 256 units and the token ids in one sector of a 2 MiB record.
    assert_eq!(meta_bytes(256, 16), 4096);
    // Two sectors, 984 units, are less than one percent of 1 MiB.
    assert_eq!(meta_bytes(984, 16), 8192);
    assert_eq!(meta_bytes(480, 0), 4096);
    assert_eq!(meta_bytes(481, 0), 8192);
    assert_eq!(meta_bytes(16352, 0), META_BYTES_MAX);
}

#[test]
fn values_that_are_no_record_are_refused() {
    let checksums = [0; 40];
    let metadata = Metadata {
        namespace: NamespaceDigest::new([0; 32]),
        group: 0,
        key: BlockKey::new([1; 16]),
        parent_key: None,
        hash: BlockHash::new(&[1]).unwrap(),
        parent_hash: None,
        position: 0,
        shard: Shard::whole(1, 1).unwrap(),
        unit_order: UnitOrder::Opaque,
        writer: InstanceId::new([0; 16]),
        generation: 1,
        payload_bytes: 5000,
        algorithm: ChecksumAlgorithm::Xxh3,
        unit_bytes: 1024,
        checksums: UnitChecksums::new(&checksums),
        tokens: TokenIds::new(&[]),
    };
    let mut out = [0; 4096];
    metadata.encode(&mut out).unwrap();
    let refused = |metadata: Metadata<'_>| metadata.encode(&mut [0; 4096]).unwrap_err();
    let malformed = MetadataError::Malformed;
    assert_eq!(refused(Metadata { unit_bytes: 0, ..metadata.clone() }), malformed("unit_count"));
    assert_eq!(refused(Metadata { payload_bytes: 0, ..metadata.clone() }), malformed("unit_count"));
    assert_eq!(refused(Metadata { payload_bytes: 6000, ..metadata.clone() }), malformed("unit_count"));
    let parent_key = Some(BlockKey::new([2; 16]));
    assert_eq!(refused(Metadata { parent_key, ..metadata.clone() }), malformed("parent"));
    let short = metadata.encode(&mut [0; 4095]).unwrap_err();
    assert_eq!(short, MetadataError::Short { wanted: 4096, got: 4095 });
}

prop_compose! {
    fn recipes()(number in 0..1_000_000_u64, generation: u32, payload in 1..40_000_u32, unit in 64..9000_u32, tokens in 0..600_u32, crc: bool)
        -> Recipe {
        let algorithm = if crc { ChecksumAlgorithm::Crc64Nvme } else { ChecksumAlgorithm::Xxh3 };
        Recipe { number, generation, payload_bytes: payload, unit_bytes: unit, tokens, algorithm }
    }
}

proptest! {
    #[test]
    fn what_was_sealed_is_read_back(recipe in recipes()) {
        let made = recipe.make();
        let sealed = Metadata::decode(&made.image).unwrap();
        prop_assert_eq!(sealed.meta_checksum, made.entry.meta_checksum);
        let metadata = sealed.metadata;
        prop_assert_eq!(metadata.key, recipe.key());
        prop_assert_eq!(metadata.tokens.iter().collect::<Vec<_>>(), (0..recipe.tokens).map(|t| t * 7 + 1).collect::<Vec<_>>());
        let mut again = vec![0xff; made.meta_bytes];
        prop_assert_eq!(metadata.encode(&mut again).unwrap(), made.entry.meta_checksum);
        prop_assert_eq!(&again[..], &made.image[..made.meta_bytes]);
        prop_assert_eq!(verify(&made.image, &Expect::from(&made.entry)), Ok(()));
        prop_assert_eq!(arrive(&made.image, &Expect::from(&made.entry), 1), Ok(()));
    }

    #[test]
    fn no_bytes_make_the_reader_stumble(mut bytes in prop::collection::vec(any::<u8>(), 0..12_288), magic: bool, sealed: bool) {
        if magic && bytes.len() >= 4096 {
            bytes[..12].copy_from_slice(b"KVDREC\r\n\x01\x00\x00\x01");
            bytes[12..16].copy_from_slice(&4096_u32.to_le_bytes());
        }
        if sealed && bytes.len() >= 4096 {
            // The right checksum over wrong fields: what a bug or an attacker would write.
            let seed = u64::from_le_bytes(*b"KVDMETA1");
            let head = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &bytes[..16]);
            let checksum = ChecksumAlgorithm::Crc64Nvme.checksum(head, &bytes[24..4096]);
            bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
        }
        prop_assert!(Metadata::decode(&bytes).is_err());
    }

    #[test]
    fn wrong_fields_under_a_right_checksum_are_bounded(recipe in recipes(), at in 24..256_usize, value: u8) {
        let made = recipe.make();
        let mut bytes = made.image[..made.meta_bytes].to_vec();
        bytes[at] = value;
        let seed = u64::from_le_bytes(*b"KVDMETA1");
        let head = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &bytes[..16]);
        let checksum = ChecksumAlgorithm::Crc64Nvme.checksum(head, &bytes[24..]);
        bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
        // Decoded or refused; and what decodes encodes to the same bytes.
        if let Ok(sealed) = Metadata::decode(&bytes) {
            let mut again = vec![0; bytes.len()];
            sealed.metadata.encode(&mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}
