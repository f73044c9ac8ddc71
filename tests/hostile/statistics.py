"""pytorch-fid's statistics of a set of pictures, an .npz file that `python -m maskgit.metrics` reads."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgit.data import DataError

from .bending import bend_bytes, pipe, put_odd
from .cases import Case, Group, expect
from .seeds import Seeds
from .shards import Evil, npy


def use(refused: bool = False) -> Case:
    from maskgit.metrics.__main__ import read_statistics

    def check(gaussian: Any) -> None:
        expect(not refused, "what are no statistics was taken for some")
        for tensor in gaussian:
            if isinstance(tensor, torch.Tensor):
                expect(not tensor.is_complex() and tensor.isfinite().all(), "statistics that aren't finite numbers")

    return Case(lambda: read_statistics(Path("x.npz")), (DataError,), check)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def named(make: Callable[[], bytes]) -> Callable[[Seeds], Case]:
    def known(seeds: Seeds) -> Case:
        Path("x.npz").write_bytes(make())
        return use(refused=True)

    return known


def _pipe(seeds: Seeds) -> Case:
    pipe(Path("x.npz"))
    return use()


MEAN, COVARIANCE = np.zeros(64), np.eye(64)

KNOWN: dict[str, Callable[[Seeds], Case]] = {
    "F12 npy": named(lambda: npy(MEAN)),
    "F12 complex": named(lambda: npz(mu=MEAN + 1j, sigma=COVARIANCE)),
    "F10 pipe": _pipe,
    "NaN": named(lambda: npz(mu=MEAN * float("nan"), sigma=COVARIANCE)),
    "objects": named(lambda: npz(mu=np.array([Evil()], dtype=object), sigma=COVARIANCE)),
    "no numbers": named(lambda: npz(mu=MEAN.astype(str), sigma=COVARIANCE)),
    "empty": named(lambda: b""),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    size = rng.choice((0, 1, 3, 64))
    mean, covariance = np.zeros(size), np.eye(size)
    bent: tuple[Any, ...] = (
        *(covariance, covariance[:1], mean, -covariance, covariance * 1e308, np.full((size, size), np.inf)),
        *(
            covariance.astype(bool),
            covariance.astype("<m8"),
            covariance.astype(np.float16),
            np.array(1.0),
            covariance[None],
        ),
    )
    name = rng.choice(("sigma", "sigma", "sigma", "mu", "Sigma"))
    data = npz(**{"mu": mean, "sigma": covariance, name: rng.choice(bent)})
    Path("x.npz").write_bytes(bend_bytes(rng, data) if rng.random() < 0.5 else data)
    if rng.random() < 0.05:
        put_odd(rng, Path("x.npz"))
    return use()


GROUP = Group("statistics", KNOWN, random_case)
