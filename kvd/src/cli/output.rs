//! What a command shows: tables for people, JSON for programs, progress and questions on standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::exit::{Exit, Failure};

/// Whether standard output is JSON.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// As `--json` says.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether programs read this.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// One JSON object, or what `text` makes of it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, value).map_err(|error| Failure::from(io::Error::from(error)))?;
            writeln!(out)?;
        } else {
            let text = text(value);
            write!(out, "{text}{}", if text.ends_with('\n') || text.is_empty() { "" } else { "\n" })?;
        }
        Ok(())
    }

    /// Asks before something that cannot be taken back.
    ///
    /// # Errors
    /// The answer was no, or nobody is there to give one.
    pub fn confirm(self, yes: bool, question: &str) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        let denied =
            |message: &str| Err(Failure::new(Exit::Denied, message).remedy("give --yes to go on without a question"));
        if self.json || !io::stdin().is_terminal() {
            return denied("this cannot be taken back, and nobody is there to ask");
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { denied("not confirmed") }
    }

    /// A bar on standard error; nothing where no person looks.
    pub fn progress(self, total: u64, what: &str) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} eta {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }
}

/// A table in the house style; numbers stand to the right.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    // Plain text where it is piped, so that it can be cut and searched; lines only for eyes.
    let preset = if io::stdout().is_terminal() { presets::UTF8_FULL_CONDENSED } else { presets::NOTHING };
    table.load_preset(preset);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|text| {
            let number = text.starts_with(|c: char| c.is_ascii_digit());
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    if !io::stdout().is_terminal() {
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// `label  value` lines.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    rows.iter().map(|(label, value)| format!("{label:width$}  {value}\n")).collect()
}

pub use crate::config::rough as bytes;

/// Seconds for people.
pub fn seconds(value: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(value)).to_string()
}

/// Whether colours may be used on standard output (NO_COLOR, see no-color.org).
pub fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
