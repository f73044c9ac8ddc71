"""A process that is killed, or meets a full disk, while it writes; and the same call again."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maskgit.convert import convert
from maskgit.network.folder import load_model

from .cases import Case, Group, Known, expect
from .checkpoints import torch_file
from .seeds import Seeds
from .shards import TRAIN, go_on
from .words import use

POINTS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""Functions of `os` at which a process is killed: all writing goes by them."""


def killed(work: Callable[[], object], point: int) -> bool:
    """Do the work in a process that is killed before its call number `point` of those functions; whether it was."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = [point]

    def deadly(before: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(*arguments, **options)

        return call

    for name in POINTS:
        setattr(os, name, deadly(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


def again(case: Case, folder: str) -> Case:
    """A call of which a first go was killed: it must do as if there had been none, and leave nothing of that."""
    before = case.check

    def check(result: Any) -> None:
        before(result)
        for path in Path().rglob("*"):
            expect(not path.name.startswith(".tmp-"), "a temporary file that was never removed")
            expect(not path.name.endswith((".parts", ".partial")), "parts that were never removed")

    return Case(case.call, (), check, changes=folder)


def conversion(point: int) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        seeds.take("model")
        Path("x.pt").write_bytes(torch_file(seeds.checkpoints["valeo_maskgit"]))

        def work() -> object:
            return convert(["model", "x.pt"], "out")

        killed(work, point)
        done = os.path.exists("out/config.json")  # comes last, so all is there: not to be replaced
        return again(Case((lambda: None) if done else work, (), lambda found: load_model("out")), "out")

    return known


def tokenizing(point: int) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        case = go_on(seeds)
        killed(case.call, point)
        return again(case, "tokens")

    return known


def inpainting(point: int) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        case = use(seeds)
        killed(case.call, point)
        return again(case, "out")

    return known


def _full_disk(seeds: Seeds) -> Case:
    """Files can't grow beyond what a part of the tokens needs: putting them together fails."""
    shutil.copytree(seeds.folder / "tokens", "tokens")
    (TRAIN / "tokens.npy").unlink()
    case = go_on(seeds)
    work = case.call

    def call() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = np.load(seeds.folder / "tokens/train/tokens.npy").nbytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2 + 200, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return work()

    return Case(call, (OSError, *case.refusals), lambda tokens: expect(False, "more was written than fits"), keeps=True)


KNOWN: Known = {
    "F5 full disk": _full_disk,
    **{f"F7 conversion killed at {point}": conversion(point) for point in range(1, 9)},
    **{f"F14 inpainting killed at {point}": inpainting(point) for point in (2, 4, 6)},
    **{f"F14 tokenizing killed at {point}": tokenizing(point) for point in (19, 21, 24)},
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    kind = rng.choice((conversion, tokenizing, inpainting))
    return kind(rng.randrange(40))(seeds)


GROUP = Group("kills and full disks", KNOWN, random_case)
