"""Engines and the servers that they find their prompts in, for the benches beside this file."""

import atexit
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
#: An engine that says nothing for so long hangs.
ANSWER_S_MAX, SERVER_READY_S = 240, 120


class GoneError(Exception):
    """A process has ended or hangs."""


class Engine:
    """A vLLM that is asked prompts by their seeds. `options` are those of its class `LLM`."""

    def __init__(self, python: str, packages: str, model: str, connector: dict | None, options: dict, log: Path) -> None:
        command = [python, str(ROOT / "tests/engines/ask.py"), model, json.dumps(connector), json.dumps(options)]
        # Unasked, vLLM binds its threads and keeps a core free, or two where it has any connector: on two cores it computes on one of
        # them without and on both with one.
        environment = {**os.environ, "PYTHONPATH": packages, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.log = log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"), text=True, env=environment, start_new_session=True
        )
        self.answer()

    def answer(self) -> dict:
        assert self.process.stdout
        patience = threading.Timer(ANSWER_S_MAX, self.kill)
        patience.start()
        try:
            for line in self.process.stdout:
                if line.startswith("ANSWER "):
                    return json.loads(line.removeprefix("ANSWER "))
        finally:
            patience.cancel()
        raise GoneError(f"an engine has ended, or said nothing for {ANSWER_S_MAX} s: see {self.log}")

    def ask(self, seed: int, prompt_tokens: int, tokens: int) -> dict:
        return self.order({"seed": seed, "prompt_tokens": prompt_tokens, "tokens": tokens})

    def forget(self) -> None:
        """Empties its own prefix cache."""
        self.order({"forget": True})

    def order(self, order: dict) -> dict:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        """All of its processes: the engine's own has the same output, and would keep who reads it waiting."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.close()
            self.process.wait(timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()


class Server:
    """A program that serves engines, until the block ends."""

    def __init__(self, command: list, log: Path, ready: Callable[[], bool], environment: dict | None = None) -> None:
        environment = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT, env=environment)
        until = time.monotonic() + SERVER_READY_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise GoneError(f"{command[0]} is not ready: see {log}")
            time.sleep(0.1)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def connector_of(socket: Path) -> dict:
    return {
        "kv_connector": "KvdConnector",
        "kv_connector_module_path": "kvd.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"socket": str(socket)},
    }


def kvd(program: Path, folder: Path, settings: list[str]) -> tuple[Server, dict]:
    """A daemon whose data is in this folder and in memory, also for one that was there before; both are removed in the end."""
    arena = Path("/dev/shm") / folder.name
    atexit.register(shutil.rmtree, arena, ignore_errors=True)
    atexit.register(shutil.rmtree, folder / "kvd", ignore_errors=True)
    settings = [f"data_dir={folder / 'kvd'}", f"tiers.dram.path={arena}", *settings]
    command = [str(program), "serve", *(word for one in settings for word in ("--set", one))]
    path = folder / "kvd/kvd.sock"

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    return Server(command, folder / "kvd.log", listens), connector_of(path)


def lmcache(python: str, folder: Path) -> tuple[Server, dict]:
    port = 26555

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    if listens():
        raise GoneError(f"somebody else listens on port {port}")
    command = [str(Path(python).parent / "lmcache"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--l1-size-gb", "2", "--eviction-policy", "LRU", "--chunk-size", "128"]
    connector = {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
    }
    return Server(command, folder / "lmcache.log", listens), connector


def milliseconds(values: list[float]) -> float:
    return round(1e3 * median(values), 1)


def finish(script: str, name: str, found: dict, within: bool | None, out: Path | None) -> NoReturn:
    """Writes and prints a report, and ends with 1 where a figure is not as required; `within` is `None` where none was measured."""
    report = {
        "command": " ".join([f"benches/vllm/{script}", *(Path(word).name if "/" in word else word for word in sys.argv[1:])]),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release()},
        **found,
        "within_required": within,
    }
    text = json.dumps(report, indent=1)
    out = out or ROOT / f"benches/results/{datetime.date.today()}-vllm-{name}.json"
    out.write_text(text + "\n")
    print(text)
    sys.exit(within is False)
