#!/usr/bin/env bash
# The whole test set. Tests that lack hardware or an engine append a line to the skip list instead of passing silently.
set -euo pipefail
cd "$(dirname "$0")/.."

KVD_SKIP_LIST=$(mktemp)
export KVD_SKIP_LIST

# Also after a test that failed: what was skipped is part of the result. The exit status stays that of cargo.
finish() {
  status=$?
  if [ -s "$KVD_SKIP_LIST" ]; then
    echo "Skipped:"
    sort -u "$KVD_SKIP_LIST" | sed 's/^/  /' || true
  fi
  rm -f "$KVD_SKIP_LIST"
  exit "$status"
}
trap finish EXIT

# A real engine too; where none is to be had, its tests are skipped.
export KVD_ENGINES=${KVD_ENGINES:-short}

cargo build --workspace --bins
cargo test --workspace --no-fail-fast
