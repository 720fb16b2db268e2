//! What things are called in the store, and back. Every parser takes exactly what the writer writes, so that an object
//! has one name and a foreign object in the bucket is none of ours.

use std::fmt;

/// Below it lie packs.
pub const PACKS_PREFIX: &str = "packs/";
/// Below it lie index objects, by node.
pub const INDEX_PREFIX: &str = "index/";
/// Below it lies who collects.
pub const COLLECTOR_PREFIX: &str = "collector/";
/// Below it lies who writes.
pub const NODES_PREFIX: &str = "nodes/";

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The name with these bytes.
            pub const fn new(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The exact inverse of `Display`: 32 lower-case hexadecimal digits.
            pub fn parse(text: &str) -> Option<Self> {
                digits(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

name! {
    /// Names a pack. Its bytes come from a random source, so it tells nothing of what is inside.
    PackName
}

name! {
    /// Names a node that writes packs, for as long as it keeps its state.
    NodeName
}

/// Whose records a pack holds, and what of: keyed digests, which reveal neither. A pack has exactly one realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm {
    /// Of the tenant.
    pub tenant: [u8; 16],
    /// Of the tenant's namespace.
    pub namespace: [u8; 16],
}

/// Where a pack lies, relative to the prefix of the bucket: `packs/ab/ab...`.
pub fn pack_path(pack: PackName) -> String {
    format!("{PACKS_PREFIX}{:02x}/{pack}", pack.0[0])
}

/// The exact inverse of [`pack_path`].
pub fn parse_pack_path(path: &str) -> Option<PackName> {
    let (_, name) = path.strip_prefix(PACKS_PREFIX)?.split_once('/')?;
    PackName::parse(name).filter(|pack| pack_path(*pack) == path)
}

/// Below it lie the index objects of one node.
pub fn node_prefix(node: NodeName) -> String {
    format!("{INDEX_PREFIX}{node}/")
}

/// The name of an index object: it says which pack is there, so that a listing alone tells what came and what went.
///
/// Names of a node sort by `seq`, as values and as paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexName {
    /// Who wrote the pack.
    pub node: NodeName,
    /// Grows with each pack of this node, in the order in which they became visible: microseconds since 1970 by its clock,
    /// or one more than the last.
    pub seq: u64,
    /// The pack.
    pub pack: PackName,
}

impl IndexName {
    /// Where the index object lies, relative to the prefix of the bucket: `index/<node>/<seq>-<pack>`.
    pub fn path(&self) -> String {
        format!("{}{:016x}-{}", node_prefix(self.node), self.seq, self.pack)
    }

    /// The exact inverse of [`IndexName::path`].
    pub fn parse(path: &str) -> Option<Self> {
        let (node, object) = path.strip_prefix(INDEX_PREFIX)?.split_once('/')?;
        let (seq, pack) = object.split_once('-')?;
        let seq = digits(seq).map(u64::from_be_bytes)?;
        Some(Self { node: NodeName::parse(node)?, seq, pack: PackName::parse(pack)? })
    }

    /// A path behind all index objects of `node` up to `seq` and ahead of all newer ones: where a listing goes on.
    pub fn after(node: NodeName, seq: u64) -> String {
        // A dot is the next character behind the hyphen, and one that stores and their clients leave as it is.
        format!("{}{seq:016x}.", node_prefix(node))
    }
}

/// The name of an object by which a node says that it writes to the store; all is said by the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceName {
    /// Who writes.
    pub node: NodeName,
    /// Tells this saying of it from earlier ones.
    pub seq: u64,
}

impl PresenceName {
    /// Where the object lies, relative to the prefix of the bucket: `nodes/<node>-<seq>`.
    pub fn path(&self) -> String {
        format!("{NODES_PREFIX}{}-{:016x}", self.node, self.seq)
    }

    /// The exact inverse of [`PresenceName::path`].
    pub fn parse(path: &str) -> Option<Self> {
        let (node, seq) = path.strip_prefix(NODES_PREFIX)?.split_once('-')?;
        Some(Self { node: NodeName::parse(node)?, seq: digits(seq).map(u64::from_be_bytes)? })
    }
}

