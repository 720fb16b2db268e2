use super::*;
use proptest::prelude::*;

fn plane() -> impl Strategy<Value = Plane> {
    let order = prop_oneof![Just(UnitOrder::TokenKvDim), Just(UnitOrder::KvTokenDim), Just(UnitOrder::Opaque)];
    let sharding = prop_oneof![Just(Sharding::Sharded), Just(Sharding::Replicated)];
    ("[a-z]{1,8}", 1u16.., 1u16.., 1u32.., order, any::<(u16, u16, u32)>(), sharding).prop_map(
        |(name, layers, heads, unit_bytes, unit_order, (k_dim, v_dim, scales), sharding)| Plane {
            name,
            layers,
            heads,
            unit_bytes,
            unit_order,
            k_dim,
            v_dim,
            scales_bytes: scales % unit_bytes,
            sharding,
        },
    )
}

fn group() -> impl Strategy<Value = GroupSpec> {
    let kind = prop_oneof![
        Just(GroupKind::FullAttention),
        Just(GroupKind::Mla),
        any::<u32>().prop_map(|tokens| GroupKind::SlidingWindow { tokens }),
        Just(GroupKind::State),
        Just(GroupKind::Indexer),
    ];
    let geometry = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    (kind, prop::collection::vec(plane(), 1..4), geometry).prop_map(|(kind, planes, geometry)| GroupSpec {
        kind,
        planes,
        geometry,
    })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    let texts = ("[a-b]{1,3}", "[a-b]{1,3}", "[a-b]{0,3}", "[a-b]{1,3}");
    let seed = prop::collection::vec(any::<u8>(), 0..4);
    let lora = prop::option::of("[a-b]{1,3}");
    (texts, any::<[u8; 32]>(), seed, lora, 1..=BLOCK_TOKENS_MAX, prop::collection::vec(group(), 1..3)).prop_map(
        |((model, kv_dtype, scale_scheme, hash_algorithm), weights_digest, hash_seed, lora, block_tokens, groups)| {
            Namespace {
                model,
                weights_digest,
                kv_dtype,
                scale_scheme,
                hash_algorithm,
                hash_seed,
                lora,
                block_tokens,
                groups,
            }
        },
    )
}

proptest! {
    #[test]
    fn round_trip(namespace in namespace()) {
        let bytes = namespace.encode().unwrap();
        prop_assert_eq!(Namespace::decode(&bytes).unwrap(), namespace);
    }

    #[test]
    fn different_namespaces_have_different_bytes(a in namespace(), b in namespace()) {
        prop_assert_eq!(a == b, a.encode().unwrap() == b.encode().unwrap());
        prop_assert_eq!(a == b, a.digest().unwrap() == b.digest().unwrap());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Namespace::decode(&bytes);
        let mut framed = MAGIC.to_vec();
        framed.extend(&bytes);
        let _ = Namespace::decode(&framed);
    }

    /// Whatever a changed encoding decodes to, it is that value's only encoding.
    #[test]
    fn decoding_is_the_exact_inverse(namespace in namespace(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = namespace.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = Namespace::decode(&bytes) {
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn cut_and_trailing_bytes_are_refused(namespace in namespace(), at in any::<prop::sample::Index>()) {
        let mut bytes = namespace.encode().unwrap();
        prop_assert!(Namespace::decode(&bytes[..at.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert_eq!(Namespace::decode(&bytes), Err(NamespaceError::Trailing));
    }
}
