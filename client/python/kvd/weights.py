"""A digest of a model's weights: what two engines must share before one may use the other's blocks.

It is taken over the bytes of the files and not over a name, since weights change below a name. Files are large, so digests are kept
by the files' identity: device, inode, size, and the times of the last change of content and of inode.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from ._kvd import file_digest

#: What holds weights; where a folder has several kinds, the first is what engines load.
KINDS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
#: Digests that are kept, the newest ones.
KNOWN_MAX = 4096


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's folder that hold its weights, in the order of their names."""
    for kind in KINDS:
        if found := sorted(folder.glob(kind)):
            return found
    return []


def digest_of(files: list[Path], cache: Path | None = None) -> bytes:
    """32 bytes over names and contents of files; 10 GB that are not in the cache take a few seconds once they are in memory."""
    cache = cache or _default_cache()
    known = _read(cache)
    whole, changed = hashlib.blake2b(digest_size=32), False
    for path in files:
        stat = path.stat()
        identity = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        if identity not in known:
            known[identity] = file_digest(path).hex()
            changed = True
        whole.update(path.name.encode() + b"\0" + bytes.fromhex(known[identity]))
    if changed:
        _write(cache, known)
    return whole.digest()


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "kvd/weights.json"


def _read(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_text())
        return {key: value for key, value in known.items() if len(bytes.fromhex(value)) == 32}
    except (OSError, ValueError, AttributeError, TypeError):
        # It only saves time.
        return {}


def _write(cache: Path, known: dict[str, str]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
            json.dump(dict(list(known.items())[-KNOWN_MAX:]), file)
        os.replace(file.name, cache)
    except OSError:
        pass
