#!/usr/bin/env python3
"""Mutates the ladder, the slot tables and recovery, one change at a time, and counts what unit tests, storage tests and the
simulation notice.

  tests/mutants.py [I/N]      every N-th mutant, from the I-th on (default 0/100); needs cargo-mutants, which lists them

Changes the sources in place and puts them back: run it in a checkout of its own. Prints one line of JSON; ends with 1 where
fewer than 90 % of the mutants that build are noticed. cargo-mutants' own runner knows the tests of one package only; the
simulation is another one.
"""
import json
import os
import subprocess
import sys
import time

LIST = ["cargo", "mutants", "--list", "--json", "--diff", "--package", "kvd-tiers"]
LIST += ["--file", "tiers/src/ladder/**", "--file", "tiers/src/nvme/**", "--file", "tiers/src/dram/**"]
LIST += ["--exclude", "**/tests/**", "--exclude", "**/tests.rs", "--exclude", "**/figures.rs"]
# What only asserts that the rest is right, and what only people read.
LIST += ["--exclude", "tiers/src/ladder/check.rs", "--exclude-re", "memory_bytes|::fmt|stats::|impl Debug|impl fmt"]
TEST = ["cargo", "test", "--quiet", "-p", "kvd-tiers", "-p", "kvd-tests"]
SETS = [["--lib"], ["--test", "storage"], ["--test", "sim"]]
ALL = ["--lib", "--test", "storage", "--test", "sim"]
SECONDS_MAX = 120


def run(arguments, seconds=None):
    try:
        done = subprocess.run(TEST + arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=seconds)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        # A loop that does not end is noticed by whoever waits.
        return False


def patch(mutant, reverse):
    # Its second line says in words what is changed, where git wants the file.
    lines = mutant["diff"].splitlines(keepends=True)
    diff = f"--- a/{mutant['file']}\n+++ b/{mutant['file']}\n" + "".join(lines[2:])
    arguments = ["git", "apply", "--unidiff-zero"] + (["--reverse"] if reverse else [])
    subprocess.run(arguments, input=diff.encode(), check=True)


def main():
    first, every = map(int, (sys.argv[1] if len(sys.argv) > 1 else "0/100").split("/"))
    os.chdir(os.path.dirname(os.path.abspath(__file__)) + "/..")
    os.environ.setdefault("KVD_SIM_SEEDS", "150")
    os.environ["RUST_BACKTRACE"] = "0"
    if subprocess.run(["git", "diff", "--quiet", "HEAD"]).returncode:
        sys.exit("mutants: the checkout has changes that are not committed")
    listed = json.loads(subprocess.run(LIST, stdout=subprocess.PIPE, check=True).stdout)
    mutants = listed[first::every]
    if not run(ALL):
        sys.exit("mutants: the tests fail without any change")
    noticed, missed, unviable = 0, [], 0
    for number, mutant in enumerate(mutants):
        started = time.monotonic()
        patch(mutant, reverse=False)
        try:
            if not run(["--no-run"] + ALL):
                unviable, verdict = unviable + 1, "does not build"
            elif all(run(one, SECONDS_MAX) for one in SETS):
                missed, verdict = missed + [mutant["name"]], "NOT NOTICED"
            else:
                noticed, verdict = noticed + 1, "noticed"
        finally:
            patch(mutant, reverse=True)
        seconds = time.monotonic() - started
        print(f"{number + 1}/{len(mutants)} {verdict} in {seconds:.0f} s: {mutant['name']}", file=sys.stderr, flush=True)
    report = {"shard": f"{first}/{every}", "listed": len(listed), "noticed": noticed, "missed": missed, "unviable": unviable}
    print(json.dumps(report))
    sys.exit(noticed < 0.9 * (noticed + len(missed)))


if __name__ == "__main__":
    main()
