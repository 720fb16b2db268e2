"""vLLM's KV cache as kvd's layout: by the strides that its tensors have, never by a guess."""

from typing import TYPE_CHECKING

import kvd

from .identity import Unsupported

if TYPE_CHECKING:
    import torch

    from .identity import Form


def layout_of(form: "Form", caches: "dict[str, torch.Tensor]", num_blocks: int) -> kvd.Layout:
    """One tensor per layer, logically `[blocks, heads, tokens, key and value]`, a head of a block in one piece."""
    memories = [_memory(name, tensor, form, num_blocks) for name, tensor in caches.items()]
    return kvd.Layout(form.group, form.shard, form.block_tokens, memories, owner=list(caches.values()))


def _memory(name: str, tensor: "torch.Tensor", form: "Form", num_blocks: int) -> kvd.PlaneMemory:
    if tensor.device.type != "cpu":
        raise Unsupported(f"kvd.vllm runs with vLLM on CPUs so far, not on {tensor.device.type}")
    wanted = (num_blocks, form.heads, form.block_tokens, form.content)
    if tuple(tensor.shape) != wanted or tensor.stride()[2:] != (form.content, 1):
        raise Unsupported(
            f"the cache of {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, not {wanted} with each head of a block "
            "in one piece: kvd does not guess at another layout"
        )
    element = tensor.element_size()
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return kvd.PlaneMemory(
        tensor.data_ptr(),
        (last + 1) * element,
        block_stride=tensor.stride(0) * element,
        head_stride=tensor.stride(1) * element,
    )
