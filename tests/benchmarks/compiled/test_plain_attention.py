"""The lesson's kernel is no toy: what an H100 gets for it spills nothing and wastes no product."""

import json

import pytest

pytest.importorskip("triton")


def test_compiles_to_what_a_gpu_likes(run_compiled):
    run = run_compiled("--module", "plain_builds", "--capability", "90", "--json")
    assert run.returncode in (0, 1), run.stderr
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    assert len(rows) == 4
    assert {name: row["faults"] for name, row in rows.items() if row["faults"]} == {}
    for name, row in rows.items():
        assert row["padding"] == 1, name
    assert rows["plain attention, head_dim 64"]["limits"]["issue"] <= 16
