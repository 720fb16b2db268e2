//! Limits of age and idleness for some of the packs, as an operator writes them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use kvd_proto::NamespaceDigest;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::units::Span;

/// One limit: for whom, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectLimit {
    /// Packs of this namespace: its whole digest, as `kvd namespaces` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceName>,
    /// Packs of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Age at which a pack is deleted; 0s for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// After how long without a read a pack is deleted; 0s for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_idle: Option<Span>,
}

/// A namespace by its digest. The beginning of one, which is enough for commands, names nothing here: what lies in the store is
/// found by a keyed digest of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceName(pub NamespaceDigest);

impl FromStr for NamespaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<NamespaceName, String> {
        let digest = NamespaceDigest::from_hex(text).map(NamespaceName);
        digest.ok_or_else(|| format!("`{text}` is no namespace: write all 64 digits, as `kvd namespaces` prints them"))
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for NamespaceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamespaceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for NamespaceName {
    fn schema_name() -> Cow<'static, str> {
        "Namespace".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$" })
    }
}
