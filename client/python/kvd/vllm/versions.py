"""Where vLLM's releases differ in what this package reads of them. Those that are named here ran with it, from the first to the last."""

import hashlib
import logging
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

logger = logging.getLogger("vllm.kvd")

#: The first and the last release.
FIRST, LAST = (0, 26), (0, 32)


class Unsupported(ValueError):
    """A vLLM, a model or a way to run it that cannot be described to kvd; says which, and what to do."""


def require_known(version: str) -> None:
    """Raises :class:`Unsupported` for a release that this package does not know: the next one may mean something else by the same call."""
    # Builds between two releases carry the number of the last one, or of the next.
    found = re.fullmatch(r"(\d+)\.(\d+)\.\d+(\.post\d+)?(\+[\w.]+)?", version)
    if found and FIRST <= (int(found[1]), int(found[2])) <= LAST:
        return
    first, last = (".".join(map(str, one)) for one in (FIRST, LAST))
    raise Unsupported(f"kvd.vllm knows vLLM {first} to {last}, and this is {version}: install one of these, or a kvd that knows it")


def cell_bytes(spec: "FullAttentionSpec") -> int:
    """Bytes of a token's key and value in one head."""
    # Since 0.28; before, pages were dense or quantized.
    return getattr(spec, "state_content_size_bytes", (spec.head_size + spec.head_size_v) * spec.dtype.itemsize)


def is_packed(spec: "FullAttentionSpec") -> bool:
    """Whether a page holds anything but one cell for each token and head."""
    # Since 0.28 and 0.29.
    if spec.kv_quant_mode.name not in ("NONE", "FP8_PER_TENSOR"):
        return True
    # Some backends have a plane of keys and one of values instead of heads, or contents of their own.
    if getattr(spec, "num_head_slots", None) is not None or getattr(spec, "state_content_bytes", None) is not None:
        return True
    slots, tokens = getattr(spec, "num_heads", spec.num_kv_heads), getattr(spec, "tokens_per_state", 1)
    dense = (spec.head_size + spec.head_size_v) * spec.dtype.itemsize
    return slots != spec.num_kv_heads or tokens != 1 or cell_bytes(spec) != dense or spec.page_size_padded is not None


def hash_tokens(config: "VllmConfig", caches: "KVCacheConfig", block_tokens: int) -> int:
    """Tokens of one of a request's block hashes."""
    # Part of the caches since 0.32; before, with one group, a block's.
    tokens: int = getattr(caches, "hash_block_size", None) or config.cache_config.block_size
    if block_tokens % tokens:
        raise Unsupported(f"vLLM hashes {tokens} tokens at a time and keeps blocks of {block_tokens}: choose a --block-size that fits")
    return tokens


def hash_seed() -> bytes:
    """Tells what vLLM's hashes begin with, and does not give it away; known in the scheduler's process, once it made its first hash."""
    from vllm.v1.core import kv_cache_utils

    return hashlib.blake2b(bytes(kv_cache_utils.NONE_HASH), digest_size=32).digest()


def warn_of_random_hashes(version: str) -> None:
    """Before 0.29 every vLLM drew what its hashes begin with, so that none had a name in common with another."""
    old = re.match(r"0\.2[678]\b", version)
    if old and "PYTHONHASHSEED" not in os.environ:
        logger.warning("vLLM %s names its blocks at random: set PYTHONHASHSEED, or nothing outlives this engine", version)
