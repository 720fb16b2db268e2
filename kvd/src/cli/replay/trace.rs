//! Traces in Mooncake's format: one request per line, the ids of its blocks chained (equal id, equal prefix).

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;

use serde::Deserialize;

use crate::cli::exit::{Exit, Failure};

/// The conversation trace of Mooncake (FAST '25), see benches/data/traces/README.md.
const BUILT_IN: &[u8] = include_bytes!("../../../../benches/data/traces/conversation.jsonl");

/// Longest line, so that a wrong file ends in an error and not in memory.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Most requests of one trace.
const REQUESTS_MAX: usize = 10_000_000;

/// One request.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(in crate::cli) struct Request {
    /// Ids of the blocks of its prompt, in order.
    pub hash_ids: Vec<u64>,
    /// Tokens of its prompt.
    pub input_length: u64,
}

/// What a trace file holds.
#[derive(Debug)]
pub(in crate::cli) struct Trace {
    /// In the order of the file.
    pub requests: Vec<Request>,
}

impl Trace {
    /// Reads `path`, or the built-in trace; at most `limit` requests.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no request: the message names it.
    pub(in crate::cli) fn open(path: Option<&Path>, limit: Option<usize>) -> Result<Self, Failure> {
        match path {
            None => Self::read(Cursor::new(BUILT_IN), "the built-in trace", limit),
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path)
                    .map_err(|error| Failure::new(Exit::Usage, format!("{name} cannot be read: {error}")))?;
                Self::read(BufReader::new(file), &name, limit)
            }
        }
    }

    fn read(mut from: impl BufRead, name: &str, limit: Option<usize>) -> Result<Self, Failure> {
        let limit = limit.unwrap_or(REQUESTS_MAX).min(REQUESTS_MAX);
        let wrong = |number: usize, what: String| {
            Failure::new(Exit::Usage, format!("{name}, line {number}: {what}"))
                .remedy("expected one JSON object per line with input_length and hash_ids (Mooncake's format)")
        };
        let mut requests = Vec::new();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let mut bounded = std::io::Read::take(&mut from, LINE_BYTES_MAX as u64);
            if requests.len() == limit || bounded.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() == LINE_BYTES_MAX {
                return Err(wrong(number, format!("longer than {LINE_BYTES_MAX} bytes")));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let request = serde_json::from_slice(&line).map_err(|error| wrong(number, error.to_string()))?;
            requests.push(request);
        }
        Ok(Self { requests })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_built_in_trace_is_the_published_one() {
        let trace = Trace::open(None, None).expect("it is built in");
        assert_eq!(trace.requests.len(), 12_031);
        assert_eq!(trace.requests.iter().map(|request| request.hash_ids.len()).sum::<usize>(), 288_500);
        // With room for everything a block hits exactly if it was seen before.
        let mut seen = HashSet::new();
        let hits = trace.requests.iter().flat_map(|request| &request.hash_ids).filter(|id| !seen.insert(**id)).count();
        assert_eq!(hits, 105_710);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let text = "{\"input_length\": 5, \"hash_ids\": [1]}\n\nnonsense\n";
        let error = Trace::read(Cursor::new(text), "x.jsonl", None).expect_err("the third line is wrong");
        assert_eq!(error.code, Exit::Usage);
        assert!(error.message.starts_with("x.jsonl, line 3: "), "{}", error.message);
    }
}
