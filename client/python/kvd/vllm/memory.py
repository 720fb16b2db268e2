"""vLLM's KV cache as kvd's layout: by the strides that its tensors have, never by a guess."""

from typing import TYPE_CHECKING

import kvd

from .identity import Unsupported

if TYPE_CHECKING:
    import torch

    from .identity import Form


class Memory:
    """One tensor per layer, logically `[blocks, heads, tokens, key and value]`, in host memory or a GPU's."""

    def __init__(self, form: "Form", caches: "dict[str, torch.Tensor]", num_blocks: int) -> None:
        if set(caches) != set(form.layers):
            raise Unsupported(f"vLLM has caches for {sorted(caches)} where it described {sorted(form.layers)}")
        tensors = [caches[name] for name in form.layers]
        if len(devices := {tensor.device for tensor in tensors}) != 1:
            raise Unsupported(f"vLLM's caches lie on {len(devices)} devices, not on one")
        (device,) = devices
        #: `None` where vLLM computes on CPUs.
        self._device: torch.device | None = None if device.type == "cpu" else device
        memories = [_memory(name, tensor, form, num_blocks) for name, tensor in zip(form.layers, tensors, strict=True)]
        ordinal = None if self._device is None else self._device.index
        self.layout = kvd.Layout(form.group, form.shard, form.block_tokens, memories, device=ordinal, owner=tensors)

    def mark(self) -> kvd.Mark:
        """Behind all that vLLM's thread, which calls this, has begun so far."""
        if self._device is None:
            return self.layout.mark()
        import torch

        return self.layout.mark(torch.cuda.current_stream(self._device).cuda_stream)


def _memory(name: str, tensor: "torch.Tensor", form: "Form", num_blocks: int) -> kvd.PlaneMemory:
    wanted = (num_blocks, form.heads, form.block_tokens, form.content)
    strides = tensor.stride() if tuple(tensor.shape) == wanted else (0, 0, 0, 0)
    blocks, heads, tokens, cells = strides
    if cells != 1 or (form.heads_in_one_piece and tokens != form.content):
        piece = "each head of a block" if form.heads_in_one_piece else "the key and value of a token in each head"
        raise Unsupported(
            f"the cache of {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, not {wanted} with {piece} in one piece: "
            "kvd does not guess at another layout"
        )
    element = tensor.element_size()
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return kvd.PlaneMemory(
        tensor.data_ptr(),
        (last + 1) * element,
        block_stride=blocks * element,
        head_stride=heads * element,
        token_stride=tokens * element,
        kv_stride=form.key * element,
    )
