"""What makes a training step the same on one CPU and on many GPUs: processes, precision, parts of a batch, updates.

Accelerate joins the processes that torchrun started and wraps networks for them. The batch of a step is given; its
images are shared equally between the processes, and each process works on its share in equal parts. All that is added
up over the parts and the processes, so that neither number matters but for rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from maskgit.pipeline import resolve_device, resolve_precision
from maskgit.training.run_file import precision_of
from maskgit.training.settings import LoopConfig, TrainingError

PATIENCE = timedelta(hours=2)  # that processes wait for one that validates or tokenizes
MOST_SKIPPED = 10  # steps in a row
AGAINST_NAN = "start again with a lower --lr or with --precision float32, and another --output"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Figures = dict[str, Tensor]
"""What is logged of a step, float [] each, on the device."""


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto is a GPU if there is one. Raises TrainingError if it isn't available."""
    try:
        return resolve_device(None if name == "auto" else name)
    except ValueError as error:
        raise TrainingError(f"--device {name}: {error}") from error


def _settled(config: LoopConfig, device: torch.device) -> LoopConfig:
    """`config`, with another precision than `auto`."""
    if config.precision != "auto":
        return config
    begun = precision_of(config.output) if config.resume else None
    return dataclasses.replace(config, precision=begun or resolve_precision("auto", device))


