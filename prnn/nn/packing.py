"""Conversion between a PackedSequence and padded sequences with lengths.

torch's packing sorts the samples by decreasing length and drops the padding, because its kernels only ran dense,
shrinking batches. prnn's operator takes lengths, so a packed batch is unpacked, run, and packed again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def unpack(packed: PackedSequence) -> tuple[Tensor, Tensor | None]:
    """The padded sequences [T,B,I] in the packed (sorted) order, and their lengths [B] on the CPU.

    Lengths are None where all samples have the same length; nothing is copied in that case.
    """
    data, batch_sizes = packed.data, packed.batch_sizes
    steps = batch_sizes.numel()
    if int(batch_sizes[0]) == int(batch_sizes[-1]):
        return data.view(steps, -1, data.size(-1)), None
    return pad_packed_sequence(PackedSequence(data, batch_sizes))


def repack(output: Tensor, lengths: Tensor | None, packed: PackedSequence) -> PackedSequence:
    """Pack ``output`` [T,B,P], in the sorted order, exactly as ``packed`` is packed."""
    data = output.flatten(0, 1) if lengths is None else pack_padded_sequence(output, lengths).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def permute(state: tuple[Tensor, ...], order: Tensor | None) -> tuple[Tensor, ...]:
    """Reorder the samples of each [L*D,B,*] tensor; ``order`` [B] is None where there is nothing to do."""
    return state if order is None else tuple(tensor.index_select(1, order) for tensor in state)


def check_lengths(
    lengths: Tensor | list[int] | tuple[int, ...], steps: int, batch: int, device: torch.device
) -> Tensor | None:
    """``lengths`` as an integer tensor [B] on ``device``; None where no sample is shorter than T.

    Raises ValueError unless it holds B integers in 0..T. Under ``torch.compile`` the values are not checked, since no
    branch may depend on data, nor where ``vmap`` has batched them; a length above T acts as T, a negative one as 0.
    """
    try:
        tensor = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"lengths must be a tensor or a list of integers, got {lengths!r}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {tensor.dtype}")
    if tensor.shape != (batch,):
        raise ValueError(f"lengths must have shape [B] = [{batch}], one per sample, got {list(tensor.shape)}")
    if batch and not (torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(tensor)):
        low, high = torch.stack(torch.aminmax(tensor)).tolist()
        if low < 0 or high > steps:
            raise ValueError(f"lengths must be between 0 and the {steps} time steps of the input, got {low} to {high}")
        if low == steps:
            return None
    return tensor.to(device)


def clear_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero the steps of x [T,B,I] at or past each sample's length [B].

    The operator masks their gradient, but in the weight gradient, a sum over all steps, 0 * NaN would be NaN.
    """
    padding = torch.arange(x.size(0), device=x.device).unsqueeze(1) >= lengths
    return x.masked_fill(padding.unsqueeze(2), 0)


def check_resets(resets: Tensor, steps: int, batch: int, batch_first: bool) -> Tensor:
    """``resets`` as [T,B] bool, transposed if ``batch_first``. Raises ValueError for a wrong shape or dtype."""
    dims, expected = ("[B,T]", (batch, steps)) if batch_first else ("[T,B]", (steps, batch))
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets must be a bool tensor, got a {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise ValueError(f"resets must be a bool tensor, got {resets.dtype}")
    if resets.shape != expected:
        raise ValueError(f"resets must have shape {dims} = {list(expected)}, got {list(resets.shape)}")
    return resets.transpose(0, 1) if batch_first else resets
