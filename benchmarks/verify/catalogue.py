"""Which checks there are: on a GPU all, in the interpreter those that it can do in reasonable time.

Each task compiles a few kernels of its own and has them do several sizes, so compiling, which takes most of the time on
a GPU, is shared out among processes and never done twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.verify import attention, head_loss, noise, samplers
from benchmarks.verify.measure import Measurement
from benchmarks.verify.samplers import Drawing
from maskgit_kernels.head_sample.choice import WAYS
from maskgit_kernels.philox import DROPOUT_ROUNDS, ROUNDS

OPERATORS = ("attention", "decode_step", "head_sample", "head_loss", "philox")


@dataclass(frozen=True)
class Task:
    """Checks that are made one after the other in the same process."""

    operator: str
    case: str  # what to call it if it raises
    run: Callable[[torch.device], Iterator[Measurement]]


def tasks(on_gpu: bool, quick: bool, operators: tuple[str, ...]) -> list[Task]:
    """What to do for some of OPERATORS, what takes longest first."""
    makers = {
        "attention": _attention_tasks,
        "decode_step": _decode_step_tasks,
        "head_sample": _head_sample_tasks,
        "head_loss": _head_loss_tasks,
        "philox": _philox_tasks,
    }
    return [task for operator in OPERATORS if operator in operators for task in makers[operator](on_gpu, quick)]


# head_dim, what multiplies, dropout. The first few have everything in them once: `quick` makes do with those.
_ATTENTIONS = [
    (48, "bf16", 0.1),
    (96, "fp16", 0.0),
    (16, "fp32", 0.3),
    (80, "tf32", 0.0),
    (128, "bf16", 0.0),
    (48, "fp32", 0.0),
    (48, "tf32", 0.1),
    (48, "fp16", 0.5),
    (48, "bf16", 0.0),
    (96, "bf16", 0.1),
    (80, "fp16", 0.1),
    (16, "bf16", 0.0),
    (128, "fp32", 0.1),
    (128, "tf32", 0.0),
    (80, "fp32", 0.0),
    (128, "fp16", 0.2),
]
_LENGTHS = ((257, 257), (1, 15), (15, 17), (17, 15), (63, 65), (65, 63), (257, 15), (1, 257))


def _attention_tasks(on_gpu: bool, quick: bool) -> Iterator[Task]:
    for number, (head_dim, arithmetic, dropout_p) in enumerate(_ATTENTIONS[:5] if quick else _ATTENTIONS):
        lengths = list(_LENGTHS)
        if not on_gpu:  # the longest once or twice
            lengths = [lengths[0]] * (number % 8 == 0) + [lengths[1 + number % 3], lengths[4 + number % 2]]
        if (arithmetic, dropout_p) == ("fp32", 0.0):  # else the gradients, which are 0, are rounding and nothing else
            lengths.append((1, 1))
        run = functools.partial(
            attention.check_attention,
            head_dim,
            arithmetic,
            dropout_p,
            (2, 3) if on_gpu else (1, 2) if lengths[0] != (257, 257) else (1, 1),
            tuple(lengths),
        )
        yield Task("attention", f"{arithmetic}, head_dim {head_dim}, dropout {dropout_p:g}", run)


def _decode_step_tasks(on_gpu: bool, quick: bool) -> Iterator[Task]:
    some, more = ((3, 65), (17, 257)) if on_gpu else ((2, 17), (3, 63))
    share = 0.1 if on_gpu else 0.6  # of more: the reference takes its time
    drawings = [  # and whether a position's logits lie apart in memory
        (Drawing("categorical", "log_prob", "bf16", 1025, some), False),
        (Drawing("categorical", "prob", "fp32", 129, some, guided=True, softmax_temperature=0.7), True),
        (Drawing("greedy", "log_prob", "fp16", 129, some), False),
        (Drawing("perturbed", "prob", "fp32", 129, some, choice_temperature=0.3), False),
        (Drawing("categorical", "log_prob", "fp32", 5, more, choice_temperature=0.0, share=share), False),
        (Drawing("categorical", "log_prob", "fp16", 1025, some, guided=True), False),
        (Drawing("categorical", "log_prob", "fp32", 1025, some, softmax_temperature=1.7), True),
        (Drawing("greedy", "prob", "bf16", 1025, some, guided=True), False),
        (Drawing("perturbed", "prob", "bf16", 1025, some, guided=True), False),
        (Drawing("perturbed", "prob", "fp16", 5, more, choice_temperature=0.0, share=share), True),
    ]
    for drawing, codes_first in drawings[:4] if quick else drawings:
        run = functools.partial(samplers.check_decode_step, drawing, codes_first)
        yield Task("decode_step", str(drawing), run)
    yield from _frequency_tasks("decode_step", on_gpu, quick)


def _head_sample_tasks(on_gpu: bool, quick: bool) -> Iterator[Task]:
    some, more, many = ((3, 65), (2, 257), 1025) if on_gpu else ((2, 17), (1, 65), 257)
    drawings = [  # the width of the hidden state, and the bias
        (Drawing("categorical", "log_prob", "bf16", many, some), 80, "position"),
        (Drawing("categorical", "prob", "tf32", 130, some, guided=True), 64, "code"),
        (Drawing("greedy", "log_prob", "fp32", 130, some), 80, "none"),
        (Drawing("perturbed", "prob", "fp16", 130, some, choice_temperature=0.3), 128, "code"),
        (Drawing("categorical", "log_prob", "fp32", many, some, softmax_temperature=0.7), 64, "code"),
        (Drawing("categorical", "log_prob", "fp16", 5, more, guided=True), 128, "none"),
        (Drawing("categorical", "log_prob", "tf32", many, some, choice_temperature=0.0), 80, "position"),
        (Drawing("greedy", "prob", "bf16", many, more, guided=True), 128, "position"),
        (Drawing("perturbed", "prob", "bf16", many, some, guided=True), 80, "position"),
    ]
    for drawing, width, bias in drawings[:4] if quick else drawings:
        for way in WAYS if drawing.draw != "perturbed" else ("product",):
            run = functools.partial(samplers.check_head_sample, drawing, width, bias, way)
            yield Task("head_sample", f"{drawing}, {way}", run)
    yield from _frequency_tasks("head_sample", on_gpu, quick)


def _head_loss_tasks(on_gpu: bool, quick: bool) -> Iterator[Task]:
    size, many, width = ((5, 63), 1025, 200) if on_gpu else ((2, 50), 257, 80)
    total = size[0] * size[1]
    losses = [
        ("bf16", many, width, "position", 0.1),
        ("fp32", 130, 48, "code", 0.0),
        ("tf32", 67, width, "none", 0.1),
        ("fp16", 130, 128, "position", 0.0),
        ("bf16", 5, 64, "code", 0.0),
        ("tf32", 130, 64, "position", 0.0),
        ("fp32", many, width, "position", 0.1),
        ("fp16", many, width, "none", 0.1),
    ]
    for arithmetic, num_codes, width, bias, smoothing in losses[:4] if quick else losses:
        counts = (0, 1, 15, 17, 65, total) if on_gpu else (0, 17, 65, total)
        run = functools.partial(head_loss.check_head_loss, arithmetic, size, num_codes, width, bias, smoothing, counts)
        yield Task("head_loss", f"{arithmetic}, V={num_codes}, bias: {bias}, smoothing {smoothing:g}", run)


def _frequency_tasks(operator: str, on_gpu: bool, quick: bool) -> Iterator[Task]:
    images = 64 if on_gpu else 8 if quick else 17
    for temperature in (1.0,) if quick else (1.0, 0.5):
        run = functools.partial(samplers.check_frequencies, operator, temperature, images)
        yield Task(operator, f"frequencies at temperature {temperature:g}", run)


def _philox_tasks(on_gpu: bool, quick: bool) -> Iterator[Task]:
    for rounds in (ROUNDS, DROPOUT_ROUNDS):
        yield Task("philox", f"words, {rounds} rounds", functools.partial(noise.check_words, rounds))
    yield Task("philox", "noise", noise.check_noise)
