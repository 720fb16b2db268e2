#!/bin/bash
# Plants each bug of the list below and asserts that the simulation finds it: a simulation that finds nothing proves nothing.
#
#   tests/sim/bugs.sh [BUG]...        KVD_BUG_SEEDS=n: seeds that each bug gets (default 2000)
#
# A bug is `cfg!(kvd_bug = "name")` in tiers/src, and only that crate is built with it: this script is also the
# compiler's wrapper, so that dependencies compile once and not once per bug.
set -euo pipefail

if [[ -n "${KVD_BUG_WRAPS:-}" ]]; then
    case " $* " in
        *" --crate-name kvd_tiers "*) exec "$@" --cfg "kvd_bug=\"$KVD_BUG_WRAPS\"" ;;
        *) exec "$@" ;;
    esac
fi

script=$(realpath "${BASH_SOURCE[0]}")
cd "${KVD_BUG_TREE:-$(dirname "$script")/../..}"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvd/target
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache}-bugs
export RUST_BACKTRACE=0
export KVD_SIM_SEEDS=${KVD_BUG_SEEDS:-2000} KVD_SIM_VIOLATIONS=1

# Named in the sources, so that no planted bug is forgotten here.
mapfile -t bugs < <(grep -rhoP 'kvd_bug = "\K[a-z_]+' tiers/src | sort -u)
if (($# > 0)); then bugs=("$@"); fi

missed=0
printf '%-24s %-8s %-8s %s\n' bug seed seconds 'first violation'
for bug in "${bugs[@]}"; do
    unset RUSTC_WORKSPACE_WRAPPER KVD_BUG_WRAPS
    cargo clean --quiet -p kvd-tiers
    export KVD_BUG_WRAPS=$bug RUSTC_WORKSPACE_WRAPPER=$script
    cargo test --quiet -p kvd-tests --test sim --no-run
    started=$SECONDS
    # An endless loop within one call would be a find as well.
    log=$(timeout 600 cargo test --quiet -p kvd-tests --test sim worlds_hold -- --nocapture 2>&1) && found= || found=yes
    seed=$(grep -oP -m1 'KVD_SIM_SEED=\K[0-9]+' <<<"$log" || true)
    what=$(grep -A1 -m1 'panicked at' <<<"$log" | tail -1 | cut -c1-110 || true)
    if [[ -z "$found" || -z "$seed" ]]; then
        missed=$((missed + 1))
        seed=- what='NOT FOUND'
    fi
    printf '%-24s %-8s %-8s %s\n' "$bug" "$seed" "$((SECONDS - started))" "$what"
done
# The next ordinary build must not find a planted bug in its cache.
unset RUSTC_WORKSPACE_WRAPPER KVD_BUG_WRAPS
cargo clean --quiet -p kvd-tiers
echo "${#bugs[@]} bugs planted, $missed not found"
((missed == 0))
