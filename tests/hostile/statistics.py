"""pytorch-fid's statistics of a set of pictures, an .npz file that `python -m maskgit.metrics` reads."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgit.data import DataError
from maskgit.metrics.folders import read_statistics

from .bending import bend_bytes, put_odd
from .cases import Case, Group, Known, expect, with_file
from .seeds import Seeds
from .shards import Evil, npy

PATH = Path("x.npz")


def use(seeds: Seeds, refused: bool = False) -> Case:
    def check(gaussian: Any) -> None:
        expect(not refused, "what are no statistics was taken for some")
        for tensor in gaussian:
            if isinstance(tensor, torch.Tensor):
                expect(not tensor.is_complex() and tensor.isfinite().all(), "statistics that aren't finite numbers")

    return Case(lambda: read_statistics(PATH), (DataError,), check)


def refused(seeds: Seeds) -> Case:
    return use(seeds, True)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


MEAN, COVARIANCE = np.zeros(64), np.eye(64)

KNOWN: Known = {
    "F12 npy": with_file(refused, "x.npz", npy(MEAN)),
    "F12 complex": with_file(refused, "x.npz", npz(mu=MEAN + 1j, sigma=COVARIANCE)),
    "F10 pipe": with_file(use, "x.npz", None),
    "NaN": with_file(refused, "x.npz", npz(mu=MEAN * float("nan"), sigma=COVARIANCE)),
    "objects": with_file(refused, "x.npz", lambda _: npz(mu=np.array([Evil()], dtype=object), sigma=COVARIANCE)),
    "no numbers": with_file(refused, "x.npz", npz(mu=MEAN.astype(str), sigma=COVARIANCE)),
    "empty": with_file(refused, "x.npz", b""),
}


def random_case(rng: random.Random, seeds: Seeds) -> Case:
    size = rng.choice((0, 1, 3, 64))
    mean, square = np.zeros(size), np.eye(size)
    dtype = rng.choice((bool, "<m8[s]", np.float16, np.int8, ">f8", "<U3"))
    changed = (square, square[:1], mean, -square, square * 1e308, np.full((size, size), np.inf), square.astype(dtype))
    data = npz(**{"mu": mean, "sigma": square, rng.choice(("sigma", "sigma", "mu", "Sigma")): rng.choice(changed)})
    PATH.write_bytes(bend_bytes(rng, data) if rng.random() < 0.5 else data)
    if rng.random() < 0.05:
        put_odd(rng, PATH)
    return use(seeds)


GROUP = Group("statistics", KNOWN, random_case)
