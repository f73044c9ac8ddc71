"""The LM head, the loss and their gradients in PyTorch: logits for some rows at a time, used up before the next."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits at a time: on a CPU few, so that they stay in its caches; on a GPU enough to keep it busy.
_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**26


def head_loss_eager(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counted: Tensor,
    hits_among: Tensor,
    label_smoothing: float,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `operator.head_loss_operator`; the arguments are validated in `head_loss`.

    Where the host may look, what is counted is computed and nothing else. Elsewhere all rows are, and what is not
    counted is then left out.

    Raises:
        ValueError: a counted position whose target is not a code, where the host may look.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    num_codes, looks = len(weight), may_look(hidden.device)
    loss, hits = hidden.new_zeros((), dtype=dtype), targets.new_zeros(())
    dhidden = hidden.new_zeros(hidden.shape if gradients else 0)
    dweight = hidden.new_zeros(weight.shape if gradients else 0, dtype=dtype)
    dbias = hidden.new_zeros(bias.shape if gradients and bias is not None else 0, dtype=dtype)
    all_hidden, all_targets, all_counted, all_among = (x.flatten(0, 1) for x in (hidden, targets, counted, hits_among))
    for numbers, positions in _chunks(counted, num_codes, looks):
        rows = all_hidden.index_select(0, numbers)  # [rows, D]
        target = all_targets[numbers]  # [rows]
        is_code = (target >= 0) & (target < num_codes)
        among = all_among[numbers]
        skipped = None if looks else ~all_counted[numbers]
        if skipped is not None:
            rows, among = rows.masked_fill(skipped[:, None], 0), among & ~skipped  # rows may hold NaN there
        elif not is_code.all():
            wrong = int(target[~is_code][0])
            raise ValueError(f"targets must be codes, below {num_codes}, where counted, but one of them is {wrong}")

        logits = F.linear(rows, weight).to(dtype)  # [rows, V]
        if bias is not None:
            logits += bias.index_select(0, positions) if bias.dim() == 2 else bias
        top, guess = logits.max(-1)  # [rows] each; of equals the first code
        hits += ((guess == target) & among).sum()
        column = target.clamp(0, num_codes - 1)[:, None]  # [rows, 1]
        target_logit = logits.gather(1, column)[:, 0].where(is_code, math.nan)
        mean = logits.mean(-1) if label_smoothing else None
        dlogits = torch.softmax(logits, -1)  # [rows, V]
        del logits
        # One pass over the logits fewer than log_softmax, whose exponentials would have to be taken next.
        log_total = -dlogits.gather(1, guess[:, None])[:, 0].log()  # of exp(logit - top), from 0 to log V
        losses = (1 - label_smoothing) * (top - target_logit) + log_total
        if mean is not None:
            losses += label_smoothing * (top - mean)
        loss += losses.sum() if skipped is None else losses.masked_fill(skipped, 0).sum()
        if not gradients:
            continue

        if label_smoothing:
            dlogits -= label_smoothing / num_codes
        dlogits.scatter_add_(1, column, is_code.to(dtype)[:, None] * (label_smoothing - 1))
        if skipped is not None:
            dlogits.masked_fill_(skipped[:, None], 0)
        factors = dlogits.to(weight.dtype)
        dhidden.flatten(0, 1).index_copy_(0, numbers, factors @ weight)
        if factors.dtype == dtype:
            dweight.addmm_(factors.T, rows)
        else:
            dweight += factors.T @ rows
        if bias is not None and bias.dim() == 1:
            dbias += dlogits.sum(0)
        elif bias is not None and looks:
            dbias.index_add_(0, positions, dlogits)
        elif bias is not None:  # on a GPU, index_add_ would add in any order
            images_first = dlogits.unflatten(0, (-1, len(hidden)))  # [positions, B, V]
            dbias[positions[:: len(hidden)]] = images_first.sum(1)
    return loss, hits, dhidden, dweight, dbias


def may_look(device: torch.device) -> bool:
    """Whether the host may read what is on a device: elsewhere it would have to wait for it."""
    return device.type == "cpu"


def _chunks(counted: Tensor, num_codes: int, looks: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to compute: their numbers image * N + position, and their positions, int64 [rows] each, in positions' order.

    Where the host may look, these are the counted ones. Elsewhere all, and those of a position are in one chunk.
    """
    batch, length = counted.shape
    if not counted.numel():
        return iter(())
    if looks:
        positions, images = counted.T.nonzero(as_tuple=True)
        rows = max(1, _CPU_CHUNK // num_codes)
    else:
        all_rows = torch.arange(batch * length, device=counted.device)
        positions, images = all_rows // batch, all_rows % batch
        rows = max(1, _GPU_CHUNK // (num_codes * batch)) * batch
    return zip((images * length + positions).split(rows), positions.split(rows), strict=True)
