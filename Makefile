# Everything a user or developer runs. Each target prepares what it needs by itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build wheel check test test-engines test-engine-releases lint demo torture sim corruption hostile deaths test-gpu bugs mutants bench bench-gpu bench-object

# One target directory for all checkouts: dependencies compile once.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kvd/target
KVD := $(CARGO_TARGET_DIR)/debug/kvd
CYCLES ?= 1000
SEEDS ?= 10000
BLOCK_BYTES ?= 65536
BYTES ?= 1GiB
SHARD ?= 0/100

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## Install what building needs (a C linker), or say what is missing
	@deploy/setup.sh

build: setup ## Build the program
	cargo build --workspace --bin kvd

wheel: setup ## Build the Python wheel into dist/
	@deploy/wheel.sh dist

check: setup ## Quick set: unit, model and tidy tests (under two minutes once built)
	cargo test --workspace --lib --bins --quiet
	cargo test --workspace --test tidy --quiet

test: setup ## Everything that needs no GPU, with a short form of vLLM; skipped tests are listed with their reason
	@deploy/run-tests.sh

test-engines: build ## Real vLLM on CPUs: tokens with and without kvd, after kills, out of every tier (some ten minutes)
	KVD_ENGINES=all cargo test --workspace --test engines -- --nocapture --test-threads=1

test-engine-releases: build ## The same tokens with every release of vLLM for CPUs (some 20 minutes, and 7 GB for each)
	KVD_ENGINES=releases cargo test --workspace --test engines releases -- --nocapture --test-threads=1

lint: setup ## Format and clippy, warnings are errors; licences and advisories where cargo-deny is installed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "lint: cargo deny check was skipped; install it with: cargo install cargo-deny --locked"; fi
	@if ruff --version >/dev/null 2>&1; then ruff check --quiet client/python tests/engines; \
	else echo "lint: ruff check was skipped; install it with: pip install ruff"; fi

demo: build ## Serve, replay a production trace, SIGKILL the daemon half way, show hits by tier
	$(KVD) demo --block-bytes $(BLOCK_BYTES)

torture: build ## Kill the daemon at random instants under load: make torture CYCLES=1000
	cargo test --workspace --test torture --no-run --quiet
	KVD_TORTURE_CYCLES=$(CYCLES) cargo test --workspace --test torture -- --nocapture

sim: setup ## Seeded simulation of ladder, slot table, mover and recovery: make sim SEEDS=10000
	KVD_SIM_SEEDS=$(SEEDS) cargo test --workspace --test sim -- --nocapture

corruption: build ## Every bit of headers and entries, 10^6 payload flips, tears and swaps, in a live daemon
	KVD_CORRUPTION=1 cargo test --workspace --test corruption -- --nocapture

hostile: build ## 10^6 mutated frames and ring entries, floods, slow peers, segments cut short
	KVD_HOSTILE=1 cargo test --workspace --test hostile -- --nocapture

deaths: build ## Engines killed and stopped in the middle of copies, daemons that stand still (some ten minutes)
	KVD_DEATHS=1 cargo test --workspace --test deaths -- --nocapture --test-threads=1

test-gpu: build ## Layouts, flips and engines on a GPU, beside the same on CPUs; without a GPU it says so
	KVD_GPU_ALONE=1 cargo test --workspace --test gpu -- --nocapture --test-threads=1

bugs: setup ## Plant each known bug and see whether the simulation finds it
	tests/sim/bugs.sh

mutants: setup ## Mutate ladder, slot tables and recovery, see what the tests notice: make mutants SHARD=0/100
	tests/mutants.py $(SHARD)

bench: build ## The figures of this machine: match, copy, NVMe beside fio, memory and recovery
	@status=0; for bench in match copy nvme recover; do \
	echo "$(KVD) bench $$bench"; $(KVD) bench $$bench || status=$$?; done; exit $$status

bench-gpu: build ## The figures of this machine's GPU: bus, other tensor parallel sizes, an engine's start beside 60 GiB
	@status=0; for bench in hbm ranks join; do \
	echo "$(KVD) bench $$bench"; $(KVD) bench $$bench || status=$$?; done; exit $$status

bench-object: build ## The object tier on a SeaweedFS server, beside a plain client and NIXL: make bench-object BYTES=1GiB
	KVD=$(KVD) BYTES=$(BYTES) benches/object.sh
