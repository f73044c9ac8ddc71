"""What a user waits for: inpainting, in images per second, and training, in steps per second."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from benchmarks.checks import check_decoding, check_inpainting
from benchmarks.harness import Case, Comparison, Maker, Target, Timing, WrongResultError, speedup
from benchmarks.models import PRECISIONS, decode_tokens, make_models, make_transformer, pictures_with_holes
from benchmarks.naive_transformer import NaiveTransformer
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.data.tokens import TokenSample
from maskgit.decoding import DecodeConfig
from maskgit.memory import keep_freed_memory
from maskgit.network.transformer import Transformer
from maskgit.pipeline import Precision
from maskgit.training.engine import Engine
from maskgit.training.optimizer import make_optimizer
from maskgit.training.settings import TransformerTraining
from maskgit.training.transformer import TransformerTask
from maskgit_kernels import backend

STEPS = 8
LONG_ROUNDS = 9  # of training steps that take many seconds
WARM_UP = 3  # training steps, in which a program gets hold of its memory
# What is promised of the lab's training step: how many times as fast, which implementation, over which.
LAB_TRAINING, OURS, BASELINE = 4.0, "bf16, compiled (torch)", "naive, float32"
# How far loss and gradient norm may be from those of the naive transformer in float32.
SAME_FIGURES = {"float32": 1e-3, "bf16": 0.05}


def inpaint_comparisons(setting: Setting) -> Iterator[Maker]:
    """Each model at several batch sizes; `lab_baseline` has the lab's eight images, on a CPU a minute's work."""
    return _each_model(inpaint_comparison, setting)


def decoding_comparisons(setting: Setting) -> Iterator[Maker]:
    """As `inpaint_comparisons`."""
    return _each_model(decoding_comparison, setting)


def _each_model(comparison: Callable[[str, int, Setting], Comparison], setting: Setting) -> Iterator[Maker]:
    batches = {"embedded": (1, 8), "lab": (1,), "maskgit-256": (1,)}
    if setting.on_gpu:
        batches = dict.fromkeys(batches, (1, 8, 64))
    for name in batches:
        for batch in batches[name]:
            yield functools.partial(comparison, name, batch, setting)


def inpaint_comparison(name: str, batch: int, setting: Setting) -> Comparison:
    """`MaskGIT.inpaint` from pictures to pictures, at both precisions, with each implementation that runs here."""
    models = make_models(name, setting.device, setting.quick)
    images, holes = pictures_with_holes(batch, models["float32"].tokenizer.config.image_size)
    cases = []
    for precision, model in models.items():
        for kernels in setting.backends():
            inpaint = functools.partial(model.inpaint, images, holes, steps=STEPS, batch_size=batch)
            run = functools.partial(_with_kernels, kernels, inpaint)
            verify = functools.partial(_with_kernels, kernels, functools.partial(check_inpainting, model))
            cases.append(Case(f"{precision} ({kernels})", run, verify))
    return Comparison(
        "inpaint",
        f"{name}, a quarter of the picture, {STEPS} steps, batch {batch}",
        cases,
        "float32 (torch)",
        item="image",
        items=batch,
        left_out=setting.left_out(),
    )


def decoding_comparison(name: str, batch: int, setting: Setting) -> Comparison:
    """The decoding loop alone, a picture of tokens from nothing; on a GPU as a CUDA graph and launch by launch.

    What the CPU does to pictures before and after takes most of `inpaint` for a small model on a fast GPU.
    """
    models = make_models(name, setting.device, setting.quick)
    config = DecodeConfig(steps=STEPS)
    cases = []
    for precision, model in models.items():
        ways = {"": model}
        if model.graphs is not None:
            ways = {", graph": model, ", launch by launch": _without_graphs(model)}
        for way, this in ways.items():
            for kernels in setting.backends():
                decode = functools.partial(decode_tokens, this, config, batch, None)
                run = functools.partial(_with_kernels, kernels, decode)
                verify = functools.partial(_with_kernels, kernels, functools.partial(check_decoding, this))
                cases.append(Case(f"{precision} ({kernels}){way}", run, verify))
    return Comparison(
        "decoding",
        f"{name}, {STEPS} steps, batch {batch}, tokens only",
        cases,
        cases[0].implementation,
        item="image",
        items=batch,
        left_out=setting.left_out(),
    )


def _without_graphs(model: MaskGIT) -> MaskGIT:
    other = copy.copy(model)
    other.graphs = None
    return other


def _with_kernels(kernels: str, run: Callable[[], object]) -> None:
    backend.use(kernels)
    try:
        run()
    finally:
        backend.use("auto")


# --- training ---------------------------------------------------------------------------------------------------------


class PlainEngine(Engine):
    """The optimizer's step as it is usually written."""

    def update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Clip and step, whatever the gradients are."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        optimizer.step()
        return norm


