"""The measurement of context reuse, on a tiny model."""

from __future__ import annotations

import math

import torch

from benchmarks.models import make_models
from benchmarks.reuse import Options, rows, share, surprise


def test_rows() -> None:
    model = make_models("embedded", torch.device("cpu"), quick=True)["float32"]
    config = model.transformer.config
    tokens = torch.randint(config.codebook_size, (3, config.num_tokens))
    masked = torch.rand(3, config.num_tokens) < 0.7
    lines = list(rows(model, tokens, masked, Options(steps=4, reuse=(1, 3), fewer_steps=(2,), seeds=2)))
    names, figures = [line[:12].strip() for line in lines], [[float(x) for x in line[12:].split()] for line in lines]
    assert names == ["4 steps", "reuse 1", "reuse 3", "2 steps"]
    assert figures[0][1:3] == [1.0, 1.0]  # of itself
    for _, speedup, agreement, original, nats in figures:
        assert speedup > 0 and 0 <= agreement <= 1 and 0 <= original <= 1
        assert abs(nats - math.log(config.codebook_size)) < 1  # random weights: nearly uniform


def test_figures() -> None:
    masked = torch.tensor([[True, True, False, True]])
    assert share(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 0, 0, 4]]), masked) == 2 / 3
    model = make_models("embedded", torch.device("cpu"), quick=True)["float32"]
    with torch.no_grad():  # sure of code 5 everywhere
        model.transformer.bias.zero_()[:, 5] = 50
    fives = torch.full((2, model.transformer.config.num_tokens), 5)
    assert surprise(model, fives, fives == 5, 0) < 1e-3 and surprise(model, fives - 1, fives == 5, 0) > 40
