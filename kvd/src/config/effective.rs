//! The configuration in force, printable: secrets redacted, every value with its origin.

use serde::Serialize;
use serde_json::Value;

use super::error::Origin;
use super::{Loaded, keys};

/// One key with the value in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectiveValue {
    /// The key.
    pub key: String,
    /// Its value as it would be written in the file; `off` where there is none.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
}

/// Every key, in the order of [`keys`](super::keys).
pub fn effective(loaded: &Loaded) -> Vec<EffectiveValue> {
    let tree = serde_json::to_value(&loaded.config).expect("a configuration is text, numbers and lists");
    keys()
        .into_iter()
        .map(|key| {
            let value = key.path.split('.').try_fold(&tree, |node, name| node.get(name)).unwrap_or(&Value::Null);
            let value = match value {
                Value::Null => "off".to_owned(),
                Value::String(text) if key.secret => format!("\"{}\"", redacted(text)),
                // Of tables JSON's form is not the file's.
                Value::Array(items) if items.iter().any(Value::is_object) => {
                    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |tables| tables.to_string())
                }
                other => other.to_string(),
            };
            EffectiveValue { value, origin: loaded.origin(&key.path), key: key.path }
        })
        .collect()
}

/// A URL without the user and password in it.
fn redacted(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://[redacted]@{host}"),
        None => url.to_owned(),
    }
}

/// docs/configuration.md, from the schema.
pub fn reference_markdown() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Written by `kvd config reference`; a test compares it with the source.\n\n\
         `kvd serve` needs no configuration. A value comes from the default, the file given with `--config` (TOML),\n\
         the environment or `--set KEY=VALUE`; the later wins. `kvd config show` prints what is in force and where it\n\
         was set, `kvd config check` tells what is wrong, `kvd config schema` gives editors a JSON schema.\n\
         SIGHUP or `kvd config reload` reads the sources again: keys marked *reload* change in the running daemon, the\n\
         others need a restart. A file with any mistake is refused as a whole and the daemon goes on as it was.\n",
    );
    for key in keys() {
        let reload = if key.reloadable { ", *reload*" } else { "" };
        text.push_str(&format!(
            "\n## `{}`\n\n{}\n\n- takes: {}{reload}\n- default: {}\n- example: `{} = {}`\n- environment: `{}`\n",
            key.path,
            key.description,
            key.kind.replace('|', "or"),
            key.default,
            key.path,
            key.example,
            key.variable()
        ));
    }
    text
}
