#!/usr/bin/env python3
"""Puts the report of `kvd bench object` and that of object.py together: how fast kvd is beside NIXL with as many requests at a
time, and beside the number of threads with which NIXL is fastest.

    ratios.py KVD.json [NIXL.json]

Prints one JSON object; ends with 1 when kvd is not as much faster as it should be.
"""

import json
import os
import sys

REQUIRED = 1.5


def main():
    report = {"machine": machine(), "kvd": read(sys.argv[1])}
    slow = []
    if len(sys.argv) > 2:
        report["nixl"] = nixl = read(sys.argv[2])
        case = next((case for case in report["kvd"]["cases"] if case["record_bytes"] == nixl["object_bytes"]), None)
        ratios = {}
        for way in ("put", "get") if case else ():
            speed = case[way]["kvd"]["gb_per_second"]
            equal = min(nixl["threads"], key=lambda run: abs(run["threads"] - case[way]["requests_at_once"]))
            fastest = max(nixl["threads"], key=lambda run: run[way]["gb_per_second"])
            ratio = speed / equal[way]["gb_per_second"]
            ratios[way] = {"ratio": round(ratio, 3), "nixl_threads": equal["threads"],
                           "ratio_to_fastest": round(speed / fastest[way]["gb_per_second"], 3),
                           "fastest_nixl_threads": fastest["threads"]}
            if ratio < REQUIRED:
                slow.append(f"{way} {ratio:.2f}")
        report["kvd_to_nixl"] = {"required_ratio": REQUIRED, "within_required": not slow, **ratios}
    json.dump(report, sys.stdout, indent=2)
    print()
    if slow:
        sys.exit(f"ratios: not as required beside NIXL: {', '.join(slow)}; at least {REQUIRED}")


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"cores": os.cpu_count(), "cpu": names[0] if names else "unknown", "kernel": os.uname().release}


if __name__ == "__main__":
    main()
