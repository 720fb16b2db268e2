"""What vLLM's blocks are: the form in which they lie in memory, and the namespace in which they may be exchanged.

Everything that changes their bytes is part of the namespace; what only changes where they lie is not. The scheduler's side names the
namespace and tells the workers: some models change their configuration when they are loaded.
"""

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvd
from kvd import weights

from . import versions
from .versions import Unsupported

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig


#: Ways of guessing tokens that keep no blocks of their own.
WITHOUT_BLOCKS = ("ngram", "suffix")


@dataclass(frozen=True)
class Form:
    """A block: what both sides read from vLLM's description of its cache."""

    group: kvd.Group
    shard: kvd.Shard
    block_tokens: int
    #: Names of the layers, in the order of the record.
    layers: tuple[str, ...]
    heads: int
    #: Elements of a token's key, and of its key and value, in one head.
    key: int
    content: int
    #: Nothing is known of the order inside a head's part of a block: it is copied as it lies.
    heads_in_one_piece: bool


@dataclass(frozen=True)
class Name:
    """The namespace, but for the form."""

    model: str
    digest: bytes
    kv_dtype: str
    scale_scheme: str
    hash_algorithm: str
    hash_seed: bytes

    @property
    def hash_bytes(self) -> int:
        return 16 if "xxhash" in self.hash_algorithm else 32

    def namespace(self, form: Form) -> kvd.Namespace:
        return kvd.Namespace(
            self.model,
            weights_digest=self.digest,
            kv_dtype=self.kv_dtype,
            scale_scheme=self.scale_scheme,
            hash_algorithm=self.hash_algorithm,
            hash_seed=self.hash_seed,
            block_tokens=form.block_tokens,
            groups=[form.group],
        )

    def with_weights(self, mark: bytes) -> "Name":
        """The namespace of weights that were updated in place: `mark` is theirs alone, drawn when they were."""
        return replace(self, digest=_digest(self.digest, mark))


def form_of(config: "VllmConfig", caches: "KVCacheConfig") -> Form:
    """Describes an engine's blocks, or raises :class:`Unsupported`."""
    from vllm.platforms import current_platform

    spec = _only_spec(config, caches)
    heads, layers = spec.num_kv_heads, tuple(caches.kv_cache_groups[0].layer_names)
    # How vLLM orders the bytes of a head on CPUs differs from processor to processor, and from one of its versions to the next.
    opaque = current_platform.is_cpu()
    plane = kvd.Plane(
        "kv",
        layers=len(layers),
        heads=heads,
        unit_bytes=spec.block_size * versions.cell_bytes(spec),
        unit_order="opaque" if opaque else "token_kv_dim",
        k_dim=spec.head_size,
        v_dim=spec.head_size_v,
    )
    return Form(
        group=kvd.Group([plane]),
        shard=kvd.Shard((0, len(layers)), (0, heads)),
        block_tokens=spec.block_size,
        layers=layers,
        heads=heads,
        key=spec.head_size,
        content=spec.head_size + spec.head_size_v,
        heads_in_one_piece=opaque,
    )


def name_of(config: "VllmConfig", caches: "KVCacheConfig") -> Name:
    """Names the namespace, or raises :class:`Unsupported`."""
    spec, cache = _only_spec(config, caches), config.cache_config
    quantized = spec.kv_quant_mode.value != 0
    return Name(
        # For people; where the model lies does not change a byte of it.
        model=str(config.model_config.architecture),
        digest=_digest(_weights(config), json.dumps(_about(config), sort_keys=True, default=str).encode()),
        kv_dtype=f"{cache.cache_dtype}/{spec.dtype}".removeprefix("auto/").replace("torch.", ""),
        scale_scheme=spec.kv_quant_mode.name.lower() if quantized else "",
        hash_algorithm=f"vllm-{cache.prefix_caching_hash_algo}",
        hash_seed=b"",
    )


def _only_spec(config: "VllmConfig", caches: "KVCacheConfig") -> "FullAttentionSpec":
    """The one kind of cache that is known so far. What is not known is refused, and never guessed."""
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        raise Unsupported("kvd.vllm runs with vLLM on NVIDIA's GPUs and on CPUs")
    if config.parallel_config.world_size != 1:
        raise Unsupported("kvd.vllm runs with one worker per engine so far: set all parallel sizes to 1")
    if config.lora_config is not None:
        raise Unsupported("kvd.vllm cannot tell two LoRA adapters of one name apart so far: run it without --enable-lora")
    if config.model_config.is_multimodal_model:
        raise Unsupported("kvd.vllm knows models of text alone so far: a name that a client gives an image is no digest of it")
    if (guessing := config.speculative_config) is not None and guessing.method not in WITHOUT_BLOCKS:
        raise Unsupported(
            f"kvd.vllm does not know the blocks of models that guess tokens so far ({guessing.method}): "
            f"{' and '.join(WITHOUT_BLOCKS)} guess without any"
        )
    specs = [group.kv_cache_spec for group in caches.kv_cache_groups]
    if len(specs) != 1 or type(specs[0]) is not FullAttentionSpec:
        kinds = ", ".join(type(spec).__name__ for spec in specs)
        raise Unsupported(f"kvd.vllm knows models with full attention alone so far, not {kinds}")
    spec = specs[0]
    if versions.is_packed(spec):
        raise Unsupported("kvd.vllm knows dense pages of keys and values so far, not packed or padded ones")
    # Not every vLLM has it.
    if getattr(config.cache_config, "calculate_kv_scales", False):
        raise Unsupported("scales of keys and values that are measured while serving are not the same in two engines")
    if not config.cache_config.enable_prefix_caching:
        raise Unsupported("without prefix caching vLLM hashes no blocks: leave --enable-prefix-caching on")
    return spec


def _about(config: "VllmConfig") -> dict[str, Any]:
    """What beside the weights decides the bytes of a block."""
    import vllm

    model = config.model_config
    described = model.hf_config.to_dict()
    described.pop("_name_or_path", None)
    return {
        "config": described,
        "dtype": str(model.dtype),
        # Some scale positions by the longest prompt.
        "max_model_len": model.max_model_len,
        "quantization": [str(model.quantization), str(getattr(model, "quantization_config", None))],
        "vllm": vllm.__version__,
        "kernels": _kernels(config),
    }


def _kernels(config: "VllmConfig") -> list[Any]:
    """What vLLM's kernels order a head's bytes by."""
    import torch
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.cpu._is_amx_tile_supported()]
    return sorted(backend.get_name() for backend in get_current_attn_backends(config))


def _weights(config: "VllmConfig") -> bytes:
    model, extra = config.model_config, config.kv_transfer_config.kv_connector_extra_config
    if given := extra.get("weights_digest"):
        digest = bytes.fromhex(given)
        if len(digest) != 32:
            raise Unsupported("weights_digest has 64 hexadecimal digits")
        return digest
    if config.load_config.load_format == "dummy":
        return _digest(b"dummy", str(model.seed).encode())
    return weights.digest_of(_weight_files(model.model, model.revision))


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


def _digest(*parts: bytes) -> bytes:
    """Over parts whose ends are part of it."""
    whole = hashlib.blake2b(digest_size=32)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()
