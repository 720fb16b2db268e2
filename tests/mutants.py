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
import resource
import signal
import subprocess
import sys
import time

LIST = ["cargo", "mutants", "--list", "--json", "--diff", "--package", "kvd-tiers"]
LIST += ["--file", "tiers/src/ladder/**", "--file", "tiers/src/nvme/**", "--file", "tiers/src/dram/**"]
LIST += ["--exclude", "**/tests/**", "--exclude", "**/tests.rs", "--exclude", "**/figures.rs"]
# What only asserts that the rest is right, and what only people read.
LIST += ["--exclude", "tiers/src/ladder/check.rs", "--exclude-re", "memory_bytes|::fmt|stats::|impl Debug|impl fmt"]
LIST += ["--exclude-re", r"(DramSpace|Extent|Heap|NvmeSpace|Order)::check\b|::check_loads"]
# No difference: flags and fields of a word that share no bit may as well be xored, and no planted bug is planted here.
LIST += ["--exclude-re", r"replace \| with \^", "--exclude-re", r"match guard cfg!\(kvd_bug = \"\w+\"\) with false"]
# Cheapest first: the simulation is built and run only for what the others let pass.
BOTH = ["-p", "kvd-tiers", "-p", "kvd-tests"]
SETS = [["-p", "kvd-tiers", "--lib"], BOTH + ["--test", "storage"], BOTH + ["--test", "sim"]]
# A machine that has other work as well may be this much slower than without a change.
SLOWER = 8
SECONDS_MIN = 60
# A loop that never ends may ask for memory as well.
MEMORY_MAX = 12 << 30


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))


def test(arguments, seconds=None):
    """Whether it succeeds; None where it did not end in time."""
    command = ["cargo", "test", "--quiet"] + arguments
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A session of its own: cargo alone would leave a test behind that does not end.
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=seconds and limit_memory, **quiet)
    try:
        return child.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def build(one):
    return test(["--no-run"] + one)


def measure():
    """Seconds that each set may take."""
    limits = []
    for one in SETS:
        if not build(one):
            sys.exit("mutants: the tests do not build without any change")
        started = time.monotonic()
        if not test(one, 3600):
            sys.exit("mutants: the tests fail without any change")
        limits.append(max(SECONDS_MIN, SLOWER * (time.monotonic() - started)))
    return limits


def judge(limits):
    """Who notices what stands there now: "lib", "storage", "sim", None for nobody; or "does not build"."""
    for one, limit in zip(SETS, limits):
        if not build(one):
            return "does not build"
        passed = test(one, limit)
        name = one[-1].lstrip("-")
        if not passed:
            # A loop that does not end is noticed by whoever waits.
            return name if passed is False else f"{name}, which does not end"
    return None


def patch(mutant, reverse):
    # Its second line says in words what is changed, where git wants the file.
    lines = mutant["diff"].splitlines(keepends=True)
    diff = f"--- a/{mutant['file']}\n+++ b/{mutant['file']}\n" + "".join(lines[2:])
    arguments = ["git", "apply", "--unidiff-zero"] + (["--reverse"] if reverse else [])
    subprocess.run(arguments, input=diff.encode(), check=True)


def main():
    first, every = map(int, (sys.argv[1] if len(sys.argv) > 1 else "0/100").split("/"))
    os.chdir(os.path.dirname(os.path.abspath(__file__)) + "/..")
    os.environ.setdefault("KVD_SIM_SEEDS", "1000")
    os.environ["RUST_BACKTRACE"] = "0"
    # Whoever ends it wants the sources back as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants: ended"))
    if subprocess.run(["git", "diff", "--quiet", "HEAD"]).returncode:
        sys.exit("mutants: the checkout has changes that are not committed")
    listed = json.loads(subprocess.run(LIST, stdout=subprocess.PIPE, check=True).stdout)
    mutants = listed[first::every]
    limits = measure()
    noticed, missed, unviable = 0, [], 0
    for number, mutant in enumerate(mutants):
        started = time.monotonic()
        patch(mutant, reverse=False)
        try:
            verdict = judge(limits)
        finally:
            patch(mutant, reverse=True)
        if verdict is None:
            missed, verdict = missed + [mutant["name"]], "NOT NOTICED"
        elif verdict == "does not build":
            unviable += 1
        else:
            noticed, verdict = noticed + 1, f"noticed by {verdict}"
        seconds = time.monotonic() - started
        print(f"{number + 1}/{len(mutants)} {verdict} in {seconds:.0f} s: {mutant['name']}", file=sys.stderr, flush=True)
    report = {"shard": f"{first}/{every}", "listed": len(listed), "noticed": noticed, "missed": missed, "unviable": unviable}
    print(json.dumps(report))
    sys.exit(noticed < 0.9 * (noticed + len(missed)))


if __name__ == "__main__":
    main()
