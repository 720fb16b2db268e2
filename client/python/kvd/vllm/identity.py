"""What vLLM's blocks are: the namespace in which they may be exchanged.

Everything that changes their bytes is part of it; what only changes where they lie is not.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import kvd
from kvd import weights

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig


class Unsupported(ValueError):
    """A model or a way to run it that cannot be described to kvd; says which, and what to do."""


@dataclass(frozen=True)
class Identity:
    """What the scheduler and the workers of one engine agree on."""

    group: kvd.Group
    shard: kvd.Shard
    block_tokens: int
    heads: int
    #: Elements of a token's key, and of its value, in one head.
    key_elements: int
    value_elements: int
    model: str
    weights_digest: bytes
    kv_dtype: str
    scale_scheme: str
    hash_algorithm: str

    def namespace(self, hash_seed: bytes, generation: int) -> kvd.Namespace:
        """The namespace; weights that were updated in place `generation` times are others."""
        digest = self.weights_digest
        if generation:
            digest = hashlib.blake2b(digest + generation.to_bytes(8, "little"), digest_size=32).digest()
        return kvd.Namespace(
            self.model,
            weights_digest=digest,
            kv_dtype=self.kv_dtype,
            scale_scheme=self.scale_scheme,
            hash_algorithm=self.hash_algorithm,
            hash_seed=hash_seed,
            block_tokens=self.block_tokens,
            groups=[self.group],
        )


def identity_of(config: "VllmConfig", caches: "KVCacheConfig") -> Identity:
    """Describes an engine's blocks, or raises :class:`Unsupported`."""
    spec = _only_group(config, caches)
    heads, per_token = spec.num_kv_heads, spec.state_content_size_bytes
    layers = len(caches.kv_cache_groups[0].layer_names)
    plane = kvd.Plane(
        "kv",
        layers=layers,
        heads=heads,
        unit_bytes=spec.block_size * per_token,
        unit_order="token_kv_dim",
        k_dim=spec.head_size,
        v_dim=spec.head_size_v,
    )
    scheme = "" if spec.kv_quant_mode.value == 0 else spec.kv_quant_mode.name.lower()
    return Identity(
        group=kvd.Group([plane]),
        shard=kvd.Shard((0, layers), (0, heads)),
        block_tokens=spec.block_size,
        heads=heads,
        key_elements=spec.head_size,
        value_elements=spec.head_size_v,
        model=_bounded(config.model_config.model, 256),
        weights_digest=_weights(config),
        kv_dtype=str(spec.dtype).removeprefix("torch."),
        scale_scheme=scheme,
        hash_algorithm=f"vllm-{config.cache_config.prefix_caching_hash_algo}",
    )


def _only_group(config: "VllmConfig", caches: "KVCacheConfig") -> "FullAttentionSpec":
    """The one kind of cache that is known so far. What is not known is refused, and never guessed."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    parallel = config.parallel_config
    if parallel.tensor_parallel_size * parallel.pipeline_parallel_size != 1:
        raise Unsupported("kvd.vllm runs with one worker per engine so far: set tensor and pipeline parallel sizes to 1")
    if config.lora_config is not None:
        raise Unsupported("kvd.vllm cannot tell two LoRA adapters of one name apart so far: run it without --enable-lora")
    groups = caches.kv_cache_groups
    specs = [group.kv_cache_spec for group in groups]
    if len(specs) != 1 or type(specs[0]) is not FullAttentionSpec:
        kinds = ", ".join(type(spec).__name__ for spec in specs)
        raise Unsupported(f"kvd.vllm knows models with full attention alone so far, not {kinds}")
    spec = specs[0]
    plain = spec.tokens_per_state == 1 and spec.num_heads == spec.num_kv_heads and spec.page_size_padded is None
    dense = spec.state_content_size_bytes == (spec.head_size + spec.head_size_v) * spec.dtype.itemsize
    if not (plain and dense):
        raise Unsupported("kvd.vllm knows dense pages of keys and values so far, not packed or padded ones")
    # Not every vLLM has it.
    if getattr(config.cache_config, "calculate_kv_scales", False):
        raise Unsupported("scales of keys and values that are measured while serving are not the same in two engines")
    if not config.cache_config.enable_prefix_caching:
        raise Unsupported("without prefix caching vLLM hashes no blocks: leave --enable-prefix-caching on")
    return spec


def _weights(config: "VllmConfig") -> bytes:
    """Over the weights and over what vLLM makes of them."""
    model, extra = config.model_config, config.kv_transfer_config.kv_connector_extra_config
    if given := extra.get("weights_digest"):
        files = bytes.fromhex(given)
        if len(files) != 32:
            raise Unsupported("weights_digest has 64 hexadecimal digits")
    elif config.load_config.load_format == "dummy":
        files = b"dummy" + str(model.seed).encode()
    else:
        files = weights.digest_of(_weight_files(model.model, model.revision))
    about = model.hf_config.to_dict()
    # Where the files lie does not change a byte of a block.
    about.pop("_name_or_path", None)
    made = {"config": about, "dtype": str(model.dtype), "quantization": str(model.quantization)}
    text = json.dumps(made, sort_keys=True, default=str).encode()
    return hashlib.blake2b(files + text, digest_size=32).digest()


def _weight_files(model: str, revision: str | None) -> list[Path]:
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception as error:
            raise Unsupported(f"the weights of {model} are not found ({error}): give weights_digest") from error
    if files := weights.weight_files(folder):
        return files
    raise Unsupported(f"{folder} holds no weights that kvd knows: give weights_digest in kv_connector_extra_config")


def _bounded(name: str, most: int) -> str:
    """A name for people, kept within its bound: the digest tells models apart."""
    encoded = name.encode()
    return name if len(encoded) <= most else encoded[-most:].decode(errors="ignore")