class Engine:
    """Devices, processes and precision of a run. Its `config` is what it was given, with another precision than `auto`.

    Args:
        config: device, precision, batch_size, accumulate, clip and seed are used.
        shard: divide the weights among the processes (FSDP2) instead of copying them to each (DDP).

    Raises:
        TrainingError: a device that isn't there, a precision it doesn't have, a batch that can't be divided.
        ImportError: Accelerate is missing.
    """

    def __init__(self, config: LoopConfig, *, shard: bool = False) -> None:
        self.device = pick_device(config.device)
        self.config = config = _settled(config, self.device)
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun says
        self._check(shard)
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
        except ImportError as error:
            raise ImportError("training needs Accelerate: pip install 'maskgit-inpaint[train]'") from error
        # Accelerate keeps its state for the whole process; the runs of a process may differ in their devices.
        AcceleratorState._reset_state(reset_partial_state=self.processes == 1)
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",  # autocast is around the forward passes below: networks stay as they are
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.process = self.accelerator.process_index
        self.is_main = self.process == 0
        self.sharded = shard
        self.joined = dist.is_initialized()
        """Whether torchrun started it: a single process too then does all that several do, to try that on one GPU."""
        if self.joined:
            self.device = self.accelerator.device
            # Signals are agreed on by the hosts, so that no device has to be waited for.
            self.hosts: Any = dist.new_group(backend="gloo") if self.device.type != "cpu" else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)
        """bool []: whether this step has met a loss or gradient that isn't finite. It changes nothing from there on. It
        and `skipped` stay where they are, for CUDA graphs."""
        self.skipped = torch.zeros(3, dtype=torch.int64, device=self.device)
        """int64 [3]: steps skipped for that in all, in a row now, and in a row at most."""

    def _check(self, shard: bool) -> None:
        config, parts = self.config, self.processes * self.config.accumulate
        if config.batch_size % parts:
            raise TrainingError(
                f"--batch-size {config.batch_size}: must be a multiple of {parts}, for {self.processes} processes "
                f"with {config.accumulate} parts each (--accumulate)"
            )
        if config.precision == "fp16" and self.device.type != "cuda":
            raise TrainingError(f"--precision fp16: needs a GPU, and this is {self.device.type}; use bf16")
        if shard and "LOCAL_RANK" not in os.environ:
            raise TrainingError(
                "--fsdp: there is one process, which leaves nothing to divide; start several with "
                "torchrun --nproc-per-node GPUS train.py ..."
            )
        if "LOCAL_RANK" in os.environ and self.device.type == "cuda":
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes)), torch.cuda.device_count()
            if config.device not in ("auto", "cuda"):
                raise TrainingError(f"--device {config.device}: torchrun's processes take a GPU each; say cuda")
            if here > gpus:
                raise TrainingError(f"torchrun started {here} processes for {gpus} GPUs (or say --device cpu)")

    # --- processes ----------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all processes have come here."""
        self.accelerator.wait_for_everyone()

    def mean(self, value: Tensor) -> Tensor:
        """Of a float tensor over the processes, the same in all of them."""
        return self.accelerator.reduce(value, "mean")

    def totals(self, shares: list[Figures]) -> Figures:
        """Sums of figures over the parts of a batch and the processes."""
        values = {name: sum((share[name] for share in shares[1:]), shares[0][name]) for name in shares[0]}
        if not self.joined:
            return values
        totals = self.accelerator.reduce(torch.stack(list(values.values())), "sum")
        return dict(zip(values, totals.unbind(), strict=True))

    def whole(self, share: Tensor) -> Tensor:
        """[b, ...] of each process -> [processes * b, ...] in all of them, in the order of the batch."""
        return self.accelerator.gather(share)

    def share(self, whole: Tensor) -> Tensor:
        """This process's rows of what was made for the batch of all processes: [processes * b, ...] -> [b, ...]."""
        return whole.tensor_split(self.processes)[self.process]

    def highest(self, number: float) -> float:
        """The largest of the processes' numbers, without waiting for the device."""
        if not self.joined:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.hosts)
        return float(value)

    def close(self) -> None:
        """End the process group: processes that just exit can abort each other."""
        self.wait()
        self.accelerator.end_training()

    # --- networks -----------------------------------------------------------------------------------------------------

    def divide(self, network: nn.Module) -> None:
        """Divide a network's weights among the processes, in place, if the run is to: FSDP2, a unit for each block.

        Before optimizers are made, as the parameters are replaced. PyTorch's own call, because Accelerate ignores its
        FSDP plugin on a CPU and trains copies there.
        """
        if not self.sharded:
            return
        dtype = AUTOCAST.get(self.config.precision)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.processes,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        }
        for child in network.children():
            if isinstance(child, nn.ModuleList):
                for block in child:
                    fully_shard(block, **options)
        fully_shard(network, **options)

    def wrap(self, network: nn.Module) -> nn.Module:
        """What to call instead of `network` in a training step, so that gradients are averaged over the processes."""
        if self.sharded or not self.joined:
            return network
        return self.accelerator.prepare_model(network)

    def autocast(self) -> torch.autocast:
        """Around every forward pass."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    # --- a step -------------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Start a step: its noise comes from (seed, step), and nothing is broken yet."""
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        self.broken.zero_()

    def descend(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        network: nn.Module,
        rows: int,
        losses: Callable[[slice], Figures],
    ) -> Figures:
        """Forward, backward and update for this process's rows of a batch, in config.accumulate equal parts.

        Args:
            optimizers: of all that is trained; gradients are clipped together.
            network: what `wrap` returned. Its gradients are averaged over the processes at the last part.
            rows: b, divisible by config.accumulate.
            losses: a part's rows -> its shares of the batch's figures, "loss" among them, which add up to these.

        Returns:
            The figures of the whole batch, "gradient_norm" too.
        """
        for optimizer in optimizers:
            optimizer.zero_grad()
        size, shares = rows // self.config.accumulate, []
        for start in range(0, rows, size):
            with self._averaging(network, wanted=start + size == rows):
                with self.autocast():
                    share = losses(slice(start, start + size))
                self.backward(share["loss"])
                shares.append({name: value.detach() for name, value in share.items()})
        figures = self.totals(shares)
        return figures | {"gradient_norm": self.update(optimizers, figures["loss"])}

    def new_noise(self, step: int, rows: slice) -> None:
        """Noise of its own for a part's dropout, from (seed, step, number of the part in the whole batch)."""
        part = self.process * self.config.accumulate + rows.start // max(1, rows.stop - rows.start)
        if part:  # the first goes on with the noise of the step, so that one process with one part is the plain case
            torch.manual_seed(self.config.seed * 1_000_003 + step + part * 2**40)

    @contextlib.contextmanager
    def _averaging(self, network: nn.Module, wanted: bool) -> Iterator[None]:
        """Whether a backward pass within averages the gradients over the processes."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(wanted)
        with contextlib.nullcontext() if wanted else self.accelerator.no_sync(network):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part's share of the loss, float []; the shares of all parts add up to the loss."""
        if self.processes > 1:
            loss = loss * self.processes  # gradients are averaged over the processes, not added
        self.scaler.scale(loss).backward()

    def update(self, optimizers: Sequence[torch.optim.Optimizer], loss: Tensor) -> Tensor:
        """Clip the gradients and step, unless loss or gradients aren't finite; returns the gradient norm, float [].

        The device decides by itself, so the host needn't wait for it: a fused optimizer does nothing where `found_inf`
        is 1, which is how PyTorch's gradient scaler skips a step.

        Args:
            optimizers: of gradients left by `backward`, each fused, or one that heeds `found_inf` as these do.
            loss: of the whole batch, the same in all processes.
        """
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip or float("inf"))
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.broken |= ~(loss.isfinite() & norm.isfinite())
        found_inf = self.broken.float()
        for optimizer in optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            optimizer.step()
        self.scaler.update()
        return norm

    @contextlib.contextmanager
    def unless_broken(self, *tensors: Tensor) -> Iterator[None]:
        """Undo what the block does to `tensors` if the step is broken."""
        before = [tensor.clone() for tensor in tensors]
        yield
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(self.broken, old, tensor))

    def count_step(self) -> None:
        """Count, on the device, whether the step is skipped."""
        total, row, longest = self.skipped.unbind()
        total += self.broken
        row.add_(1).mul_(self.broken)
        longest.copy_(torch.maximum(longest, row))

    def check_skipped(self, step: int) -> int:
        """The number of steps skipped so far. Raises TrainingError if too many were skipped in a row.

        Reading it waits for the device. Where that costs something the loop does it only now and then, up to which a
        run may skip more in a row; as they change nothing, that loses nothing.
        """
        total, _, longest = self.skipped.tolist()
        if longest >= MOST_SKIPPED:
            raise TrainingError(
                f"step {step}: the loss or its gradient was not finite in {longest} steps in a row, {total} in all; "
                f"{AGAINST_NAN}"
            )
        return total
