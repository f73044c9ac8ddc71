"""What goes wrong in training, and how it is told from what doesn't: pure functions of figures, and their words.

Each returns a warning's text, or None where there is nothing to warn of. They look at what is validated and logged
anyway, so no step waits for them. docs/trouble.md says more about each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskgit.metrics import codebook_usage
from maskgit.training.settings import LoopConfig, TokenizerTraining, TrainingError, TransformerTraining

# --- before the first step --------------------------------------------------------------------------------------------

MOST_EPOCHS = 1000
"""Sources train for 300 epochs of ImageNet at most, small sets stand several hundred with augmentation. Beyond that a
network of millions of weights knows the images by heart."""
LENGTH = "--steps, or --minutes of `train.py model`"


def length_warnings(images: int, config: LoopConfig) -> list[str]:
    """What makes no sense about the length of a run over so many training images."""
    batch, steps = config.batch_size, config.steps
    epochs, one = steps * batch / images, math.ceil(images / batch)
    shown = f"{epochs:,.0f}" if epochs > 1 else f"{epochs:.2g}"
    run = f"{steps:,} steps of {batch} images are {shown} epochs of the {images:,} training images"
    found = []
    if batch > images:
        found.append(
            f"a step of {batch} images takes some of the {images:,} training images more than once: add images, or "
            f"lower --batch-size to {images} or less"
        )
    if epochs < 1:
        found.append(f"{run}, so that some are never seen: {one:,} would show each once ({LENGTH})")
    elif epochs > MOST_EPOCHS:
        found.append(
            f"{run}, which it will know by heart: add images, or take fewer, {100 * one:,} for 100 epochs ({LENGTH})"
        )
    return found


# --- while it trains --------------------------------------------------------------------------------------------------

SETTLING = 500
"""Steps in which a healthy run leaves the state that the warnings are about: the embedded networks need some 100."""
SETTLING_SHARE = 0.05
"""Likewise, as a share of a long run, whose networks are larger and whose learning rate is lower."""


def settled(step: int, config: LoopConfig) -> bool:
    """Whether a run has had the time to show whether it learns: at its end at the latest."""
    return step >= min(config.steps, max(SETTLING, 2 * config.warmup, int(SETTLING_SHARE * config.steps)))


COLLAPSED = 0.05
"""Of the codebook: with fewer codes in use, pictures are poor and tokens say little."""


def collapsed_codebook(used: float, perplexity: float, size: int) -> str | None:
    """Of the share of a codebook's `size` codes that held-out images use, and the perplexity of their tokens."""
    if min(used, perplexity / size) >= COLLAPSED:
        return None
    return (
        f"the codebook has collapsed: {used:.1%} of {size} codes are used, with a perplexity of {perplexity:.1f}; a "
        "lower --lr or a smaller --commitment may help"
    )


ONE_COLOUR = 0.1
"""Of the originals' contrast."""


def one_colour(pictures: Tensor, originals: Tensor) -> str | None:
    """Of reconstructions and their originals, float [B, 3, h, w] each: whether those have lost nearly all contrast.

    Contrast is the standard deviation of each picture's pixels, a mean over the pictures.
    """
    ours, theirs = (float(side.flatten(2).std(2).mean()) for side in (pictures, originals))
    if ours >= ONE_COLOUR * theirs:
        return None
    return (
        f"the reconstructions are of one colour each: they have {ours / theirs:.1%} of the originals' contrast; "
        "--pixel-loss l2 or another --lr may help"
    )


FEW_CODES = 0.1
"""Of the perplexity of the originals' tokens. Confident decoding prefers what is frequent, so less is no fault yet."""


def few_codes(filled: Tensor, originals: Tensor, size: int) -> str | None:
    """Of tokens that a transformer filled in and those of the originals there, int64 of any shape."""
    ours, theirs = (codebook_usage(tokens, size)[1] for tokens in (filled, originals))
    if ours >= FEW_CODES * theirs:
        return None
    return (
        f"the fills repeat a few codes, as pictures of one colour do: their perplexity is {ours:.1f}, and that of the "
        f"originals {theirs:.1f}; it passes if the loss still falls, else --lr may be too low or too high"
    )


NO_BETTER = 0.99
"""Of the loss of a guess."""


def guess_by_frequency(seen: Tensor, tokens: Tensor, codes: int) -> float:
    """The loss at `tokens` of who only knows how often each of so many codes is among those `seen`; int64 each."""
    counts = torch.bincount(seen.flatten(), minlength=codes).double() + 1  # none is impossible
    return -float((counts / counts.sum()).log()[tokens.flatten()].mean())


def nothing_learned(loss: float, guess: float, whose: str) -> str | None:
    """Of a validation's loss, and the loss of a guess, which is described."""
    if loss < NO_BETTER * guess:
        return None
    return (
        f"nothing has been learned yet: the loss is {loss:.4g}, and {guess:.4g} of {whose}; "
        "--lr may be too low or too high, or --steps too few"
    )


class Checked(NamedTuple):
    """A validation, and the training before it."""

    step: int
    validated: float
    """What the run is judged by: the lower, the better."""
    trained: float
    """Mean of the training loss since the validation before."""


RISEN, FALLEN = 1.05, 0.98
"""Of the best validation, and of the training loss before it: single ones are noisy by a percent or so."""
RISING = 3
"""Validations in a row behind the best one."""


def overfitting(checks: Sequence[Checked], name: str, advice: str) -> str | None:
    """Of all validations so far: whether held-out images get worse while those trained on get better."""
    best = min(checks, key=lambda check: check.validated)
    after = [check for check in checks if check.step > best.step]
    if len(after) < RISING or any(check.validated <= RISEN * best.validated for check in after[-RISING:]):
        return None
    if not after[-1].trained < FALLEN * best.trained:
        return None
    return (
        f"overfitting: {name} of the held-out images has risen from {best.validated:.4g} at step {best.step} to "
        f"{after[-1].validated:.4g}, while the training loss fell from {best.trained:.4g} to {after[-1].trained:.4g}; "
        f"the checkpoint of step {best.step} is kept; {advice}"
    )


# --- out of memory ----------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU's memory, or of the machine's, for which PyTorch has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def out_of_memory_said(config: LoopConfig, device: torch.device, processes: int = 1) -> Iterator[None]:
    """Within, being out of memory is a TrainingError that says which options take less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        import psutil  # comes with Accelerate

        on_gpu, part = device.type == "cuda", config.batch_size // processes // config.accumulate
        size = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
        raise TrainingError(
            f"out of memory: a step of {config.batch_size} images, {part} at a time, takes more than {device} has free "
            f"of its {size / 2**30:.1f} GiB: "
            f"{', '.join(less_memory(config, processes))}"
        ) from error


def less_memory(config: LoopConfig, processes: int = 1) -> list[str]:
    """The options that make a run take less memory, those first that cost least."""
    share, found = config.batch_size // processes, []
    if config.precision == "float32":
        found.append("--precision bf16")
    if (parts := next((n for n in range(config.accumulate + 1, share + 1) if share % n == 0), None)) is not None:
        found.append(f"--accumulate {parts} (the same step, in more parts)")
    if isinstance(config, TransformerTraining):
        if not config.activation_checkpointing:
            found.append("--activation-checkpointing")
        if processes > 1 and not config.fsdp:
            found.append("--fsdp")
    whole = " (of `train.py model`: --tokenizer-batch-size)" if isinstance(config, TokenizerTraining) else ""
    return [*found, f"or a lower --batch-size{whole}" if share > 1 else "or a smaller --model or --image-size"]
