"""One decoding step as it is meant: the readable specification that every implementation is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskgit_kernels.decode_step.settings import Settings
from maskgit_kernels.philox import STREAM_CONFIDENCE, STREAM_TOKEN, gumbel, random_words


def decode_step_reference(
    logits: Tensor,
    tokens: Tensor,
    masked: Tensor,
    n_keep_masked: Tensor,
    *,
    seeds: Tensor,
    num_codes: int | None = None,
    guidance_logits: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """See `decode_step` for the arguments, results and errors; this states what they mean, image by image.

    `options` are the fields of `Settings`.
    """
    settings = Settings(**options)
    scale, step, tau = settings.guidance_scale, settings.step, settings.choice_temperature
    tokens, still_masked = tokens.clone(), torch.zeros_like(masked)
    for b in range(len(tokens)):
        confidences = []
        positions = masked[b].nonzero().flatten().tolist()
        for n in positions:
            z = logits[b, n, :num_codes].float()  # [V]
            if guidance_logits is not None and scale != 0:
                z = _guide(z, guidance_logits[b, n, :num_codes].float(), scale)
            z = _settle_infinities(z)
            log_p = torch.log_softmax((z - z.max()) / settings.softmax_temperature, dim=0)  # [V]

            place = torch.tensor(n, device=z.device)
            token_noise = gumbel(random_words(seeds[b], place, step, STREAM_TOKEN, len(z)))  # [V]
            confidence_noise = gumbel(random_words(seeds[b], place, step, STREAM_CONFIDENCE, 1))[0]
            if settings.draw == "perturbed":
                score = log_p.exp() + tau * token_noise
                score[z == -torch.inf] = -torch.inf
                code = score.argmax()
                certainty = score[code]
            else:
                # Adding Gumbel noise to log-probabilities and taking the largest draws from the distribution.
                code = (log_p + token_noise).argmax() if settings.draw == "categorical" else log_p.argmax()
                certainty = log_p[code] if settings.confidence == "log_prob" else log_p[code].exp()
                certainty = certainty + tau * confidence_noise
            tokens[b, n] = code
            confidences.append(float(certainty))

        # The least confident stay masked; of equals, the lower index does.
        keep = min(max(int(n_keep_masked[b]), 0), len(positions))
        order = sorted(range(len(positions)), key=lambda i: (confidences[i], i))
        for i in order[:keep]:
            still_masked[b, positions[i]] = True
    return tokens, still_masked


def _guide(z: Tensor, unguided: Tensor, scale: float) -> Tensor:
    """z + scale * (z - unguided); infinite logits of z stay, and a code impossible in either set is impossible."""
    guided = torch.where(z.isinf(), z, z + scale * (z - unguided))
    return torch.where(unguided == -torch.inf, -torch.inf, guided)


def _settle_infinities(z: Tensor) -> Tensor:
    """Codes of infinite logit share all the probability. A row that holds NaN or only -inf is an error."""
    if z.isnan().any() or z.max() == -torch.inf:
        raise ValueError("logits hold NaN or leave no code possible")
    if z.max() == torch.inf:
        return torch.where(z == torch.inf, 0.0, -torch.inf)
    return z
