"""Which sample is seen when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from maskgit.data.tokens import TokenSample
from maskgit.training.samples import SampleOrder, as_batch
from maskgit.training.settings import LoopConfig, TrainingError
from maskgit.training.tokens import open_tokens, tokenizer_at


def config(**changes: object) -> LoopConfig:
    values = {"output": Path("out"), "steps": 20, "batch_size": 4, "lr": 1e-3}
    return LoopConfig(**(values | changes))  # type: ignore[arg-type]


def test_each_epoch_is_a_permutation() -> None:
    batches = list(SampleOrder(10, config(), 0))
    assert [len(batch) for batch in batches] == [4] * 20
    samples = [sample for batch in batches for sample in batch]
    assert [position for _, position in samples] == list(range(80))
    epochs = [[index for index, _ in samples[start : start + 10]] for start in range(0, 80, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8  # another order each time


@pytest.mark.parametrize("start", [1, 2, 3, 19, 20])
def test_any_start_continues_the_same_order(start: int) -> None:
    order = SampleOrder(10, config(), start)
    assert list(order) == list(SampleOrder(10, config(), 0))[start:]
    assert len(order) == 20 - start


def test_order_depends_on_the_seed() -> None:
    assert list(SampleOrder(10, config(seed=1), 0)) != list(SampleOrder(10, config(), 0))
    # But not on the batch size.
    first, second, *_ = SampleOrder(3, config(batch_size=2), 0)
    assert next(iter(SampleOrder(3, config(), 0))) == first + second


def test_empty_set() -> None:
    with pytest.raises(TrainingError, match="empty"):
        SampleOrder(0, config(), 0)


def test_each_process_takes_its_part_of_the_batch() -> None:
    whole = list(SampleOrder(10, config(batch_size=6), 3))
    parts = [list(SampleOrder(10, config(batch_size=6), 3, process, 3)) for process in range(3)]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == whole


def test_a_batch_of_tokens_is_its_samples(run: Any, unbroken: Any, tmp_path: Path) -> None:
    """With and without holes, in any order, some of them twice."""
    run("transformer", tmp_path, steps=1, hole_share=0.5)
    tokenizer = tokenizer_at(unbroken["tokenizer"] / "model", None)
    shard = open_tokens(tmp_path / "tokens", tokenizer, 0, 0.5).train
    keys = [(index % len(shard), 7 * index) for index in range(40)]
    for chosen in (keys, keys[::-1], keys[:1], keys + keys):
        (batch,) = DataLoader(shard, batch_sampler=[chosen], collate_fn=as_batch)  # type: ignore[arg-type]
        assert isinstance(batch, TokenSample) and batch.tokens.shape == (len(chosen), 16)
        for ours, theirs in zip(batch, zip(*(shard[key] for key in chosen), strict=True), strict=True):
            assert torch.equal(ours, torch.stack(theirs)) and ours.dtype == theirs[0].dtype
    assert 0 < (~batch.candidates).any(1).sum() < 80
