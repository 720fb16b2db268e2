"""A vLLM engine that is asked line by line: ask.py MODEL CONNECTOR [OPTIONS]

CONNECTOR is what --kv-transfer-config takes, or null. OPTIONS are those of vLLM's class LLM, as an object of JSON. Its dtype is float32
where none is given: in bfloat16 a computed and a cached prefix differ by rounding within vLLM itself. Each line of standard input is
one object of JSON:

  {"seed": 7, "prompt_tokens": 2200, "tokens": 24}   a prompt drawn from the seed; the answer has tokens (greedy), cached (tokens of
                                                     the prompt that were not computed) and wall_s, ttft_s
  {"counted": true}                                  vLLM's counters of kvd's work: by name, and behind a slash by outcome
  {"forget": true}                                   vLLM's own prefix cache is emptied; the answer is {"forgotten": true}

Answers are lines that begin with "ANSWER ".
"""

import json
import os
import random
import sys
import time

# vLLM reads them when it is imported.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(name, value)

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig


def start(model: str, connector: dict | None, options: dict) -> LLM:
    given = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 4096,
        "max_num_seqs": 8,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "seed": 0,
        **options,
    }
    if connector is not None:
        given["kv_transfer_config"] = KVTransferConfig(**connector)
    return LLM(model=model, **given)


def ask(engine: LLM, order: dict) -> dict:
    draw = random.Random(order["seed"])
    prompt = [draw.randrange(3, 32000) for _ in range(order["prompt_tokens"])]
    sampling = SamplingParams(temperature=0, max_tokens=order["tokens"], ignore_eos=True, detokenize=False)
    begun = time.perf_counter()
    (answer,) = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    return {
        "tokens": list(answer.outputs[0].token_ids),
        "cached": answer.num_cached_tokens,
        "wall_s": time.perf_counter() - begun,
        "ttft_s": getattr(answer.metrics, "first_token_latency", None),
    }


def forget(engine: LLM) -> dict:
    until = time.monotonic() + 10
    # Blocks that are still being stored are in use.
    while not engine.reset_prefix_cache():
        assert time.monotonic() < until, "blocks stay in use"
        time.sleep(0.05)
    return {"forgotten": True}


def counted(engine: LLM) -> dict:
    ours = [metric for metric in engine.get_metrics() if metric.name.startswith("vllm:kvd_")]
    named = {"/".join([metric.name, *([metric.labels["outcome"]] if "outcome" in metric.labels else [])]): metric for metric in ours}
    return {name: metric.value for name, metric in named.items()}


def main() -> None:
    engine = start(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]) if sys.argv[3:] else {})
    print("ANSWER " + json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = forget(engine) if "forget" in order else counted(engine) if "counted" in order else ask(engine, order)
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
