#!/usr/bin/env bash
# Prepares a fresh Debian or Ubuntu for building kvd: a C and C++ compiler and libclang (for rocksdb and its bindings), and the
# pinned Rust toolchain through rustup.
set -euo pipefail

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

need=()
command -v cc >/dev/null || need+=(gcc libc6-dev)
command -v c++ >/dev/null || need+=(g++)
# Not libclang-cpp.so: that is another library, which many machines have without this one.
libclang=$(compgen -G '/usr/lib/llvm-*/lib/libclang[-.][0-9s]*' || compgen -G '/usr/lib/*/libclang[-.][0-9s]*' || true)
[ -n "$libclang${LIBCLANG_PATH:-}" ] || need+=(libclang-dev)
if [ "${#need[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || fail "missing ${need[*]}, and there is no apt-get here: install them with this system's package manager"
  if [ "$(id -u)" -eq 0 ]; then sudo=(); elif command -v sudo >/dev/null; then sudo=(sudo -n); else
    fail "missing ${need[*]}: run 'apt-get install ${need[*]}' as root"
  fi
  echo "setup: installing ${need[*]}" >&2
  "${sudo[@]}" apt-get update -qq && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${need[@]}" >/dev/null ||
    fail "could not install ${need[*]}: run 'apt-get update && apt-get install ${need[*]}' as root and try again"
fi

command -v cargo >/dev/null || fail "cargo not found: install Rust with rustup (https://rustup.rs), then open a new shell"
cargo --version >/dev/null || fail "the toolchain pinned in rust-toolchain.toml could not be used: run 'rustup toolchain install' in this folder"
