"""Tuned tilings: where they are looked up, and how the command finds them. Kernels run in Triton's interpreter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import tune
from maskgit_kernels.attention import attention, launch, tuned
from maskgit_kernels.attention.tiling import Tiling, fixed

CPU = torch.device("cpu")
CASE = tune.Case("forward", batch=2, heads=1, length=40, head_dim=16)


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter's device has a name that the table can have rows for; nothing found is kept."""
    monkeypatch.setattr(launch, "name_of", lambda device: "Fake GPU")
    launch.choose.cache_clear()
    tuned._index.cache_clear()
    yield
    launch.choose.cache_clear()
    tuned._index.cache_clear()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "table.json"
    file.write_text("{}")
    monkeypatch.setattr(tuned, "TABLE", file)
    return file


def forward_tiling(length: int, **changes: Any) -> Tiling:
    setting = dict(name="forward", head_dim=16, math="ieee", dropout=False, length=length) | changes
    return launch.choose(CPU, **setting)


def test_the_table_that_ships_has_rows_that_can_be_read() -> None:
    for rows in tuned.load(tuned.TABLE).values():
        for row in rows:
            Tiling(**row["tiling"])


def test_what_is_fixed_for_hopper_is_what_an_h200_timed() -> None:
    """In no row of the table does it take more than 5 % longer than the fastest that was tried."""
    for row in tuned.load(tuned.TABLE)["NVIDIA H200"]:
        length = int(re.search(r"N=(\d+)", row["case"])[1])
        choice = fixed(row["kernel"], 90, row["head_dim"], row["math"], row["dropout"], length)
        timed = {Tiling(**tiling): microseconds for tiling, microseconds in row["others"]}
        assert timed[choice] <= 1.05 * row["microseconds"], row["case"]


def test_a_row_is_used_on_its_device_for_its_sizes(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Tiling(block_m=16, block_n=32, widest=32)
    row = tuned.key("forward", 16, "ieee", False, 257) | {"tiling": chosen.__dict__}
    table.write_text(json.dumps({"Fake GPU": [row], "Another GPU": [row | {"head_dim": 32}]}))
    usual = fixed("forward", 80, 16, "ieee", False, 256)
    assert chosen != usual
    assert forward_tiling(256) == forward_tiling(300) == chosen
    assert forward_tiling(255) == forward_tiling(320) == usual
    for changes in ({"head_dim": 32}, {"dropout": True}, {"name": "dq"}, {"math": "tf32"}):
        assert forward_tiling(256, **changes) != chosen
    launch.choose.cache_clear()
    monkeypatch.setattr(launch, "name_of", lambda device: "A third GPU")
    assert forward_tiling(256) == usual


def test_kernels_run_with_the_tiling_of_the_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    chosen = Tiling(block_m=16, block_n=32, widest=16)
    table.write_text(
        json.dumps({"Fake GPU": [tuned.key("forward", 48, "ieee", False, 70) | {"tiling": chosen.__dict__}]})
    )
    used: list[Tiling] = []
    layout = launch._layout
    monkeypatch.setattr(launch, "_layout", lambda name, tiling, *x: used.append(tiling) or layout(name, tiling, *x))
    q, k, v = torch.randn(3, 1, 2, 70, 48, generator=torch.Generator().manual_seed(0))
    found, expected = (attention(q, k, v, backend=backend) for backend in ("triton", "torch"))
    assert used == [chosen]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "shortest, longest", [(0, 63), (64, 127), (192, 255), (256, 319), (448, 511), (512, 639), (1024, 1279)]
)
def test_lengths_that_share_a_tiling(shortest: int, longest: int) -> None:
    assert tuned.bucket(shortest) == tuned.bucket(longest) == shortest
    assert tuned.bucket(longest + 1) == longest + 1


def a_clock(*microseconds: float) -> Callable[[list[Callable[[], None]]], list[float]]:
    """Runs each call once, and says that they took so long."""

    def clock(calls: list[Callable[[], None]]) -> list[float]:
        for call in calls:
            call()
        return list(microseconds)

    return clock


