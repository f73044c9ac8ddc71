"""What a run reports: figures and pictures, to TensorBoard and Weights & Biases, warnings, and how fast it goes."""

from __future__ import annotations

import json
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskgit.console import first_line
from maskgit.data.pixels import to_bytes
from maskgit.data.png import png_bytes
from maskgit.files import write_atomically
from maskgit.training.run_file import run_settings
from maskgit.training.settings import LoopConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Dense bf16 (V100 and T4: fp16) with float32 sums, in FLOP/s, by a part of the name that PyTorch gives; from the
# makers' data sheets. The first match counts, so longer names come before what they contain.
PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device, precision: str, count: int = 1) -> float | None:
    """FLOP/s that `count` such devices could do at most in bf16 or fp16; None where unknown, and for float32."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * count for part, peak in PEAK_FLOPS.items() if part in name), None)


class Speed:
    """Throughput since it was last asked, and memory.

    Args:
        images: per step, over all processes.
        tokens: per image; 0 leaves tokens per second out.
        flops: floating-point operations that one image needs, forward and backward.
        peak: FLOP/s of all devices together, None if unknown; see `peak_flops`.
    """

    def __init__(self, images: int, tokens: int, flops: float, peak: float | None, device: torch.device) -> None:
        import psutil  # comes with Accelerate

        self.images, self.tokens, self.flops, self.peak, self.device = images, tokens, flops, peak, device
        self.process = psutil.Process()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count from here, after `step` steps: what came before was no training."""
        self.since, self.step = time.monotonic(), step

    def figures(self, step: int) -> dict[str, float]:
        """images_per_second, tokens_per_second, flops_utilization (a share of the peak) and memory_gib.

        Memory is the most that PyTorch has held on the GPU, or what the main process holds now.
        """
        rate = (step - self.step) * self.images / (time.monotonic() - self.since)
        self.restart(step)
        figures = {"images_per_second": rate}
        if self.tokens:
            figures["tokens_per_second"] = rate * self.tokens
        if self.peak is not None:
            figures["flops_utilization"] = rate * self.flops / self.peak
        on_gpu = self.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self.device) if on_gpu else self.process.memory_info().rss
        return figures | {"memory_gib": memory / 2**30}


class Tracker:
    """Where figures and pictures go; enter it to open the logs.

    Args:
        first_step: TensorBoard drops what a killed run logged from there on: those steps are done again.
        write: False in all processes but one, which then log nothing.

    Raises:
        ImportError: TensorBoard or Weights & Biases is missing; the message names the extra to install.
    """

    def __init__(self, config: LoopConfig, first_step: int, *, write: bool = True) -> None:
        self.config = config
        self.warned: set[str] = set()
        self.tensorboard: SummaryWriter | None = None
        self.wandb_run: Any = None
        if not write:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("training needs TensorBoard: pip install 'maskgit-inpaint[train]'") from error
        if config.wandb:
            self.wandb_run = self._open_wandb()
        self.tensorboard = SummaryWriter(str(config.output / "log"), purge_step=first_step)

    def _open_wandb(self) -> Any:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("--wandb needs Weights & Biases: pip install 'maskgit-inpaint[wandb]'") from error
        remembered = self.config.output / "wandb.json"
        run_id = json.loads(remembered.read_text())["id"] if remembered.exists() else None
        try:
            run = wandb.init(
                project=None if "WANDB_PROJECT" in os.environ else "maskgit",
                dir=str(self.config.output),
                name=self.config.output.name,
                id=run_id,
                resume="allow",  # a resumed run goes on with its curves
                config=run_settings(self.config),
            )
        except Exception as error:  # its own errors, of login, network and settings
            advice = f"WANDB_MODE=offline logs to {self.config.output}/wandb only"
            raise OSError(f"--wandb: {first_line(error)}; {advice}") from error
        write_atomically({remembered: json.dumps({"id": run.id}).encode()})
        return run

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb_run is not None:
            self.wandb_run.finish(exit_code=0 if kind is None else 1)

    def warn(self, faults: dict[str, str | None]) -> None:
        """Say what is wrong, by kind: once, until it is over, which None says."""
        for kind, text in faults.items():
            if text is None:
                self.warned.discard(kind)
            elif kind not in self.warned:
                self.warned.add(kind)
                tqdm.write(f"warning: {text}")

    def add_scalars(self, group: str, figures: dict[str, float], step: int) -> None:
        """Log figures at a step, as "group/name"."""
        figures = {f"{group}/{name}": value for name, value in figures.items()}
        if self.tensorboard is not None:
            for name, value in figures.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb_run is not None:
            self.wandb_run.log(figures, step=step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""
        if self.tensorboard is not None:
            self.tensorboard.add_image(name, image, step, dataformats="HWC")
        if self.wandb_run is not None:
            import wandb

            self.wandb_run.log({name: wandb.Image(image)}, step=step)

    def add_pictures(self, name: str, images: Tensor, step: int, *, columns: int, file: str) -> None:
        """Log float images [B, 3, S, S] in [-1, 1] as one picture, row by row, which the run's folder gets too."""
        pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
        missing, size = -len(pixels) % columns, pixels.shape[1]
        pixels = np.concatenate([pixels, np.full((missing, size, size, 3), 255, dtype=np.uint8)])
        grid = pixels.reshape(-1, columns, size, size, 3).swapaxes(1, 2).reshape(-1, columns * size, 3)
        write_atomically({self.config.output / file: png_bytes(Image.fromarray(grid))})
        self.add_image(name, grid, step)
