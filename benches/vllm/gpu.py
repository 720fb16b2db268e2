#!/usr/bin/env python3
"""What kvd does to the time to first token of a real vLLM on a GPU, beside other ways to keep its blocks and beside none.

Random weights in the shape of Llama 8B (131 072 bytes of keys and values for each token). For each system an engine computes the
prompts and stores them; then a fresh engine is asked each prompt once, which comes from outside, and twice more, which comes from its
own prefix cache. vLLM's own offloading dies with its engine: there the same engine is asked, after its prefix cache was emptied.
What a hit may cost is 1.05 times that engine's own hit and the bytes at the rate of one contiguous pinned copy.

  benches/vllm/gpu.py --kvd /path/to/kvd --systems kvd,killed,none,offloading --lengths 8000,32000,100000 --prompts 3
  benches/vllm/gpu.py --kvd /path/to/kvd --systems pegaflow --pegaflow /path/to/pegaflow-server-py

`killed` is kvd, killed and started again between the two engines. Packages are found by PYTHONPATH, vLLM's Python is this one. Writes
benches/results/DATE-vllm-gpu.json, or --out, and ends with 1 where a figure is not as required.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

from serving import Engine, GoneError, Server, finish, kvd, milliseconds

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TOKEN_BYTES = 32 * 8 * 2 * 128 * 2
OPTIONS = {
    "dtype": "bfloat16",
    "load_format": "dummy",
    "max_model_len": 131072,
    "max_num_batched_tokens": 16384,
    "gpu_memory_utilization": 0.6,
}
#: What is required: a hit to the engine's own and the copy of its bytes.
HIT_MAX = 1.05
#: The first of the drawn prompts of a length; those of the warm-up are nobody else's.
FIRST, WARM, WARM_TOKENS = 100, 900, 20000
#: One contiguous copy from pinned memory, the best of some: bytes per second.
COPY = """
import torch
host, there = (torch.empty(1 << 30, dtype=torch.uint8, **where) for where in ({"pin_memory": True}, {"device": "cuda"}))
times = []
for _ in range(5):
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record(); there.copy_(host, non_blocking=True); ended.record(); ended.synchronize()
    times.append(begun.elapsed_time(ended) / 1e3)
print((1 << 30) / min(times))
"""


class Prompts:
    """So many of each length, by turns."""

    def __init__(self, lengths: list[int], count: int) -> None:
        self.lengths = lengths
        self.all = [(length, FIRST + 1000 * at + number) for number in range(count) for at, length in enumerate(lengths)]

    def by_length(self, rows: list) -> dict[int, list]:
        return {length: [row for (of, _), row in zip(self.all, rows, strict=True) if of == length] for length in self.lengths}


def asked(engine: Engine, prompts: Prompts) -> list[dict]:
    """The first answers to them, from an engine that is warm."""
    engine.ask(WARM, WARM_TOKENS, 1)
    return [engine.ask(seed, length, 1) for length, seed in prompts.all]


def again(engine: Engine, prompts: Prompts) -> list[tuple[dict, dict]]:
    """Each prompt once, from outside, and from the engine's own cache: the better of two."""
    rows = []
    for length, seed in prompts.all:
        hit, own = engine.ask(seed, length, 1), [engine.ask(seed, length, 1) for _ in range(2)]
        rows.append((hit, min(own, key=lambda answer: answer["ttft_s"])))
    return rows


def told(prompts: Prompts, first: list[dict], rows: list[tuple[dict, dict]], copy_rate: float) -> list[dict]:
    firsts, found = prompts.by_length(first), []
    for length, pairs in prompts.by_length(rows).items():
        copied = length * TOKEN_BYTES / copy_rate
        found.append(
            {
                "tokens": length,
                "first_ms": milliseconds([answer["ttft_s"] for answer in firsts[length]]),
                "hit_ms": milliseconds([hit["ttft_s"] for hit, _ in pairs]),
                "own_ms": milliseconds([own["ttft_s"] for _, own in pairs]),
                "copy_ms": round(copied * 1e3, 1),
                "hit_to_own_and_copy": round(median(hit["ttft_s"] / (own["ttft_s"] + copied) for hit, own in pairs), 3),
                "cached_tokens": [hit["cached"] for hit, _ in pairs],
                "same_tokens": all(
                    one["tokens"] == hit["tokens"] == own["tokens"] for one, (hit, own) in zip(firsts[length], pairs, strict=True)
                ),
            }
        )
    return found


