"""Kill training again and again, at random moments, and see that it ends where an unbroken run ends.

    python tests/maskgit/training/kill.py --kills 20

sends 20 SIGKILLs and 20 SIGTERMs, half of them to each stage, to runs of tiny models on two workers' data. Each run is
resumed until it is through; then its losses, weights, averages and optimizer must be those of the unbroken run, to the
last bit. After every kill all checkpoints must be whole; SIGTERM must have left one of the very last step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tiny_train
from tiny_train import as_words, assert_same_run, finish, make_pictures, start

from maskgit.training.checkpoint import list_checkpoints, load_checkpoint

ROOT = Path(__file__).resolve().parents[3]
STEPS = 40
COMMON = {
    **{"model": "tiny", "device": "cpu", "steps": STEPS, "batch_size": 4, "accumulate": 2, "warmup": 2, "ema": 0.9},
    **{"log_every": 1, "save_every": 3, "validate_every": 10},
}


def newest(output: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    return max((step for step, _ in list_checkpoints(output / "checkpoints")), default=0)


def check_checkpoints(output: Path) -> None:
    """All are whole."""
    for _, path in list_checkpoints(output / "checkpoints"):
        load_checkpoint(path)


def kill_once(arguments: list[str], output: Path, number: signal.Signals, rng: random.Random) -> str:
    """Start, or go on with, a run and send it a signal; returns what was met: "setup", "training" or "end"."""
    before = newest(output)
    (process,) = start(arguments)
    # One in four anywhere, setting up included; the others a little after a checkpoint.
    anywhere = rng.random() < 0.25
    while not anywhere and process.is_alive() and newest(output) <= before:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 4 if anywhere else 0.5))
    if process.is_alive():
        os.kill(process.pid, number)
    (status,) = finish([process])
    check_checkpoints(output)
    after = newest(output)
    assert after >= before, "a checkpoint was lost"
    if status == 0:
        return "end"
    if status == -number:  # SIGTERM before there was anything to save ends a process as it always does
        return "training" if number == signal.SIGKILL and after > before else "setup"
    assert number == signal.SIGTERM and status == 128 + signal.SIGTERM, status
    logged = [step for step, _ in tiny_train.curve(output)]
    assert after == max(logged) + 1, f"stopped after step {max(logged) + 1}, but the last checkpoint is of {after}"
    return "training"


def break_runs(
    stage: str, options: dict[str, Any], whole: Path, folder: Path, kills: int, rng: random.Random
) -> Counter[tuple[str, str]]:
    """Send `kills` signals of each kind to runs of a stage, each finished and compared; counts what was met."""
    met: Counter[tuple[str, str]] = Counter()
    signals = [signal.SIGKILL, signal.SIGTERM] * kills
    rng.shuffle(signals)
    for attempt in itertools.takewhile(lambda _: signals, itertools.count()):
        output = folder / f"{stage}-{attempt}"  # a new run even if the last came to its end before its signal
        arguments = [stage, "--resume", *as_words(options | {"output": output})]
        where = ""
        while where != "end" and signals:
            where = kill_once(arguments, output, signals[-1], rng)
            print(f"{stage:>12} {signals[-1].name} during {where}, at step {newest(output)}", flush=True)
            met[signals[-1].name, where] += 1
            if where != "end":
                signals.pop()
        assert finish(start(arguments)) == [0]
        assert_same_run(output, whole)
        for path in (whole / "model").iterdir():
            assert (output / "model" / path.name).read_bytes() == path.read_bytes(), path.name
        assert not list((output / "checkpoints").glob(".*"))
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="signals of each kind, half of them to each stage")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the moments")
    words = parser.parse_args()
    print(f"--seed {words.seed}")
    rng = random.Random(words.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    met: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures")
        adversarial = {"precision": "float32", "adversarial_weight": 0.5, "adversarial_start": 2}
        stages: dict[str, dict[str, Any]] = {
            "tokenizer": adversarial | {"workers": 2},
            "transformer": {"tokenizer": folder / "tokenizer" / "model", "views": 3},
        }
        for stage, its_own in stages.items():
            options = COMMON | its_own | {"data": folder / "pictures"}
            assert finish(start([stage, *as_words(options | {"output": folder / stage})])) == [0]
            met += break_runs(stage, options, folder / stage, folder, (words.kills + 1) // 2, rng)
    for (number, where), count in sorted(met.items()):
        print(f"{number} during {where}: {count}")
    print("every run ended with the losses and weights of the unbroken one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
