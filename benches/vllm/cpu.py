#!/usr/bin/env python3
"""What kvd does to the time to first token of a real vLLM on CPUs: bfloat16, 125 M parameters, 3 500 tokens, 42 MB for each prompt.

  hit    A fresh engine finds its prompts outside, one for each system: kvd, beside LMCache where --lmcache names a Python. One engine
         computes and stores, then a fresh one is asked each prompt once, which comes from outside, and twice more, which comes from
         its own prefix cache. What a hit costs is the difference of the two.
  miss   Nothing is ever found: two engines by turns, one with kvd and one without a connector, each pair with a prompt of its own.

  benches/vllm/cpu.py hit --prompts 8 --lmcache /path/to/python
  benches/vllm/cpu.py miss --pairs 20

Writes benches/results/DATE-vllm-cpu-WHAT.json, or --out, and ends with 1 where a figure is not as required. The engine is prepared by
deploy/engines.sh; the program kvd must be built. LMCache's Python has vLLM of the same version and lmcache 0.5.6.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from serving import ROOT, Engine, GoneError, Server, finish, kvd, lmcache, milliseconds

TOKENS = 3500
#: The first of the drawn prompts; those of the warm-up are nobody else's.
FIRST, WARM = 100, 900
#: What is required: a hit beyond the engine's own, in milliseconds; what a miss may cost, of its time.
HIT_MS_MAX, MISS_MAX = 20, 0.01
OPTIONS = {"dtype": "bfloat16"}
KVD = Path(os.environ.get("CARGO_TARGET_DIR") or Path.home() / ".cache/kvd/target") / "debug/kvd"
SETTINGS = ["tiers.dram.capacity=2GiB", "tiers.nvme.capacity=2GiB"]


def hits(start: Callable[[], Engine], prompts: int) -> dict:
    seeds = range(FIRST, FIRST + prompts)
    with start() as engine:
        filled = [engine.ask(seed, TOKENS, 4) for seed in seeds]
    rows = []
    with start() as engine:
        engine.ask(WARM, TOKENS, 4)
        # It maps memory, which is told by itself.
        first = engine.ask(seeds[0], TOKENS, 4)
        for seed in seeds[1:]:
            hit, own = engine.ask(seed, TOKENS, 4), [engine.ask(seed, TOKENS, 4) for _ in range(2)]
            rows.append((hit, min(own, key=lambda answer: answer["ttft_s"])))
    beyond = [hit["ttft_s"] - own["ttft_s"] for hit, own in rows]
    return {
        "computed_ms": milliseconds([answer["ttft_s"] for answer in filled]),
        "hit_ms": milliseconds([hit["ttft_s"] for hit, _ in rows]),
        "own_ms": milliseconds([own["ttft_s"] for _, own in rows]),
        "hit_minus_own_ms": milliseconds(beyond),
        "all_ms": [round(1e3 * value, 1) for value in beyond],
        "first_hit_ms": round(1e3 * first["ttft_s"], 1),
        "cached_tokens": [hit["cached"] for hit, _ in rows],
        "same_tokens_as_own_cache": all(hit["tokens"] == own["tokens"] for hit, own in rows),
    }


def misses(with_kvd: Engine, without: Engine, pairs: int) -> dict:
    for engine in (with_kvd, without):
        engine.ask(WARM, TOKENS, 32)
    rows = []
    for number in range(pairs):
        # The one that is first finds another machine than the other: by turns.
        order = [with_kvd, without] if number % 2 else [without, with_kvd]
        answers = {id(engine): engine.ask(FIRST + number, TOKENS, 32) for engine in order}
        rows.append((answers[id(with_kvd)], answers[id(without)]))
    assert not any(answer["cached"] for row in rows for answer in row), "nothing may be found"

    def added(name: str) -> dict:
        ratios = [ours[name] / theirs[name] - 1 for ours, theirs in rows]
        return {
            "with_kvd_ms": milliseconds([ours[name] for ours, _ in rows]),
            "without_ms": milliseconds([theirs[name] for _, theirs in rows]),
            "added": round(median(ratios), 4),
            "all": [round(ratio, 4) for ratio in ratios],
        }

    return {"ttft": added("ttft_s"), "request": added("wall_s"), "tokens": 32}


def measure_hits(given: argparse.Namespace, prepared: dict, folder: Path) -> tuple[dict, bool]:
    def system(python: str, packages: str, name: str, serve: Callable[[], tuple[Server, dict]]) -> dict:
        server, connector = serve()
        with server:
            log = folder / f"vllm-{name}.log"
            return hits(lambda: Engine(python, packages, prepared["model"], connector, OPTIONS, log), given.prompts)

    systems = {"kvd": system(prepared["python"], prepared["packages"], "kvd", lambda: kvd(KVD, folder, SETTINGS))}
    if given.lmcache:
        name = "lmcache 0.5.6"
        try:
            systems[name] = system(given.lmcache, "", "lmcache", lambda: lmcache(given.lmcache, folder))
        except GoneError as error:
            systems[name] = {"failed": str(error)}
    ours = systems["kvd"]
    within = ours["hit_minus_own_ms"] <= HIT_MS_MAX and ours["same_tokens_as_own_cache"]
    return {"required": {"hit_minus_own_ms_max": HIT_MS_MAX}, "systems": systems}, within


def measure_misses(given: argparse.Namespace, prepared: dict, folder: Path) -> tuple[dict, bool]:
    server, connector = kvd(KVD, folder, SETTINGS)
    python, packages, model = prepared["python"], prepared["packages"], prepared["model"]
    with (
        server,
        Engine(python, packages, model, connector, OPTIONS, folder / "vllm-kvd.log") as ours,
        Engine(python, packages, model, None, OPTIONS, folder / "vllm.log") as without,
    ):
        found = misses(ours, without, given.pairs)
    within = all(found[name]["added"] <= MISS_MAX for name in ("ttft", "request"))
    return {"required": {"added_max": MISS_MAX}, **found}, within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hit", "miss"])
    parser.add_argument("--prompts", type=int, default=8, help="of hit; the first one warms up")
    parser.add_argument("--pairs", type=int, default=20, help="of miss")
    parser.add_argument("--lmcache", metavar="PYTHON", help="one that has vLLM and lmcache 0.5.6")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    prepared = json.loads(subprocess.run([ROOT / "deploy/engines.sh"], check=True, stdout=subprocess.PIPE).stdout)
    folder = Path(tempfile.mkdtemp(prefix="kvd-bench-vllm-"))
    print(f"logs: {folder}", file=sys.stderr)
    found, within = (measure_hits if given.what == "hit" else measure_misses)(given, prepared, folder)
    finish("cpu.py", f"cpu-{given.what}", found, within, given.out)


if __name__ == "__main__":
    main()
