"""Which sample is seen when."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskgit.training.samples import SampleOrder
from maskgit.training.settings import LoopConfig, TrainingError


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
