"""train.py with tiny presets: `tiny`, and `tiny-plain` without dropout, for tests that start processes of their own.

python tests/maskgit/training/tiny_train.py tokenizer --model tiny --data PICTURES --output OUT ...
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(globals().get("ENVIRONMENT", {}))  # what runpy was given by `start`

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import maskgit.training.tokenizer  # noqa: E402
from maskgit.config import PRESETS, ModelConfig, Stage, TokenizerConfig, TransformerConfig  # noqa: E402
from maskgit.network.transformer import Transformer  # noqa: E402
from maskgit.tokenizer.losses import PatchDiscriminator  # noqa: E402
from maskgit.training.checkpoint import list_checkpoints, load_checkpoint  # noqa: E402
from maskgit.training.cli import main  # noqa: E402
from maskgit.training.engine import Engine  # noqa: E402
from maskgit.training.tokenizer import TokenizerTask  # noqa: E402
from maskgit.training.transformer import TransformerTask  # noqa: E402

TOKENIZER = TokenizerConfig(
    image_size=16,
    codebook_size=16,
    codebook_dim=4,
    latent_channels=8,
    stem_channels=8,
    encoder=(Stage(8, 0, resample=True), Stage(16, 1, resample=True), Stage(16, 1, attention=True)),
    decoder=(Stage(16, 1, attention=True, resample=True), Stage(8, 1, resample=True), Stage(8, 0)),
    groups=4,
)
TRANSFORMER = TransformerConfig(
    codebook_size=16,
    num_tokens=16,
    dim=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    dropout=0.1,
    attention_dropout=0.1,
    num_classes=1000,
)


STAGES = ("tokenizer", "transformer")
STEPS, SAVED = 8, 5  # as in conftest.py
TASKS: dict[str, Any] = {"tokenizer": TokenizerTask, "transformer": TransformerTask}


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt_at(step: int, stage: str, patch: pytest.MonkeyPatch) -> None:
    real = TASKS[stage].training_step

    def training_step(self: Any, batch: Any, now: int) -> dict[str, Tensor]:
        if now == step:
            raise Interrupted
        return real(self, batch, now)

    patch.setattr(TASKS[stage], "training_step", training_step)


def break_steps(patch: pytest.MonkeyPatch, chosen: Any, what: str) -> None:
    """Make the loss, or else its gradients, NaN in the steps that `chosen(step)` names."""
    begin, backward, update = Engine.begin, Engine.backward, Engine.update
    bad = torch.tensor(1.0)

    def begin_and_look(self: Engine, step: int) -> None:
        bad.fill_(float("nan") if chosen(step) else 1.0)
        begin(self, step)

    patch.setattr(Engine, "begin", begin_and_look)
    if what == "gradient":
        patch.setattr(Engine, "backward", lambda self, loss: backward(self, loss * bad))
    else:
        patch.setattr(Engine, "update", lambda self, optimizer, loss: update(self, optimizer, loss * bad))


def watch_training(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of the last step: tokens and held, int64 [b, N] each, the loss, and logits of the transformer, float64 [b, N, V].

    Where the last block isn't evaluated, the logits are the bias.
    """
    seen: dict[str, Any] = {}
    hidden, step = Transformer.hidden, TransformerTask.training_step

    def watched_hidden(self: Transformer, tokens: Tensor, *arguments: Any) -> Tensor:
        states = hidden(self, tokens, *arguments)
        if self.training:
            weight, bias = (x.detach().double() for x in self.output_weights())
            seen.update(held=tokens, logits=states.detach().double() @ weight.T + bias)
        return states

    def watched_step(self: TransformerTask, batch: Any, now: int) -> dict[str, Tensor]:
        logged = step(self, batch, now)
        seen.update(tokens=batch[0], loss=logged["loss"])
        return logged

    patch.setattr(Transformer, "hidden", watched_hidden)
    patch.setattr(TransformerTask, "training_step", watched_step)
    return seen


