"""vLLM's KV cache as kvd's layout: by the strides that its tensors have, never by a guess."""

from typing import TYPE_CHECKING

import kvd

from .identity import Unsupported

if TYPE_CHECKING:
    import torch

    from .identity import Identity


def layout_of(identity: "Identity", caches: "dict[str, torch.Tensor]", num_blocks: int) -> kvd.Layout:
    """One tensor per layer, logically `[blocks, heads, tokens, key and value]`, in any order in memory."""
    memories = [_memory(name, tensor, identity, num_blocks) for name, tensor in caches.items()]
    return kvd.Layout(identity.group, identity.shard, identity.block_tokens, memories, owner=list(caches.values()))


def _memory(name: str, tensor: "torch.Tensor", identity: "Identity", num_blocks: int) -> kvd.PlaneMemory:
    if tensor.device.type != "cpu":
        raise Unsupported(f"kvd.vllm runs with vLLM on CPUs so far, not on {tensor.device.type}")
    heads, tokens, content = identity.heads, identity.block_tokens, identity.key_elements + identity.value_elements
    wanted = (num_blocks, heads, tokens, content)
    if tuple(tensor.shape) != wanted or tensor.stride(3) != 1:
        raise Unsupported(
            f"the cache of {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, not {wanted} with keys and values "
            "side by side: kvd does not guess at another layout"
        )
    element = tensor.element_size()
    blocks, of_heads, of_tokens, _ = (stride * element for stride in tensor.stride())
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return kvd.PlaneMemory(
        tensor.data_ptr(),
        (last + 1) * element,
        block_stride=blocks,
        head_stride=of_heads,
        token_stride=of_tokens,
        kv_stride=identity.key_elements * element,
    )