def pegaflow(program: Path, folder: Path) -> tuple[Server, dict]:
    command = [str(program), "--pool-size", "60gb", "--addr", "127.0.0.1:50055", "--http-addr", "127.0.0.1:9091"]

    def healthy() -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:9091/health", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    connector = {"kv_connector": "PegaKVConnector", "kv_connector_module_path": "pegaflow.connector", "kv_role": "kv_both"}
    return Server(command, folder / "pegaflow.log", healthy), connector


def offloading(bytes_: int) -> dict:
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"cpu_bytes_to_use": bytes_}}


def measure(name: str, given: argparse.Namespace, prompts: Prompts, folder: Path, copy_rate: float) -> list[dict]:
    model = folder / "model"

    def start(connector: dict | None) -> Engine:
        return Engine(sys.executable, os.environ.get("PYTHONPATH", ""), str(model), connector, OPTIONS, folder / f"vllm-{name}.log")

    def over_two(serve: Callable[[], tuple[Server, dict]], restarts: bool) -> list[dict]:
        server, connector = serve()
        with server, start(connector) as engine:
            first = asked(engine, prompts)
            if restarts:
                server.process.kill()
                server.process.wait()
        if restarts:
            server, connector = serve()
        with server, start(connector) as engine:
            engine.ask(WARM, WARM_TOKENS, 1)
            return told(prompts, first, again(engine, prompts), copy_rate)

    if name in ("kvd", "killed"):
        settings = [f"tiers.dram.capacity={given.gib}GiB", "tiers.nvme.enabled=false"]
        return over_two(lambda: kvd(given.kvd, folder, settings), restarts=name == "killed")
    if name == "pegaflow":
        return over_two(lambda: pegaflow(given.pegaflow, folder), restarts=False)
    with start(offloading(given.gib << 30) if name == "offloading" else None) as engine:
        first = asked(engine, prompts)
        if name == "offloading":
            engine.forget()
        return told(prompts, first, again(engine, prompts), copy_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="kvd,none,offloading", help="of kvd, killed, none, offloading, pegaflow")
    parser.add_argument("--lengths", default="8000,32000,100000", help="tokens of the prompts")
    parser.add_argument("--prompts", type=int, default=3, help="of each length")
    parser.add_argument("--kvd", type=Path, help="the program kvd")
    parser.add_argument("--pegaflow", type=Path, help="PegaFlow's program pegaflow-server-py")
    parser.add_argument("--gib", type=int, default=60, help="of host memory for each system")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    wanted = given.systems.split(",")
    if unknown := set(wanted) - {"kvd", "killed", "none", "offloading", "pegaflow"}:
        parser.error(f"no system is called {', '.join(sorted(unknown))}")
    if not given.kvd and {"kvd", "killed"} & set(wanted):
        parser.error("name the program kvd with --kvd")
    if not given.pegaflow and "pegaflow" in wanted:
        parser.error("name PegaFlow's program with --pegaflow")
    prompts = Prompts([int(length) for length in given.lengths.split(",")], given.prompts)
    folder = Path(tempfile.mkdtemp(prefix="kvd-bench-vllm-"))
    print(f"logs: {folder}", file=sys.stderr)
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(SHAPE))
    copy_rate = float(subprocess.run([sys.executable, "-c", COPY], check=True, stdout=subprocess.PIPE, text=True).stdout)
    systems: dict[str, list[dict] | dict] = {}
    for name in wanted:
        print(f"measuring {name}", file=sys.stderr)
        try:
            systems[name] = measure(name, given, prompts, folder, copy_rate)
        except GoneError as error:
            systems[name] = {"failed": str(error)}
    ours = [systems[name] for name in ("kvd", "killed") if name in systems]
    rows = [row for found in ours if isinstance(found, list) for row in found]
    within = all(isinstance(found, list) for found in ours)
    within &= all(row["hit_to_own_and_copy"] <= HIT_MAX and row["same_tokens"] for row in rows)
    report = {"copy_gb_per_second": round(copy_rate / 1e9, 2), "required": {"hit_to_own_and_copy_max": HIT_MAX}, "systems": systems}
    finish("gpu.py", "gpu", report, within if ours else None, given.out)


if __name__ == "__main__":
    main()
