//! The list of keys, read from the JSON schema, so that a key is described in one place only.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// One key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its dotted path, `tiers.dram.capacity`.
    pub path: String,
    /// What it does.
    pub description: String,
    /// The values it takes, in words.
    pub kind: String,
    /// What stands when nobody sets it.
    pub default: String,
    /// A value as it would be written in the file.
    pub example: String,
    /// Whether a reload (SIGHUP, `kvd config reload`) changes it in the running daemon.
    pub reloadable: bool,
    /// Whether its value is hidden where the configuration is printed.
    pub secret: bool,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{}{}", super::VARIABLE_PREFIX, self.path.to_uppercase().replace('.', "__"))
    }
}

/// The JSON schema of the configuration file, for editors and for charts.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<File>().to_value();
    drop_nulls(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".into(), "kvd configuration".into());
    }
    schema
}

/// TOML has no null: an optional key is left out, so `null` is no value to offer to an editor.
fn drop_nulls(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.retain(|key, value| !(key == "default" && (value.is_null() || value.is_object())));
            if let Some(Value::Array(kinds)) = map.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    map.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(options)) = map.get_mut("anyOf") {
                options.retain(|option| option.get("type").is_none_or(|kind| kind != "null"));
                if let [Value::Object(only)] = options.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    for (key, value) in only {
                        map.entry(key).or_insert(value);
                    }
                }
            }
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every key, in the order of the schema.
pub fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    collect(&schema(), "", &mut keys);
    keys
}

fn collect(schema: &Value, prefix: &str, keys: &mut Vec<Key>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if property.get("properties").is_some() {
            collect(property, &path, keys);
            continue;
        }
        let text = |field: &str| property.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        keys.push(Key {
            description: text("description"),
            kind: kind_of(property),
            default: text("x-default"),
            example: text("x-example").trim().to_owned(),
            reloadable: property.get("x-reload").and_then(Value::as_bool).unwrap_or(false),
            secret: property.get("x-secret").and_then(Value::as_bool).unwrap_or(false),
            path,
        });
    }
}

fn kind_of(property: &Value) -> String {
    let options = property.get("oneOf").or_else(|| property.get("anyOf")).and_then(Value::as_array);
    if let Some(options) = options {
        let names: Vec<_> = options.iter().filter_map(|o| o.get("const").and_then(Value::as_str)).collect();
        return names.join(" | ");
    }
    if let Some(names) = property.get("enum").and_then(Value::as_array) {
        return names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | ");
    }
    let pattern = property.get("pattern").and_then(Value::as_str).unwrap_or_default();
    match property.get("type") {
        Some(Value::Array(_)) if pattern.contains("unlimited") => "rate, \"500MiB/s\" or \"unlimited\"".into(),
        Some(Value::Array(_)) => "size, \"64GiB\"".into(),
        Some(Value::String(kind)) if kind == "string" && !pattern.is_empty() => "duration, \"250ms\"".into(),
        Some(Value::String(kind)) if kind == "array" && property["items"].get("properties").is_some() => {
            "list of tables".into()
        }
        Some(Value::String(kind)) if kind == "array" => "list of strings".into(),
        Some(Value::String(kind)) => kind.clone(),
        _ => String::new(),
    }
}

/// The key of this path, if there is one.
pub fn find(path: &str) -> Option<Key> {
    keys().into_iter().find(|key| key.path == path)
}

/// What somebody who wrote `path` may have meant: a near key, or the only key that ends in the same word.
pub fn suggest(path: &str, keys: &[Key]) -> Option<String> {
    let near = keys
        .iter()
        .map(|key| (strsim::jaro_winkler(path, &key.path), &key.path))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score >= 0.88);
    let last = path.rsplit('.').next().unwrap_or(path);
    let mut same_end = keys.iter().filter(|key| key.path.rsplit('.').next() == Some(last));
    let only = same_end.next().filter(|_| same_end.next().is_none());
    near.map(|(_, path)| path.clone()).or_else(|| only.map(|key| key.path.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_with_default_and_example() {
        let keys = keys();
        assert!(keys.len() >= 39, "{}", keys.len());
        for key in &keys {
            assert!(key.description.len() > 20, "{} has no description", key.path);
            assert!(!key.default.is_empty() && !key.example.is_empty() && !key.kind.is_empty(), "{key:?}");
        }
        assert!(find("tiers.dram.capacity").is_some_and(|key| key.variable() == "KVD__TIERS__DRAM__CAPACITY"));
    }

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        let keys = keys();
        for (wrong, right) in [
            ("tiers.dram.capacty", "tiers.dram.capacity"),
            ("data-dir", "data_dir"),
            ("log.levl", "log.level"),
            ("dram.prefault", "tiers.dram.prefault"),
            ("tiers.nvme.path", "tiers.nvme.paths"),
            ("tiers.object.uri", "tiers.object.url"),
            ("object.sync_every", "tiers.object.sync_every"),
        ] {
            assert_eq!(suggest(wrong, &keys).as_deref(), Some(right), "{wrong}");
        }
        assert_eq!(suggest("colour", &keys), None);
    }

    #[test]
    fn the_schema_refuses_unknown_keys_and_offers_no_null() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["tiers"]["properties"]["dram"]["additionalProperties"], false);
        assert!(!schema.to_string().contains("null"), "{schema:#}");
    }
}
