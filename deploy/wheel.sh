#!/usr/bin/env bash
# Builds the Python wheel `kvd` for this machine into a folder (dist), and prints its path. With the profile of the workspace, so
# that little compiles twice.
#
#   deploy/wheel.sh [FOLDER]
set -euo pipefail
out=$(realpath -m "${1:-dist}")
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvd
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

fail() { printf 'wheel: %s\n' "$*" >&2; exit 1; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || fail "python3 is older than 3.10, or not there"
venv=$cache/venv-wheel
mkdir -p "$cache"
(
  flock 9
  [ -x "$venv/bin/maturin" ] && exit
  python3 -m venv --clear "$venv" || fail "no environment could be made: install python3-venv"
  "$venv/bin/pip" install --quiet 'maturin>=1.9,<2'
) 9>"$venv.lock" >&2

rm -f "$out"/kvd-*.whl
"$venv/bin/maturin" build --quiet --profile dev --compatibility linux --manifest-path client/python/Cargo.toml --out "$out" >&2
ls "$out"/kvd-*.whl
