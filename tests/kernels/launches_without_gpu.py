"""Starts attention's kernels, compiled for an H100, on a driver that only notes which is started and with what.

`test_launching.py` runs this in a process of its own: under TRITON_INTERPRET, as tests run, nothing is compiled.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompilationError
from triton.runtime import driver

from maskgit_kernels import launching
from maskgit_kernels.attention import launch, triton_backward, triton_forward
from maskgit_kernels.attention.tiling import Tiling

noted: list[tuple[Any, ...]] = []  # hash of the compiled kernel, grid, arguments


class Utilities:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, *_: Any) -> None:
        pass


class Driver:
    utils = Utilities()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(*given: Any) -> None:
            grid, arguments = given[:3], given[9:]
            noted.append((metadata.hash, grid, [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]))

        return start


driver.set_active(Driver())
for module in (launch, triton_backward):
    module.capability_of = lambda device: 90  # type: ignore[attr-defined]


def given(case: str) -> dict[str, Any]:
    """What the forward kernel is given in a case."""
    batch, heads, queries, keys, dim = 2, 2, 64, 64, 16
    dtype, dropout_p, scale = torch.bfloat16, 0.0, 0.25
    match case:
        case "another batch":
            batch = 3
        case "other heads":
            heads = 3
        case "short":
            queries, keys, dim = 128, 128, 48
        case "long":
            queries = keys = 300
        case "a query more":
            queries = 65
        case "a key more":
            keys = 65
        case "another head_dim":
            dim = 32
        case "float16":
            dtype = torch.float16
        case "float32" | "tf32":
            dtype = torch.float32
        case "dropout":
            dropout_p = 0.5
        case "a scale of one":
            scale = 1
    torch.set_float32_matmul_precision("high" if case == "tf32" else "highest")
    # The same strides whatever the sizes, as views of something larger have them: they must not tell cases apart.
    image, head, row = 4 * 300 * 64, 300 * 64, 64
    strides = {
        "heads together": (image, dim, heads * dim, 1),
        "columns apart": (image, head, row, 2),
        "rows not aligned": (image, head, dim + 1, 1),
    }.get(case, (image, head, row, 1))
    memory = torch.zeros(3 * image, dtype=dtype)
    at = 1 if case == "not aligned" else 0
    q, kv = (memory.as_strided((batch, heads, length, dim), strides, at) for length in (queries, keys))
    return {
        "q": q,
        "k": kv,
        "v": kv,
        "seed": torch.tensor(1) if dropout_p else None,
        "dropout_p": dropout_p,
        "scale": scale,
        "out": memory[: q.numel()].view(q.shape),
        "lse": torch.zeros(q.shape[:3]),
    }


CASES = (
    *("as usual", "another batch", "other heads", "a query more", "a key more", "another head_dim", "float16"),
    *("float32", "tf32", "dropout", "a scale of one"),
    *("heads together", "columns apart", "rows not aligned", "not aligned"),
)


def run(case: str) -> list[tuple[Any, ...]]:
    """What is started for a case, once for each of two calls. The second is to find what the first has left."""
    arguments = given(case)
    noted.clear()
    for _ in range(2):
        triton_forward.forward(**arguments)
    return [(started, grid, [str(x) for x in values]) for started, grid, values in noted]


def without_pointers(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(started, grid, values[6:]) for started, grid, values in found]


def main() -> None:
    # One after another, and each by itself: what came before must not decide what is started.
    together = {case: run(case) for case in CASES}
    # Fewer than cases: the numbers of images and heads and the scale, say, are no part of what is compiled.
    assert len(launching._started) < len(CASES) - 3, len(launching._started)
    for case in CASES:
        launching._started.clear()
        alone = run(case)
        assert len(alone) == 2, case
        assert alone[0] == alone[1], case
        assert without_pointers(together[case]) == without_pointers(alone), case
    different = {alone[0][0] for alone in together.values()}
    assert len(different) >= 9, different

    # A tiling that is imposed comes before what was started without it, and leaves no trace.
    noted.clear()
    for tiling in (None, Tiling(num_warps=8), None):
        with launch.impose("forward", tiling) if tiling else contextlib.nullcontext():
            triton_forward.forward(**given("as usual"))
    first, imposed, last = (started for started, *_ in noted)
    assert first == last != imposed

    # What was started for a gradient of one layout or dtype must not decide for another.
    for case, kernels in (("short", 1), ("long", 2)):
        arguments = given(case)
        forward = [arguments[x] for x in ("q", "k", "v", "out", "lse", "seed", "dropout_p", "scale")]
        q = arguments["q"]
        heads, length, dim = q.shape[1:]
        seen = set()
        for grad, row in itertools.product((q, q.mT.contiguous().mT), (heads * dim, 3 * heads * dim)):
            memory = [torch.zeros(2 * length * row).bfloat16() for _ in range(3)]
            results = [x.as_strided(q.shape, (length * row, dim, row, 1)) for x in memory]
            noted.clear()
            for _ in range(2):
                triton_backward.backward(grad, *forward, *results)
            assert len(noted) == 2 * kernels
            first, again = ([(*x[:2], *x[2][9:]) for x in half] for half in (noted[:kernels], noted[kernels:]))
            assert first == again  # but for pointers
            assert all(row in values for _, _, values in noted)
            seen.add(tuple(started for started, *_ in noted[:kernels]))
        assert len(seen) == 2, seen  # for any row the same
        for name in ("dq", "dk_dv"):
            noted.clear()
            with launch.impose(name, Tiling(block_m=32, block_n=32)):
                triton_backward.backward(grad, *forward, *results)
            assert len(noted) == 2  # what is to be timed runs
    try:
        triton_backward.backward(q.half(), *forward, *results)
    except CompilationError:  # float16 times bfloat16
        return
    raise AssertionError("a gradient in float16 was taken for bfloat16")


if __name__ == "__main__":
    main()
