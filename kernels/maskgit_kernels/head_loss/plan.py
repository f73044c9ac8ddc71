"""How the kernels of head_loss are laid out for some sizes, and how they are compiled."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton

from maskgit_kernels.build import Build
from maskgit_kernels.common import precision
from maskgit_kernels.head_loss import triton_gradients, triton_loss

_SCRATCH = 2**28  # bytes of softmax weights that there are at a time, but for 128 rows of however many codes
# Programs for the gradient of the weight, if there are rows enough: two for each multiprocessor of the larger GPUs.
_PROGRAMS = 256


@dataclass(frozen=True)
class Plan:
    """Of one call."""

    math: str
    """What multiplies: "half", "tf32" or "ieee"."""
    batch: int
    length: int
    width: int
    num_codes: int
    bias: str
    """ "none", "code" or "position"."""
    gradients: bool

    rows_packed = rows_summed = 4096
    rows_joined = 16

    @property
    def side(self) -> int:
        """Rows, codes or elements of a row, of the tiles of all products. With half as many rows, a program would read
        half as much again for each multiply-add, and bytes are what tensor cores wait for."""
        return 64 if self.math == "ieee" else 128

    @property
    def depth(self) -> int:
        """What a product adds up at a time."""
        return {"half": 64, "tf32": 32, "ieee": 16}[self.math]

    @property
    def num_rows(self) -> int:
        return self.batch * self.length

    @property
    def tiles(self) -> int:
        """Of a row."""
        return triton.cdiv(self.num_codes, self.side)

    @property
    def stride(self) -> int:
        """Softmax weights of a row, those beyond the last code included."""
        return self.tiles * self.side

    @property
    def chunk(self) -> int:
        """Rows whose softmax weights there are at a time; all, if there are none."""
        rows = triton.cdiv(self.num_rows, self.side)
        if self.gradients:
            row = self.stride * (2 if self.math == "half" else 4)
            rows = min(rows, max(1, _SCRATCH // (row * self.side)))
        return rows * self.side

    @property
    def width_tiles(self) -> int:
        return triton.cdiv(self.width, self.side)

    @property
    def slices(self) -> int:
        """Among which the rows are shared out for the gradient of the weight."""
        wanted = _PROGRAMS // (self.tiles * self.width_tiles)
        return max(1, min(wanted, self.num_rows // (4 * self.depth)))

    @functools.cached_property
    def compiled(self) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
        """By kernel: its constexpr arguments, and its warps and stages."""
        options = {"num_warps": 4 if self.math == "ieee" else 8, "num_stages": 3}
        product = {"NUM_CODES": self.num_codes, "PRECISION": precision(self.math), **options}
        gradient = product | {"CODES_STRIDE": self.stride, "EVEN_WIDTH": self.width % self.side == 0}
        kernels: dict[str, dict[str, Any]] = {
            "pack_rows": {"BLOCK": self.rows_packed, "num_warps": 8},
            "weigh_tiles": product
            | {"BIAS": self.bias, "EVEN_WIDTH": self.width % self.depth == 0}
            | {"BLOCK_M": self.side, "BLOCK_V": self.side, "BLOCK_D": self.depth},
            "join_tiles": {"NUM_CODES": self.num_codes, "TILES": self.tiles, "BLOCK_V": self.side}
            | {"BLOCK_T": min(128, triton.next_power_of_2(self.tiles)), "BLOCK_M": self.rows_joined},
            "differentiate_logits": {"NUM_CODES": self.num_codes, "PRECISION": precision(self.math)}
            | {"SEGMENT": None if self.bias == "position" else self.side}
            | {"BLOCK_M": min(32, triton.next_power_of_2(self.batch)) if self.bias == "position" else 32}
            | {"BLOCK_V": self.side},
            "differentiate_hidden": gradient | {"BLOCK_M": self.side, "BLOCK_D": self.side, "BLOCK_V": self.depth},
            "differentiate_weight": gradient | {"BLOCK_V": self.side, "BLOCK_D": self.side, "BLOCK_M": self.depth},
            "sum_rows": {"BLOCK": self.rows_summed, "num_warps": 8},
        }
        return {
            name: (
                {x: value for x, value in constants.items() if x.isupper()},
                {x: value for x, value in constants.items() if not x.isupper()},
            )
            for name, constants in kernels.items()
        }


plan_of = functools.cache(Plan)

_TYPES = {
    "counted": "*i1",
    "hits_among": "*i1",
    "targets": "*i64",
    "hit_count": "*i64",
    "rows": "*i32",
    "starts": "*i32",
    "codes_of_tops": "*i32",
    "hits": "*i32",
    "smoothing": "fp32",
    **dict.fromkeys(("batch", "length", "width", "first_row", "chunk"), "i32"),
}
_MULTIPLIED = ("hidden", "weight", "weights", "dlogits", "dhidden")


def builds(capability: int) -> list[Build]:
    """The kernels as launched for 64 images and a hidden state of 768, with label smoothing."""

    def build(name: str, math: str, length: int, num_codes: int, bias: str, gradients: bool = True) -> Build:
        plan = Plan(math, 64, length, 768, num_codes, bias, gradients)
        kernel = getattr(triton_loss if hasattr(triton_loss, name) else triton_gradients, name)
        constants, options = plan.compiled[name]
        constants = constants | ({"bias": None} if bias == "none" else {})
        constants |= {} if gradients else {"weights": None}
        constants |= {} if bias != "none" else {"sums": None}
        multiplied = "*bf16" if math == "half" else "*fp32"
        types = _TYPES | dict.fromkeys(_MULTIPLIED, multiplied)
        arguments = [x for x in kernel.arg_names if x not in constants]
        elements, ideal_macs = 0, 0
        if name in ("weigh_tiles", "differentiate_hidden", "differentiate_weight"):
            elements = plan.side**2
            ideal_macs = 0 if math == "ieee" else elements * plan.depth
        elif name == "differentiate_logits":
            elements = 32 * plan.side
        remark = "" if gradients else ", without gradients"
        short = {"half": "bf16", "tf32": "tf32", "ieee": "fp32"}[math]
        return Build(
            f"head loss, {name.replace('_', ' ')}{remark}, V={num_codes}, {short}",
            kernel,
            signature={x: types.get(x, "*fp32") for x in arguments},
            constants={x: value for x, value in constants.items() if x in kernel.arg_names},
            aligned=tuple(x for x in ("width", "chunk") if x in arguments),
            elements=elements,
            ideal_macs=ideal_macs,
            **options,
        )

    lab, halton = ("half", 256, 1024, "position"), ("half", 576, 16384, "code")
    products = ("weigh_tiles", "differentiate_hidden", "differentiate_weight")
    others = ("pack_rows", "join_tiles", "differentiate_logits", "sum_rows")
    return [
        *(build(name, *lab) for name in (*products, *others)),
        *(build(name, *halton) for name in ("weigh_tiles", "join_tiles", "differentiate_logits")),
        build("weigh_tiles", *halton, gradients=False),
        *(build(name, math, 256, 1024, "position") for math in ("tf32", "ieee") for name in products),
    ]
