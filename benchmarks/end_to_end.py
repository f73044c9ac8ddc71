"""What a user waits for: inpainting, in images per second, and training, in steps per second."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.checks import check_decoding, check_inpainting
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.models import DTYPES, decode_tokens, make_models, make_transformer, pictures_with_holes, size
from benchmarks.naive_transformer import NaiveTransformer, forward_flops
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.data.tokens import TokenSample
from maskgit.decoding import DecodeConfig
from maskgit.memory import keep_freed_memory
from maskgit.network.transformer import Transformer
from maskgit.pipeline import Precision
from maskgit.training.engine import Engine
from maskgit.training.graphs import WARM_UP as WARM_UP_STEPS
from maskgit.training.graphs import StepGraph
from maskgit.training.optimizer import make_optimizer, set_rate
from maskgit.training.settings import TransformerTraining
from maskgit.training.transformer import TransformerTask
from maskgit_kernels import backend

STEPS = 8
LONG_ROUNDS = 9  # of training steps that take many seconds
WARM_UP = 3  # training steps, in which a program gets hold of its memory
BASELINE = "naive_float32"
# How far loss and gradient norm may be from those of the naive transformer in float32.
SAME_FIGURES = {"float32": 1e-3, "bf16": 0.05}


def inpaint_comparisons(setting: Setting) -> Iterator[Comparison]:
    """`MaskGIT.inpaint` from pictures to pictures, a hole of half their sides.

    `loops` has the lab's eight images, on a CPU a minute's work.
    """
    return _each_model("inpaint", setting, [""])


def decoding_comparisons(setting: Setting) -> Iterator[Comparison]:
    """The decoding loop alone, a picture of tokens from nothing; on a GPU as a CUDA graph and launch by launch.

    What the CPU does to pictures before and after takes most of `inpaint` for a small model on a fast GPU.
    """
    return _each_model("decoding", setting, ["_graph", "_launch_by_launch"] if setting.on_gpu else [""])


def _each_model(group: str, setting: Setting, ways: list[str]) -> Iterator[Comparison]:
    """Each model at several batch sizes, both precisions and each of our implementations."""
    batches = {"embedded": (1, 8), "lab": (1,), "maskgit-256": (1,)}
    if setting.on_gpu:
        batches = dict.fromkeys(batches, (1, 8, 64))
    ours = {
        f"{kernels}{way}": why_not
        for precision in DTYPES
        for way in ways
        for kernels, why_not in setting.ours(precision).items()
    }
    for name, batch in ((model, batch) for model in batches for batch in batches[model]):
        yield Comparison(
            group,
            f"{name}-b{batch}",
            ours,
            functools.partial(model_cases, group, name, batch, setting, ways),
            shape={"model": name, "batch": batch, "steps": STEPS},
            item="image",
            items=batch,
            flops=STEPS * forward_flops(size(name, setting.quick).transformer, batch),
        )


def model_cases(group: str, name: str, batch: int, setting: Setting, ways: list[str]) -> dict[str, Case]:
    """At both precisions, with each implementation that runs here."""
    models, cases = make_models(name, setting.device, setting.quick), dict[str, Case]()
    images, holes = pictures_with_holes(batch, models["float32"].tokenizer.config.image_size)
    for (precision, model), way, kernels in itertools.product(models.items(), ways, setting.backends()):
        this = _without_graphs(model) if way == "_launch_by_launch" else model
        run: Callable[[], object] = functools.partial(decode_tokens, this, DecodeConfig(steps=STEPS), batch, None)
        check: Callable[[], None] = functools.partial(check_decoding, this)
        if group == "inpaint":
            run = functools.partial(model.inpaint, images, holes, steps=STEPS, batch_size=batch)
            check = functools.partial(check_inpainting, model)
        cases[f"{precision}_{kernels}{way}"] = _with_kernels(kernels, run, check, DTYPES[precision])
    return cases


def _without_graphs(model: MaskGIT) -> MaskGIT:
    other = copy.copy(model)
    other.graphs = None
    return other


def _with_kernels(
    kernels: str,
    run: Callable[[], object],
    verify: Callable[[], None],
    dtype: torch.dtype,
    start: Callable[[], None] | None = None,
) -> Case:
    def within(work: Callable[[], object]) -> None:
        backend.use(kernels)
        try:
            work()
        finally:
            backend.use("auto")

    return Case(functools.partial(within, run), functools.partial(within, verify), dtype=dtype, start=start)


# --- training ---------------------------------------------------------------------------------------------------------


class PlainEngine(Engine):
    """The optimizer's step as it is usually written."""

    def update(self, optimizers: Sequence[torch.optim.Optimizer], loss: Tensor) -> Tensor:
        """Clip and step, whatever the gradients are."""
        (optimizer,) = optimizers
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
        return self.at_rate(self.batch, 0, 0.0)

    def at_rate(
        self, batch: TokenSample, step: int, rate: float | Tensor, _: float | Tensor = 0.0
    ) -> dict[str, Tensor]:
        """A step as the loop has it, without an average, whose decay would come last."""
        set_rate(self.optimizers[0], rate)
        return self.training_step(batch, step)

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

    def _loss(
        self, held: Tensor, labels: Tensor | None, tokens: Tensor, counted: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = self.wrapped(held, labels).float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return (losses * counted.flatten()).sum(), ((logits.argmax(-1) == tokens) & masked).sum()


class GraphTraining(Training):
    """The step of `--graphs`."""

    _graph: StepGraph | None = None

    def step(self) -> dict[str, Tensor]:
        """A replay, once the graph is captured."""
        self.model.train()
        self._graph = self._graph or StepGraph(self.at_rate, self.device, self.config.output)
        return self._graph(self.batch, 0, 0.0, 0.0)

    def check(self) -> None:
        """A replay gives the figures of the same step launch by launch, masks and dropout included."""
        found = []
        for step in (*[self.step] * (WARM_UP_STEPS + 1), super().step):
            self.engine.begin(0)
            found.append({name: float(value) for name, value in step().items()})
        check_figures(found[-2], found[-1], self.config.precision, "the step launch by launch")


def training_comparisons(setting: Setting) -> Iterator[Comparison]:
    """Forward, backward, optimizer, each model at a batch that a workstation holds.

    The naive transformer in float32 with PyTorch's AdamW, ours at both precisions, and as `--compile` and `--graphs`
    have it.
    """
    for name, batch in {"embedded": 32, "lab": 8, "maskgit-256": 4}.items():
        batch = 2 if setting.quick else batch
        yield Comparison(
            "training",
            f"{name}-b{batch}",
            {
                BASELINE: "",
                **{key: why for precision in DTYPES for key, why in setting.ours(precision).items()},
                "bf16_compiled": _why_not_compiled(name, setting),
                "bf16_graph": "" if setting.on_gpu else "CUDA graphs need an NVIDIA GPU",
            },
            functools.partial(training_cases, name, batch, setting),
            shape={"model": name, "batch": batch},
            item="step",
            flops=3 * forward_flops(size(name, setting.quick).transformer, batch),  # backward is twice as much
            rounds=None if setting.on_gpu or name == "embedded" else LONG_ROUNDS,
            apart=True,
            warm_up=0 if setting.quick else WARM_UP,
            weighed=True,
        )


def training_cases(name: str, batch: int, setting: Setting) -> dict[str, Case]:
    """The naive step and ours, on the same tokens."""
    torch.manual_seed(0)  # of the tokens, the masks and the dropout
    model = make_transformer(name, setting.device, setting.quick)
    naive = NaiveTransformer(model)
    plain = PlainTraining(naive, torch.optim.AdamW(naive.parameters(), lr=0.0), "float32", batch)
    # One model and one optimizer for both precisions: two would not fit into a small machine's memory.
    optimizer = make_optimizer(model, TransformerTraining())
    cases = {BASELINE: Case(plain.step, lambda: None)}
    ours = {f"{precision}_{kernels}": (precision, kernels) for precision in DTYPES for kernels in setting.backends()}
    if not _why_not_compiled(name, setting):
        ours["bf16_compiled"] = ("bf16", setting.backends()[-1])
    for key, (precision, kernels) in ours.items():
        task = Training(model, optimizer, precision, batch, compiled=key == "bf16_compiled")
        task.batch = plain.batch
        check = functools.partial(check_training, task, plain)
        cases[key] = _with_kernels(kernels, task.step, check, DTYPES[precision], start=keep_freed_memory)
    if setting.on_gpu:
        graph = GraphTraining(model, optimizer, "bf16", batch)
        graph.batch = plain.batch
        kernels = setting.backends()[-1]
        cases["bf16_graph"] = _with_kernels(kernels, graph.step, graph.check, torch.bfloat16, start=keep_freed_memory)
    return cases


def _why_not_compiled(name: str, setting: Setting) -> str:
    if setting.quick:
        return "a quick run compiles nothing"
    # A minute or two, on a GPU too: once for the step that is checked, once for the one that is timed.
    if name != "lab":
        return "slow to compile: done for lab only"
    compiler = os.environ.get("CXX", "g++")  # as TorchInductor chooses it
    return "" if shutil.which(compiler) else f"needs a C++ compiler, and there is no {compiler}"


def check_training(task: Training, plain: Training) -> None:
    """Loss and gradient norm are those of the naive transformer, but for rounding."""
    check_figures(task.figures(), plain.figures(), task.config.precision, "the naive transformer")


def check_figures(got: dict[str, float], expected: dict[str, float], precision: str, source: str) -> None:
    """Raise WrongResultError unless loss and gradient norm are the expected ones, but for rounding."""
    for name in ("loss", "gradient_norm"):
        error = abs(got[name] - expected[name]) / expected[name]
        if not error < SAME_FIGURES[precision]:
            raise WrongResultError(f"the {name} is {got[name]:.6g}, and {expected[name]:.6g} in {source}")