/// Exactly `2 * N` lower-case hexadecimal digits, as bytes.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index_name() -> impl Strategy<Value = IndexName> {
        any::<([u8; 16], u64, [u8; 16])>().prop_map(|(node, seq, pack)| IndexName {
            node: NodeName::new(node),
            seq,
            pack: PackName::new(pack),
        })
    }

    proptest! {
        #[test]
        fn paths_round_trip(name in index_name()) {
            prop_assert_eq!(IndexName::parse(&name.path()), Some(name));
            prop_assert_eq!(parse_pack_path(&pack_path(name.pack)), Some(name.pack));
            prop_assert_eq!(NodeName::parse(&name.node.to_string()), Some(name.node));
            prop_assert_eq!(format!("{:?}", name.pack), name.pack.to_string());
        }

        #[test]
        fn a_path_with_one_character_changed_is_another_name_or_none(
            name in index_name(), at in any::<prop::sample::Index>(), character in any::<char>(),
        ) {
            for path in [name.path(), pack_path(name.pack)] {
                let mut characters: Vec<char> = path.chars().collect();
                *at.get_mut(&mut characters) = character;
                let changed: String = characters.into_iter().collect();
                if let Some(other) = IndexName::parse(&changed) {
                    prop_assert_eq!(other.path(), changed.clone());
                }
                if let Some(other) = parse_pack_path(&changed) {
                    prop_assert_eq!(pack_path(other), changed);
                }
            }
        }

        #[test]
        fn a_listing_goes_on_behind_the_last_name_seen(one in index_name(), seq in any::<u64>()) {
            let behind = IndexName::after(one.node, seq);
            prop_assert_eq!(one.path() > behind, one.seq > seq);
            let same = IndexName { seq, ..one };
            prop_assert!(same.path() < behind);
            if let Some(next) = seq.checked_add(1) {
                let next = IndexName { seq: next, pack: PackName::new([0; 16]), ..one };
                prop_assert!(next.path() > behind);
            }
            prop_assert!(behind.starts_with(&node_prefix(one.node)));
        }
    }

    #[test]
    fn names_look_as_the_format_says() {
        let pack = PackName::new(std::array::from_fn(|at| 0xa0 + at as u8));
        let node = NodeName::new([0x0b; 16]);
        assert_eq!(pack_path(pack), "packs/a0/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf");
        let name = IndexName { node, seq: 0x1f, pack };
        let folder = "index/0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b/";
        assert_eq!(node_prefix(node), folder);
        assert_eq!(name.path(), format!("{folder}000000000000001f-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"));
        assert_eq!(IndexName::after(node, 0x1f), format!("{folder}000000000000001f."));
        let presence = PresenceName { node, seq: 0x1f };
        assert_eq!(presence.path(), "nodes/0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b-000000000000001f");
        assert_eq!(PresenceName::parse(&presence.path()), Some(presence));
        for path in ["nodes/", "nodes/0b-1f", "index/0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b-000000000000001f"] {
            assert_eq!(PresenceName::parse(path), None, "{path}");
        }
    }

    #[test]
    fn other_paths_are_refused() {
        let pack = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf";
        let packs = [
            format!("packs/a1/{pack}"),
            format!("packs/a/{pack}"),
            format!("packs//{pack}"),
            format!("packs/{pack}"),
            format!("/packs/a0/{pack}"),
            format!("packs/a0/{pack}/"),
            format!("packs/a0/{pack}0"),
            format!("packs/a0/a0/{pack}"),
            format!("packs/A0/{}", pack.to_uppercase()),
            format!("packs/a0/{}", &pack[1..]),
            format!("index/a0/{pack}"),
            "packs/a0/".to_owned(),
            String::new(),
        ];
        for path in packs {
            assert_eq!(parse_pack_path(&path), None, "{path}");
        }
        let indexes = [
            format!("index/{pack}/000000000000001F-{pack}"),
            format!("index/{pack}/+00000000000001f-{pack}"),
            format!("index/{pack}/00000000000001f-{pack}"),
            format!("index/{pack}/0000000000000001f-{pack}"),
            format!("index/{pack}/000000000000001f.{pack}"),
            format!("index/{pack}/000000000000001f--{pack}"),
            format!("index/{pack}/000000000000001f-{pack}-"),
            format!("index/{pack}/000000000000001f-"),
            format!("index//000000000000001f-{pack}"),
            format!("index/{pack}/x/000000000000001f-{pack}"),
            format!("packs/{pack}/000000000000001f-{pack}"),
            "index/".to_owned(),
            String::new(),
        ];
        for path in indexes {
            assert_eq!(IndexName::parse(&path), None, "{path}");
        }
        for name in ["", "a0", "é0a1a2a3a4a5a6a7a8a9aaabacadae", "g0a1a2a3a4a5a6a7a8a9aaabacadaeaf"] {
            assert_eq!((PackName::parse(name), NodeName::parse(name)), (None, None), "{name}");
        }
    }
}
