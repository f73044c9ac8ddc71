"""Reads PTX: what the threads of a block hand to each other through global memory, and whether they wait for it.

One thread's store can be read by another only behind a barrier of the block. It may be published to other blocks, by
an atomic operation that releases, only behind one too: that operation orders what its own thread has done, not what the
others have. The interpreter, which has no threads, can't see a missing barrier. Pure text analysis;
`benchmarks.compiled.report` puts it to use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_POINTER = re.compile(r"^\s*\.param \.[us]64 \.ptr \.global .*?(\w+_param_\d+)", re.MULTILINE)
_LABEL = re.compile(r"^(\$\w+):")
_INSTRUCTION = re.compile(r"^(?:@(!?[%\w]+)\s+)?([a-z][\w.:]*)\s*(.*?);")
_REGISTER = re.compile(r"%[a-z]+\d+")
_BARRIER = re.compile(r"^(bar|barrier(\.cta)?)\.sync(\.aligned)?$")  # of the whole block if it names barrier 0 alone


@dataclass(frozen=True)
class HandOvers:
    """What is handed from thread to thread through global memory: "scores, read", "scores, published", ..."""

    ordered: list[str]  # behind a barrier
    unordered: list[str]  # possibly without one: a race


@dataclass(frozen=True)
class _Instruction:
    predicate: str
    opcode: str
    operands: str

    @property
    def registers(self) -> list[str]:
        return _REGISTER.findall(self.operands)


_State = frozenset[tuple[str, bool]]  # kernel arguments that have been stored to, and whether a barrier came after


def hand_overs(text: str, arguments: list[str], num_warps: int) -> HandOvers:
    """What the kernel in `text` hands over.

    Args:
        text: PTX of one kernel.
        arguments: names of the kernel's arguments, in the order of its parameters.
        num_warps: of a thread block. A barrier of the warp is one of the block if that is all it has.

    Raises:
        ValueError: a store to global memory of which it can't be told which argument it goes to, or a jump through a
            table.
    """
    blocks, successors = _blocks(text)
    origins = _origins(blocks, {name: _argument(name, arguments) for name in _POINTER.findall(text)})
    entering: list[set[tuple[str, bool]]] = [set() for _ in blocks]
    found: set[tuple[str, bool]] = set()
    pending = set(range(len(blocks)))
    while pending:
        number = pending.pop()
        leaving = _run(blocks[number], frozenset(entering[number]), origins, num_warps, found)
        for following in successors[number]:
            if not leaving <= entering[following]:
                entering[following] |= leaving
                pending.add(following)
    return HandOvers(*(sorted(what for what, waited in found if waited == ordered) for ordered in (True, False)))


def _run(
    block: list[_Instruction],
    state: _State,
    origins: dict[str, set[str]],
    num_warps: int,
    found: set[tuple[str, bool]],
) -> _State:
    """The state after a block of instructions; what it hands over is added to `found`."""
    for instruction in block:
        kind, *modifiers = instruction.opcode.split(".")
        touched = set[str]().union(*(origins.get(name, set()) for name in _address(instruction)))
        if _is_barrier(instruction, num_warps):
            state = frozenset((name, True) for name, _ in state)
        elif "global" not in modifiers:
            continue
        elif kind == "st":
            if not touched:
                raise ValueError(f"can't tell what is written to by {instruction.opcode} {instruction.operands}")
            state |= {(name, False) for name in touched}
        elif kind in ("ld", "cp"):
            found |= {(f"{name}, read", waited) for name, waited in state if name in touched}
        elif kind in ("atom", "red") and {"release", "acq_rel"} & set(modifiers):
            found |= {(f"{name}, published", waited) for name, waited in state}
    return state


def _is_barrier(instruction: _Instruction, num_warps: int) -> bool:
    if instruction.predicate:
        return False
    if instruction.opcode == "bar.warp.sync":
        return num_warps == 1
    return bool(_BARRIER.match(instruction.opcode)) and instruction.operands.strip() == "0"


def _address(instruction: _Instruction) -> Iterable[str]:
    """The registers of the address in global memory: the last in brackets, before which cp.async names a shared one."""
    brackets = re.findall(r"\[(.*?)\]", instruction.operands)
    return _REGISTER.findall(brackets[-1]) if brackets else ()


def _argument(parameter: str, arguments: list[str]) -> str:
    number = int(parameter.rsplit("_", 1)[1])
    return arguments[number] if number < len(arguments) else parameter  # the last are Triton's own


def _origins(blocks: list[list[_Instruction]], pointers: dict[str, str]) -> dict[str, set[str]]:
    """For each register the pointers among the kernel's arguments that it may have been computed from."""
    origins: dict[str, set[str]] = {}
    changed = True
    while changed:
        changed = False
        for instruction in (instruction for block in blocks for instruction in block):
            registers = instruction.registers
            if not registers or instruction.opcode.startswith(("st.", "bra", "bar")):
                continue
            result, *operands = registers
            if instruction.opcode.startswith("ld.param"):
                parameter = re.search(r"\[(\w+)", instruction.operands)
                new = {pointers[parameter[1]]} if parameter and parameter[1] in pointers else set()
            elif instruction.opcode.startswith(("ld.", "atom.", "cp.")):
                new = set()  # what is found in memory is no pointer
            else:
                new = set().union(*(origins.get(name, set()) for name in operands))
            if not new <= origins.setdefault(result, set()):
                origins[result] |= new
                changed = True
    return origins


def _blocks(text: str) -> tuple[list[list[_Instruction]], list[set[int]]]:
    """The code cut at labels and jumps, and for each block those that may run after it.

    Labels without a $ are of inline assembly, within whose braces jumps stay: it is taken as if it ran straight on.
    """
    blocks: list[list[_Instruction]] = [[]]
    labels: dict[str, int] = {}
    for line in text.splitlines():
        line = line.split("//")[0].strip()
        if label := _LABEL.match(line):
            blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif match := _INSTRUCTION.match(line):
            blocks[-1].append(_Instruction(match[1] or "", match[2], match[3]))
            if match[2].startswith("brx"):
                raise ValueError(f"can't follow the jump {line}")
            if match[2].split(".")[0] in ("bra", "ret", "exit"):
                blocks.append([])
    successors = []
    for number, block in enumerate(blocks):
        last = block[-1] if block else _Instruction("", "", "")
        kind, target = last.opcode.split(".")[0], labels.get(last.operands.strip())
        ends = kind in ("ret", "exit") or kind == "bra" and target is not None
        following = {number + 1} if number + 1 < len(blocks) and (last.predicate or not ends) else set()
        successors.append(following | ({target} if kind == "bra" and target is not None else set()))
    return blocks, successors
