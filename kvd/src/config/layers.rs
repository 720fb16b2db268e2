//! File, environment and `--set`, laid over each other key by key. Every value keeps the place it was written at.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::{ConfigError, Origin, Problem, Severity};
use super::file::File;
use super::keys::{Key, suggest};

/// A configuration file longer than this is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The value of one key and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// The settings of all layers; the later layer wins.
pub(super) struct Layers<'a> {
    keys: &'a [Key],
    settings: BTreeMap<String, Setting>,
    problems: Vec<Problem>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(keys: &'a [Key]) -> Layers<'a> {
        Layers { keys, settings: BTreeMap::new(), problems: Vec::new() }
    }

    fn problem(&mut self, origin: Origin, key: Option<&str>, message: String, remedy: Option<String>) {
        let key = key.map(str::to_owned);
        self.problems.push(Problem { severity: Severity::Error, origin, key, message, remedy });
    }

    /// Lays a TOML file over what is there.
    pub(super) fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let at = |line, column| Origin::File { path: path.to_owned(), line, column };
        let unreadable = |error: std::io::Error| {
            let message = format!("cannot read the configuration file: {error}");
            let remedy = "give an existing TOML file with --config, or none to serve with defaults".to_owned();
            ConfigError::one(at(1, 1), None, message, Some(remedy))
        };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > FILE_BYTES_MAX {
            let message = format!("the configuration file has {bytes} bytes, more than {FILE_BYTES_MAX}");
            return Err(ConfigError::one(at(1, 1), None, message, None));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let table = DeTable::parse(&text).map_err(|error| {
            let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
            ConfigError::one(at(line, column), None, error.message().to_owned(), None)
        })?;
        self.table(&text, path, table.get_ref(), "");
        Ok(())
    }

    fn table(&mut self, text: &str, path: &Path, table: &DeTable<'_>, prefix: &str) {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let origin = |start| {
                let (line, column) = position(text, start);
                Origin::File { path: path.to_owned(), line, column }
            };
            let is_section = self.keys.iter().any(|known| known.path.starts_with(&format!("{key}.")));
            match value.get_ref() {
                DeValue::Table(inner) if is_section => self.table(text, path, inner, &key),
                _ if is_section => {
                    let message = format!("`{key}` is a section, not a value");
                    self.problem(
                        origin(name.span().start),
                        None,
                        message,
                        Some(format!("write [{key}] and its keys below")),
                    );
                }
                _ if self.keys.iter().any(|known| known.path == key) => {
                    let value = plain(value.get_ref());
                    self.put(&key, value, origin(name.span().start));
                }
                _ => self.unknown(&key, origin(name.span().start)),
            }
        }
    }

    /// Lays the variables with kvd's prefix over what is there; all others are not looked at.
    pub(super) fn environment(&mut self, variables: &[(String, String)]) {
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix(super::VARIABLE_PREFIX) else { continue };
            let key = name.to_lowercase().replace("__", ".");
            self.text(&key, value, Origin::Environment { variable: variable.clone() });
        }
    }

    /// Lays `KEY=VALUE` pairs over what is there.
    pub(super) fn assignments(&mut self, assignments: &[String]) {
        for assignment in assignments {
            match assignment.split_once('=') {
                Some((key, value)) => {
                    let key = key.trim();
                    self.text(key, value.trim(), Origin::CommandLine { key: key.to_owned() });
                }
                None => {
                    let origin = Origin::CommandLine { key: assignment.clone() };
                    let remedy = Some("write --set KEY=VALUE, like --set tiers.dram.capacity=64GiB".to_owned());
                    self.problem(origin, None, "no `=` in it".to_owned(), remedy);
                }
            }
        }
    }

    /// A value from a place without TOML's quotes: read as TOML where that fits the key, otherwise as the text it is.
    fn text(&mut self, key: &str, text: &str, origin: Origin) {
        if !self.keys.iter().any(|known| known.path == key) {
            return self.unknown(key, origin);
        }
        let typed = Value::deserialize(match toml::de::ValueDeserializer::parse(text) {
            Ok(value) => value,
            Err(_) => return self.put(key, Value::String(text.to_owned()), origin),
        });
        match typed {
            Ok(value) if read_one(key, &value).is_ok() => self.put(key, value, origin),
            // What is wrong in a list is in one of its items.
            Ok(value @ Value::Array(_)) => self.put(key, value, origin),
            _ => self.put(key, Value::String(text.to_owned()), origin),
        }
    }

    fn unknown(&mut self, key: &str, origin: Origin) {
        let remedy = match suggest(key, self.keys) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`kvd config explain` lists every key".to_owned(),
        };
        self.problem(origin, None, format!("unknown key `{key}`"), Some(remedy));
    }

    fn put(&mut self, key: &str, value: Value, origin: Origin) {
        match read_one(key, &value) {
            Ok(()) => {
                self.settings.insert(key.to_owned(), Setting { value, origin });
            }
            Err(message) => {
                let example = self.keys.iter().find(|known| known.path == key).map(|known| known.example.clone());
                let remedy = example.map(|example| format!("for example {key} = {example}"));
                self.problem(origin, Some(key), message, remedy);
            }
        }
    }

    /// The sum of the layers, or every problem met on the way.
    pub(super) fn finish(self) -> Result<(File, BTreeMap<String, Origin>), ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError { problems: self.problems });
        }
        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        for (key, setting) in self.settings {
            insert(&mut table, &key, setting.value);
            origins.insert(key, setting.origin);
        }
        let file = (Value::Table(table).try_into::<File>())
            .map_err(|error| ConfigError::one(Origin::Default, None, error.message().to_owned(), None))?;
        Ok((file, origins))
    }
}

/// Whether this key alone takes this value; the message of the refusal otherwise.
fn read_one(key: &str, value: &Value) -> Result<(), String> {
    let mut table = Table::new();
    insert(&mut table, key, value.clone());
    Value::Table(table).try_into::<File>().map(drop).map_err(|error| error.message().to_owned())
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.to_string()), Value::Float)
        }
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(name, value)| (name.get_ref().to_string(), plain(value.get_ref())));
            Value::Table(entries.collect())
        }
    }
}

/// Line and column (in characters), both from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