def smooth_discriminator() -> PatchDiscriminator:
    """A small one without kinks, across which a rounding error would turn a gradient."""
    layers = PatchDiscriminator(channels=8, layers=1)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.LeakyReLU):
            layers[i] = nn.GELU()
    return layers


def run(arguments: list[str]) -> int:
    """`train.py` with these arguments; returns the exit status."""
    torch.set_num_threads(1)
    PRESETS["tiny"] = ModelConfig(TOKENIZER, TRANSFORMER)
    PRESETS["tiny-plain"] = ModelConfig(TOKENIZER, dataclasses.replace(TRANSFORMER, dropout=0.0, attention_dropout=0.0))
    maskgit.training.tokenizer.PatchDiscriminator = smooth_discriminator  # type: ignore
    return main(arguments)


def make_pictures(folder: Path) -> None:
    """Two classes of 15 pictures: a bright square on a dark ground, in the first class above and red."""
    rng = np.random.default_rng(0)
    for i in range(30):
        pixels = np.full((20, 20, 3), 30, dtype=np.uint8)
        top, left = (2, 11)[i % 2], rng.integers(12)
        pixels[top : top + 7, left : left + 7, i % 2] = 200 + rng.integers(50)
        path = folder / ("above", "below")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def failure(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The last line that train.py says with these arguments, with which it must fail, without a traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err.strip().splitlines()[-1]


def as_words(options: dict[str, Any]) -> list[str]:
    """{"save_every": 5, "resume": True} -> ["--save-every", "5", "--resume"]."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return words


def torchrun_says(count: int) -> list[dict[str, str]]:
    """The environment variables of each of so many processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    each = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [{name: str(value) for name, value in values.items()} for values in each]


def start(arguments: list[str], count: int = 1, stderr: Path | None = None) -> list[Any]:
    """`count` processes that train together, as torchrun would start them; what they complain of goes to a file.

    They are forked from one that has imported PyTorch already, and that only the environment can tell where the
    packages are (before Python 3.13): PYTHONPATH must say it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["maskgit.training.cli", "torch._dynamo", "torch.utils.tensorboard", "accelerate", "torch.utils.flop_counter"]
    )
    environment = {} if stderr is None else {"STDERR_FILE": str(stderr)}
    processes = []
    for told in torchrun_says(count) if count > 1 else [{}]:
        values = {"ARGUMENTS": arguments, "ENVIRONMENT": environment | told}
        processes.append(context.Process(target=runpy.run_path, args=(__file__, values, "__main__")))
        processes[-1].start()
    return processes


def finish(processes: list[Any], timeout: float = 120) -> list[int]:
    """The exit statuses, once all have ended; after `timeout` seconds they are killed."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def curve(output: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of every logged step, as TensorBoard shows them: in order, without what a resumed run replaced."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        # TensorBoard reads the files of a run in the order of their names, which hold the time in seconds only: two of
        # them may have been started within the same one here.
        for i, path in enumerate(sorted((output / "log").iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            shutil.copy(path, Path(folder, f"events.out.tfevents.{i:010d}"))
        log = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in log.Scalars(name)]


def last_state(output: Path) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights and the optimizers' states of the last checkpoint."""
    weights, state = load_checkpoint(list_checkpoints(output / "checkpoints")[-1][1])
    return weights, [optimizer["state"] for optimizer in state["optimizers"]]


def assert_same_run(a: Path, b: Path) -> None:
    """The logged losses and everything in the last checkpoint are equal, bit for bit."""
    assert curve(a) == curve(b)
    torch.testing.assert_close(last_state(a), last_state(b), rtol=0, atol=0)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork", force=True)  # or data loading workers would import PyTorch anew here
    if "STDERR_FILE" in os.environ:
        os.dup2(os.open(os.environ["STDERR_FILE"], os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    sys.exit(run(globals().get("ARGUMENTS", sys.argv[1:])))
