//! Quantities as an operator writes them: `"64GiB"`, `"250ms"`, `"500MiB/s"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A number of bytes: `"64GiB"`, `"1.5 GB"` or a plain integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A span of time: `"250ms"`, `"1m 30s"`. A plain number is refused, because its unit would have to be guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Bytes per second: `"500MiB/s"`, or `"unlimited"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write a number and a unit, like \"64GiB\" or \"500MB\"");
    if text.trim_start().starts_with('-') {
        return Err(wrong());
    }
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64()).map_err(|_| wrong())
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact multiples print as such; anything else in bytes, so that what is printed can be read back unchanged.
        for (unit, name) in [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(bytes) => write!(f, "{}/s", Size(bytes)),
        }
    }
}

/// Bytes for people: exact where that is short, otherwise three digits.
pub fn rough(bytes: u64) -> String {
    let megabytes = bytes >> 20;
    if bytes < 1024 || (bytes.is_multiple_of(1 << 20) && (megabytes < 10_000 || megabytes.is_multiple_of(1024))) {
        return Size(bytes).to_string();
    }
    bytesize::ByteSize(bytes).display().iec().to_string()
}

macro_rules! serialize_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(Size, Span, Rate);

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size like \"64GiB\" or a number of bytes")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
        u64::try_from(value).map(Size).map_err(|_| E::custom(format!("`{value}` is negative: a size is not")))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
        Ok(Size(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        parse_size(text).map(Size).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SpanVisitor;

impl Visitor<'_> for SpanVisitor {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, like \"250ms\" or \"5m\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        humantime::parse_duration(text).map(Span).map_err(|_| {
            E::custom(format!("`{text}` is not a duration: write a number and a unit, like \"250ms\" or \"5m\""))
        })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpanVisitor)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "unlimited" {
            return Ok(Rate(None));
        }
        let bytes = parse_size(text.strip_suffix("/s").unwrap_or(text))
            .map_err(|_| format!("`{text}` is not a rate: write \"500MiB/s\" or \"unlimited\""))?;
        nonzero(bytes)
    }
}

struct RateVisitor;

impl Visitor<'_> for RateVisitor {
    type Value = Rate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rate like \"500MiB/s\" or \"unlimited\"")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Rate, E> {
        SizeVisitor.visit_i64(value).and_then(|size| nonzero(size.0).map_err(E::custom))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
        text.parse().map_err(E::custom)
    }
}

fn nonzero(bytes: u64) -> Result<Rate, String> {
    if bytes == 0 {
        return Err("a rate of 0 would stop the tier: write \"unlimited\", or set `enabled = false`".into());
    }
    Ok(Rate(Some(bytes)))
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RateVisitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": r"^\s*[0-9.]+\s*([kKMGTP]?i?[bB]?)\s*$", "minimum": 0 })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": r"^\s*([0-9]+\s*[a-zA-Z]+\s*)+$" })
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": r"^(unlimited|\s*[0-9.]+\s*([kKMGTP]?i?[bB]?)(/s)?)$", "minimum": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, String> {
        T::deserialize(toml::de::ValueDeserializer::parse(text).expect("toml")).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for bytes in [0, 1, 1023, 1024, 1536, 64 << 20, 3 << 30, (1 << 40) + 1] {
            let text = format!("\"{}\"", Size(bytes));
            assert_eq!(read::<Size>(&text), Ok(Size(bytes)), "{text}");
        }
        for millis in [1, 50, 1000, 90_000] {
            let text = format!("\"{}\"", Span(Duration::from_millis(millis)));
            assert_eq!(read::<Span>(&text), Ok(Span(Duration::from_millis(millis))));
        }
        for rate in [Rate(None), Rate(Some(500 << 20))] {
            assert_eq!(read::<Rate>(&format!("\"{rate}\"")), Ok(rate));
        }
    }

    #[test]
    fn a_wrong_unit_is_named_with_the_right_form() {
        assert!(read::<Size>("\"64 gigs\"").expect_err("refused").contains("\"64GiB\""));
        assert!(read::<Size>("-1").expect_err("refused").contains("negative"));
        assert!(read::<Span>("\"50\"").expect_err("refused").contains("\"250ms\""));
        assert!(read::<Span>("50").expect_err("a bare number has no unit").contains("with its unit"));
        assert!(read::<Rate>("0").expect_err("refused").contains("unlimited"));
    }
}
