"""One decoding step in PyTorch, as fast as it goes there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgit_kernels.decode_step.settings import Settings, State
from maskgit_kernels.philox import STREAM_CONFIDENCE, STREAM_TOKEN, exponential_noise

# Logits worked on at a time. On a CPU the generator's int64 state then stays in the cache, and larger is no faster;
# on a GPU, where each piece costs launches, it only bounds the memory.
_CPU_PIECE = 2**18
_GPU_PIECE = 2**24


def decode_step_eager(
    logits: Tensor, guidance_logits: Tensor | None, num_codes: int, state: State, settings: Settings
) -> tuple[Tensor, Tensor]:
    """See `decode_step`; the arguments are validated there."""

    def rows(images: Tensor, positions: Tensor) -> Tensor:
        z = logits[images, positions, :num_codes].to(torch.float32, copy=True)
        if guidance_logits is not None and settings.guidance_scale != 0:
            unguided = guidance_logits[images, positions, :num_codes].to(torch.float32)
            z = _guide(z, unguided, settings.guidance_scale)
        return z

    return decode_rows(rows, num_codes, state, settings)


def decode_rows(
    logits: Callable[[Tensor, Tensor], Tensor], num_codes: int, state: State, settings: Settings
) -> tuple[Tensor, Tensor]:
    """A decoding step that asks for its logits a few rows at a time; see `decode_step` for the rest.

    `logits` maps the images and positions of R rows, both int64 [R], to float32 [R, V], which will be overwritten.
    """
    tokens, masked, n_keep_masked, seeds = state
    batch, length = tokens.shape
    may_look = _host_may_look(tokens)
    if may_look:
        images, positions = masked.nonzero().unbind(1)  # [R] each, R masked positions in all
    else:
        # Counting the masked positions would stop the host until the GPU answers: work on all of them.
        every = torch.arange(batch * length, device=tokens.device)
        images, positions = every // length, every % length

    new_tokens = tokens.clone(memory_format=torch.contiguous_format)
    scores = torch.full(tokens.shape, torch.inf, device=tokens.device)
    rows_per_piece = max(1, (_CPU_PIECE if may_look else _GPU_PIECE) // num_codes)
    for b, n in zip(images.split(rows_per_piece), positions.split(rows_per_piece), strict=True):
        codes, certainty = _sample(logits(b, n), seeds[b], n, settings)
        known = ~masked[b, n]
        new_tokens[b, n] = torch.where(known, tokens[b, n], codes)
        # Known positions alone are infinitely confident, so they come last in the order below.
        scores[b, n] = certainty.clamp(max=torch.finfo(torch.float32).max).masked_fill(known, torch.inf)

    # A stable sort keeps the lower index first among equals, so exactly the promised number stays masked.
    order = scores.sort(dim=1, stable=True).indices  # [B, N]
    keep = torch.minimum(n_keep_masked, masked.sum(1))[:, None]  # [B, 1]
    still_masked = torch.zeros_like(masked, memory_format=torch.contiguous_format)
    still_masked.scatter_(1, order, torch.arange(length, device=tokens.device) < keep)
    return new_tokens, still_masked


def _host_may_look(tensor: Tensor) -> bool:
    """Whether the host can read the tensor's values without waiting for another device."""
    return tensor.device.type == "cpu"


def _guide(z: Tensor, unguided: Tensor, scale: float) -> Tensor:
    guided = torch.where(z.isinf(), z, z + scale * (z - unguided))
    return guided.masked_fill_(unguided == -torch.inf, -torch.inf)


def _sample(z: Tensor, seeds: Tensor, positions: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """A code int64 [R] for each row of z float32 [R, V] (overwritten), and its float32 [R] confidence."""
    step, tau = settings.step, settings.choice_temperature
    top = z.amax(1, keepdim=True)  # [R, 1]; NaN if the row holds one
    may_look = _host_may_look(z)
    if may_look and not bool((top > -torch.inf).all()):
        raise ValueError("logits hold NaN or leave no code possible (all -inf) at a masked position")
    z.sub_(top)
    if not may_look or bool(top.isinf().any()):
        # inf - inf: codes of infinite logit share all the probability. A GPU row that holds NaN or only -inf comes
        # here too and draws uniformly: nonsense in, but a valid code out.
        z.nan_to_num_(nan=0.0, neginf=-torch.inf)
    z.div_(settings.softmax_temperature)  # at most 0, so exp cannot overflow
    weights = z.exp()  # [R, V], proportional to the probabilities
    total = weights.sum(1)  # [R]

    if settings.draw == "perturbed":
        noise = exponential_noise(seeds, positions, step, STREAM_TOKEN, z.shape[1]).log_()
        perturbed = weights.div_(total[:, None]).sub_(noise, alpha=tau)
        best = perturbed.masked_fill_(z == -torch.inf, -torch.inf).max(1)
        return best.indices, best.values

    if settings.draw == "categorical":
        # A race of exponentials: argmax(p / e) is argmax(log p - log e), Gumbel-max without the outer logarithm.
        # Weights that underflow to 0 lose: the winner has at least 1 / 16.7, they would have at most 1e-38 * 2**33.
        codes = weights.div_(exponential_noise(seeds, positions, step, STREAM_TOKEN, z.shape[1])).argmax(1)
    else:
        codes = z.argmax(1)
    log_p = z.gather(1, codes[:, None])[:, 0] - total.log()
    certainty = log_p if settings.confidence == "log_prob" else log_p.exp()
    if tau > 0:
        certainty = certainty - tau * exponential_noise(seeds, positions, step, STREAM_CONFIDENCE, 1)[:, 0].log_()
    return codes, certainty
