#!/usr/bin/env bash
# Mutates the ladder, the slot tables and recovery, one change at a time, and counts what unit tests, storage tests and the
# simulation notice.
#
#   tests/mutants.sh [I/N]     the I-th of N samples (default 0/20); needs cargo-mutants
#
# Prints one line of JSON; ends with 1 where fewer than 90 % of the mutants that build are noticed.
set -euo pipefail
cd "$(dirname "$0")/.."
shard=${1:-0/20}
command -v cargo-mutants >/dev/null || { echo "mutants: cargo-mutants is missing: cargo install cargo-mutants --locked" >&2; exit 2; }

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export KVD_SIM_SEEDS=${KVD_SIM_SEEDS:-150} RUST_BACKTRACE=0
# Errors of arithmetic that only tell something to people are no decision.
cargo mutants --in-place --no-shuffle --package kvd-tiers --test-package kvd-tiers,kvd-tests \
  --file 'tiers/src/ladder/**' --file 'tiers/src/nvme/**' --file 'tiers/src/dram/**' \
  --exclude '**/tests/**' --exclude '**/tests.rs' --exclude '**/figures.rs' \
  --exclude-re 'memory_bytes|::fmt|stats::|impl Debug|impl fmt' \
  --shard "$shard" --timeout 120 --build-timeout 300 --output "$out" \
  -- --lib --test storage --test sim >&2 && ended=0 || ended=$?
((ended == 0 || ended == 2 || ended == 3)) || exit "$ended"
count() { grep -c . "$out/mutants.out/$1.txt" || true; }
caught=$(($(count caught) + $(count timeout))) missed=$(count missed)
[ -s "$out/mutants.out/missed.txt" ] && { echo "Not noticed:"; sed 's/^/  /' "$out/mutants.out/missed.txt"; } >&2
echo "{\"shard\": \"$shard\", \"noticed\": $caught, \"missed\": $missed, \"unviable\": $(count unviable)}"
((caught * 10 >= (caught + missed) * 9))
