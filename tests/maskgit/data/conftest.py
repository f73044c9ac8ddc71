"""A generator of random numbers whose seed is shown when a test fails."""

import os

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)  # shown by pytest when a test fails
    return np.random.default_rng(seed)
