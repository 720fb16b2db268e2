#!/usr/bin/env python3
"""NIXL's OBJ backend: objects of 1 MiB to a store and back, beside `kvd bench object` on the same server.

    object.py --endpoint http://127.0.0.1:8333 --bucket kvd --like report-of-kvd.json

The credentials are those of the environment. One request of NIXL carries as many objects as the daemon and a plain client have
bytes under way in requests, and the next is posted when it is done; its backend works them off on as many threads as it is
given. It is measured with as many threads as kvd has requests at a time, with its own default, and with one thread a core; the
reader of the report takes the fastest. Every byte that comes back is compared. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time

# NIXL logs to standard output, which is for the report: what is logged goes to standard error.
REPORT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy  # noqa: E402
from nixl_cu12._api import nixl_agent, nixl_agent_config  # noqa: E402

OBJECT_BYTES = 1 << 20
SIZES = {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
# NIXL has no callback: it is asked, at pauses that cost a hundredth of what a transfer of this size takes.
LOOK_EVERY = 0.0002
STANDSTILL_MAX = 120


def main():
    args = arguments()
    with open(args.like, encoding="utf-8") as file:
        case = next(case for case in json.load(file)["cases"] if case["record_bytes"] == OBJECT_BYTES)
    objects = max(1, args.bytes // OBJECT_BYTES)
    at_once = max(case["put"]["requests_at_once"], case["get"]["requests_at_once"])
    runs = []
    for threads in sorted({at_once, max(1, os.cpu_count() // 2), os.cpu_count()}):
        runs.append(measured(args, objects, threads))
    json.dump({"nixl": "1.5.1", "object_bytes": OBJECT_BYTES, "objects": objects, "rounds": args.rounds,
               "load_average": os.getloadavg()[0], "threads": runs}, REPORT, indent=2)
    print(file=REPORT, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--like", required=True, help="the report of kvd bench object")
    parser.add_argument("--bytes", type=size, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def size(text):
    for unit, factor in SIZES.items():
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def measured(args, objects, threads):
    agent = nixl_agent(f"bench-{threads}", nixl_agent_config(backends=[]))
    agent.create_backend("OBJ", {
        "access_key": os.environ["AWS_ACCESS_KEY_ID"],
        "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "bucket": args.bucket,
        "endpoint_override": args.endpoint,
        "scheme": "http" if args.endpoint.startswith("http://") else "https",
        "use_virtual_addressing": "false",
        "num_threads": str(threads),
    })
    rows = numpy.arange(objects, dtype=numpy.uint64)[:, None] * numpy.uint64(0x9E3779B97F4A7C15)
    columns = numpy.arange(OBJECT_BYTES // 8, dtype=numpy.uint64)[None, :]
    source = rows + columns * numpy.uint64(0xBF58476D1CE4E5B9)
    target = numpy.zeros_like(source)
    puts, gets = [], []
    for number in range(args.rounds + 1):
        names = [f"nixl-{os.getpid()}-{threads}-{number}-{index}" for index in range(objects)]
        put = transferred(agent, "WRITE", source, names)
        target.fill(0)
        get = transferred(agent, "READ", target, names)
        if not numpy.array_equal(source, target):
            sys.exit("object.py: NIXL said that it is done, and wrong bytes came back")
        # The first one warms up, as on the other side.
        if number > 0:
            puts.append(put)
            gets.append(get)
    return {"threads": threads, "put": way(puts), "get": way(gets)}


def way(runs):
    return {
        "gb_per_second": round(statistics.median(run[0] for run in runs), 3),
        "cpu_seconds_per_gb": round(statistics.median(run[1] for run in runs), 3),
        "runs": [round(run[0], 3) for run in runs],
    }


def transferred(agent, operation, memory, names):
    """All objects in one request: the backend's threads take one after the other, so none of them is ever without work."""
    start = memory.ctypes.data
    local = [(start + index * OBJECT_BYTES, OBJECT_BYTES, 0, "") for index in range(len(names))]
    remote = [(0, OBJECT_BYTES, index, name) for index, name in enumerate(names)]
    registered = [agent.register_memory(local, "DRAM"), agent.register_memory(remote, "OBJ")]
    handle = agent.initialize_xfer(operation, registered[0].trim(), registered[1].trim(), agent.name)
    cpu, started = time.process_time(), time.perf_counter()
    state = agent.transfer(handle)
    while state == "PROC":
        time.sleep(LOOK_EVERY)
        if time.perf_counter() - started > STANDSTILL_MAX:
            sys.exit("object.py: NIXL does not come to an end")
        state = agent.check_xfer_state(handle)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if state != "DONE":
        sys.exit(f"object.py: NIXL says {state}")
    agent.release_xfer_handle(handle)
    for one in registered:
        agent.deregister_memory(one)
    gigabytes = memory.nbytes / 1e9
    return gigabytes / seconds, cpu / gigabytes


if __name__ == "__main__":
    main()
