"""A training step as a CUDA graph (`--graphs`): captured after a few steps, then replayed with other batches.

A replay is one launch, where a step launched kernel by kernel is 500 to 1,500 of them (benchmarks/training_step.py
counts them), which a small batch waits for. What differs from step to step lies in tensors that stay where they are:
the batch, the learning rate, the average's decay, and the seed of the noise.

That seed is PyTorch's own doing. A capture hands kernels that draw random numbers the addresses of a seed and an
offset, and a replay first fills these with what the device's generator holds ("Note [CUDA Graph-safe RNG states]" in
ATen/cuda/CUDAGeneratorImpl.h, which calls graphed execution bitwise identical to eager execution in this respect). The
loop seeds that generator before every step, so a replay draws what the step would draw without a graph: noise still
comes from (seed, step) alone, and a run can be resumed at any step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from maskgit.console import first_line
from maskgit.data.tokens import TokenSample
from maskgit.decoding.graphs import capture
from maskgit.training.engine import Engine, Figures
from maskgit.training.settings import TrainingError, TransformerTraining

WARM_UP = 3  # steps before the capture, in which libraries are set up, kernels compiled and the optimizer's state made

Work = Callable[[TokenSample, int, Tensor, Tensor], Figures]
"""All that the device does in a step, from a batch on the device, the step's number, which must not matter, the rate of
learning, float32 [], and the decay of the average, float64 []. It must neither read from the device nor copy to it."""


def check_graphs(config: TransformerTraining, engine: Engine) -> None:
    """Raise a TrainingError if `--graphs` is asked for and doesn't go with the run."""
    if not config.graphs:
        return
    if engine.device.type != "cuda":
        raise TrainingError(f"--graphs: needs an NVIDIA GPU, and this is {engine.device.type}; leave it out")
    if engine.joined:
        raise TrainingError("--graphs: not with torchrun, whose processes share gradients; leave it out")
    if config.accumulate > 1:
        raise TrainingError(f"--graphs: not with --accumulate {config.accumulate}; leave out one of them")
    if config.precision == "fp16":
        raise TrainingError("--graphs: not with --precision fp16, whose scale the host decides on; use bf16")
    if config.activation_checkpointing:  # which sets the generator back, as nothing in a graph can
        raise TrainingError("--graphs: not with --activation-checkpointing; leave out one of them")


class StepGraph:
    """Makes training steps: the first ones launch by launch, from then on by a graph of all that a step does.

    Args:
        work: a step. Every tensor it uses from one step to the next must stay where it is.
        device: a GPU.
        output: the run's folder, for messages.
    """

    def __init__(self, work: Work, device: torch.device, output: Path) -> None:
        self._work, self._device, self._output = work, device, output
        self._rate = torch.zeros((), device=device)
        self._decay = torch.zeros(
            (), dtype=torch.float64, device=device
        )  # so that 1 - decay is as exact as on the host
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()

    def __call__(self, batch: TokenSample, step: int, rate: float, decay: float) -> Figures:
        """A step, without waiting for the device; the next one overwrites the figures.

        Args:
            batch: of the same number of images at every call, best in pinned memory.

        Raises TrainingError: the step can't be captured.
        """
        with torch.cuda.device(self._device):
            self._copy(batch, rate, decay)
            if self._graph is None and self._warm < WARM_UP:
                return self._run_warm(step)
            if self._graph is None:
                self._graph = self._captured(step)
            self._graph.replay()
            return self._figures

    def _copy(self, batch: TokenSample, rate: float, decay: float) -> None:
        if not self._warm:
            self._batch = TokenSample(*(torch.empty_like(part, device=self._device) for part in batch))
        for held, new in zip(self._batch, batch, strict=True):
            held.copy_(new, non_blocking=True)
        self._rate.fill_(rate)
        self._decay.fill_(decay)

    def _run_warm(self, step: int) -> Figures:
        """On the stream of the capture, for which some libraries allocate."""
        self._warm += 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            figures = self._work(self._batch, step, self._rate, self._decay)
        torch.cuda.current_stream().wait_stream(self._stream)
        return figures

    def _captured(self, step: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with capture(graph, self._stream):
                self._figures = self._work(self._batch, step, self._rate, self._decay)
        except RuntimeError as error:
            # Going on launch by launch is no way out: some releases of PyTorch leave the generator in a state of
            # capture, in which it draws nothing more ("Offset increment outside graph capture").
            raise TrainingError(
                f"step {step}: --graphs: the step can't be captured: {first_line(error)}; start again without --graphs "
                f"(a run that has a checkpoint in {self._output} goes on with --resume)"
            ) from error
        return graph