class TestCommand:
    @pytest.fixture(autouse=True)
    def interpreted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")

    small, wide, wrong = Tiling(16, 16, widest=16), Tiling(32, 16, widest=16), Tiling(16, 32, widest=16)

    def run(self, monkeypatch: Any, output: Path, cases: list[tune.Case], *times: float, seconds: float = 60) -> None:
        monkeypatch.setattr(tune, "candidates", lambda *setting: [self.small, self.wide, self.wrong])
        tune.tune(cases, CPU, output, seconds, processes=1, time_calls=a_clock(*times))

    @pytest.mark.parametrize("kernel", ["forward", "dq", "dk_dv"])
    def test_the_fastest_is_written(self, kernel: str, table: Path, tmp_path: Path, monkeypatch: Any) -> None:
        case = tune.Case(kernel, batch=2, heads=1, length=40, head_dim=16, dropout=kernel != "dq")
        other = tuned.key(kernel, 32, "half", False, 40) | {"tiling": self.wrong.__dict__}
        table.write_text(json.dumps({"Fake GPU": [other, case.key | {"tiling": self.wrong.__dict__}]}))
        self.run(monkeypatch, tmp_path / "new.json", [case], 3.0, 1.0, 2.0)
        rows = json.loads((tmp_path / "new.json").read_text())["Fake GPU"]
        assert rows[0] == other  # kept, unlike the older row of the case
        assert len(rows) == 2 and rows[1].items() >= case.key.items()
        assert Tiling(**rows[1]["tiling"]) == self.wide and rows[1]["microseconds"] == 1.0

    def test_wrong_results_and_failures_are_out_of_the_race(
        self, table: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        run = tune.Run.__call__

        def faulty(self: tune.Run, tiling: Tiling) -> None:
            if tiling == TestCommand.wide:
                raise RuntimeError("out of resources")
            run(self, tiling)
            if tiling == TestCommand.wrong:
                self.out[0, 0, 7] = math.nan

        monkeypatch.setattr(tune.Run, "__call__", faulty)
        self.run(monkeypatch, tmp_path / "new.json", [CASE], 5.0)
        (row,) = json.loads((tmp_path / "new.json").read_text())["Fake GPU"]
        assert Tiling(**row["tiling"]) == self.small and len(row["others"]) == 1
        assert "out of resources" in capsys.readouterr().err

    def test_an_error_of_a_tenth_is_none_of_rounding(self, monkeypatch: Any) -> None:
        assert tune.is_right(CASE, self.small, CPU)
        run = tune.Run.__call__
        monkeypatch.setattr(tune.Run, "__call__", lambda self, tiling: (run(self, tiling), self.out.mul_(1.1)))
        assert not tune.is_right(CASE, self.small, CPU)

    def test_each_row_is_there_before_the_next_case_is_timed(
        self, table: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        output = tmp_path / "new.json"
        seen: list[int] = []

        def clock(calls: list[Callable[[], None]]) -> list[float]:
            seen.append(len(json.loads(output.read_text())["Fake GPU"]) if output.exists() else 0)
            return [1.0] * len(calls)

        monkeypatch.setattr(tune, "candidates", lambda *setting: [self.small])
        cases = [CASE, tune.Case("forward", batch=1, heads=1, length=20, head_dim=32)]
        tune.tune(cases, CPU, output, 60, processes=1, time_calls=clock)
        assert seen == [0, 1]

    def test_no_case_is_begun_when_the_time_is_up(self, table: Path, tmp_path: Path, monkeypatch: Any) -> None:
        self.run(monkeypatch, tmp_path / "new.json", [CASE], seconds=0)
        assert not (tmp_path / "new.json").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_says_so_where_there_is_no_gpu(self, tmp_path: Path, capsys: Any) -> None:
        with pytest.raises(SystemExit) as exit:
            tune.main(["--output", str(tmp_path / "new.json")])
        assert exit.value.code == 2
        assert "there is no NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune.Case, "candidates", lambda self, capability: [Tiling(), Tiling(block_n=32)])
    cases = [tune.Case(kernel, batch=2, heads=2, length=256, head_dim=48) for kernel in ("forward", "dq", "dk_dv")]
    tune.tune(cases, torch.device("cuda"), tmp_path / "new.json", 120, processes=1)
    rows = json.loads((tmp_path / "new.json").read_text())["Fake GPU"]
    assert len(rows) == 3
    assert all(len(row["others"]) == 2 and row["microseconds"] > 0 for row in rows)