class Training(TransformerTask):
    """The step that `train.py transformer` makes, on random tokens instead of a data set.

    The learning rate is what `make_optimizer` starts with, 0, so the weights stay as they are however often it runs.
    """

    ENGINE = Engine

    def __init__(
        self,
        model: Transformer | NaiveTransformer,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        batch: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.config = TransformerTraining(precision=precision, compile=compiled)
        self.device = model.position_embedding.device
        self.engine = self.ENGINE(dataclasses.replace(self.config, device=str(self.device)))
        self.model = model  # type: ignore[assignment]
        self.wrapped = self.compiled(model) if compiled else model
        self.optimizers = [optimizer]
        config = model.config
        tokens = torch.randint(config.codebook_size, (batch, config.num_tokens))
        everywhere, labels = torch.ones_like(tokens, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64)
        self.batch = TokenSample(tokens, tokens, everywhere, labels)  # all of class 0, if there are classes

    def step(self) -> dict[str, Tensor]:
        """One training step; returns what `training_step` logs."""
        self.model.train()
        return self.training_step(self.batch, 0)

    def figures(self) -> dict[str, float]:
        """What a step logs for the first image, without dropout and with the same mask at every call."""
        self.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            logged = self.training_step(TokenSample(*(part[:1] for part in self.batch)), 0)
        return {name: float(value) for name, value in logged.items()}


class PlainTraining(Training):
    """The step as it is usually written: logits at every position."""

    ENGINE = PlainEngine

    def _logits(self, tokens: Tensor, labels: Tensor | None, _: Tensor) -> Tensor:
        return self.wrapped(tokens, labels)


def training_comparisons(setting: Setting) -> Iterator[Maker]:
    """Each model at a batch that a workstation holds."""
    for name, batch in {"embedded": 32, "lab": 8, "maskgit-256": 4}.items():
        yield functools.partial(training_comparison, name, 2 if setting.quick else batch, setting)


def training_comparison(name: str, batch: int, setting: Setting) -> Comparison:
    """Forward, backward, optimizer; the naive transformer in float32 with PyTorch's AdamW, ours at both precisions,
    and as `--compile` has it.
    """
    torch.manual_seed(0)  # of the tokens, the masks and the dropout
    model = make_transformer(name, setting.device, setting.quick)
    naive = NaiveTransformer(model)
    plain = PlainTraining(naive, torch.optim.AdamW(naive.parameters(), lr=0.0), "float32", batch)
    # One model and one optimizer for both precisions: two would not fit into a small machine's memory.
    optimizer = make_optimizer(model, TransformerTraining())
    cases = [Case(BASELINE, plain.step, lambda: None)]
    options = [(precision, False, kernels) for precision in PRECISIONS for kernels in setting.backends()]
    left_out, reason = setting.left_out(), _why_not_compiled(name, setting)
    if reason is None:
        options.append(("bf16", True, setting.backends()[-1]))
    else:
        left_out["bf16, compiled"] = reason
    for precision, compiled, kernels in options:
        task = Training(model, optimizer, precision, batch, compiled=compiled)
        task.batch = plain.batch
        run = functools.partial(_with_kernels, kernels, task.step)
        verify = functools.partial(_with_kernels, kernels, functools.partial(check_training, task, plain))
        label = f"{precision}{', compiled' if compiled else ''} ({kernels})"
        cases.append(Case(label, run, verify, start=keep_freed_memory))
    targets = []
    if name == "lab" and setting.promised:
        what = f"training, lab, batch {batch}: "
        targets = [
            Target(
                f"{what}times as fast as naive float32",
                LAB_TRAINING,
                functools.partial(speedup, ours=OURS, over=BASELINE),
            ),
            Target(
                f"{what}memory of naive float32 over ours",
                1.0,
                functools.partial(memory_ratio, ours=OURS, over=BASELINE),
            ),
        ]
    return Comparison(
        "training",
        f"{name}, a step of {batch} images",
        cases,
        BASELINE,
        item="step",
        rounds=None if setting.on_gpu or name == "embedded" else LONG_ROUNDS,
        apart=True,
        warm_up=0 if setting.quick else WARM_UP,
        weighed=True,
        targets=targets,
        left_out=left_out,
    )


def _why_not_compiled(name: str, setting: Setting) -> str | None:
    if setting.quick:
        return "a quick run compiles nothing"
    if (
        name != "lab"
    ):  # a minute or two, on a GPU too: once for the step that is checked, once for the one that is timed
        return "slow to compile: done for lab only"
    compiler = os.environ.get("CXX", "g++")  # as TorchInductor chooses it
    return None if shutil.which(compiler) else f"needs a C++ compiler, and there is no {compiler}"


def memory_ratio(timings: Mapping[str, Timing], ours: str, over: str) -> float:
    """How many times as much memory `over` takes at its peak."""
    mine, theirs = timings[ours].peak_bytes, timings[over].peak_bytes
    assert mine and theirs
    return theirs / mine


def check_training(task: Training, plain: Training) -> None:
    """Loss and gradient norm are those of the naive transformer, but for rounding."""
    expected, got = plain.figures(), task.figures()
    for name in ("loss", "gradient_norm"):
        error = abs(got[name] - expected[name]) / expected[name]
        if not error < SAME_FIGURES[task.config.precision]:
            raise WrongResultError(f"the {name} is {got[name]:.6g}, and {expected[name]:.6g} in the naive transformer")
