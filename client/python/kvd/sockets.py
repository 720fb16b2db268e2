"""Where the daemon listens."""

import os
from pathlib import Path


def default_socket() -> Path:
    """The socket of a daemon that was started without any configuration; ``KVD_SOCKET`` names another one."""
    if named := os.environ.get("KVD_SOCKET"):
        return Path(named)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "kvd/kvd.sock"
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "kvd/kvd.sock"
    if home := os.environ.get("HOME"):
        return Path(home) / ".local/state/kvd/kvd.sock"
    return Path(f"/var/tmp/kvd-{os.getuid()}/kvd.sock")
