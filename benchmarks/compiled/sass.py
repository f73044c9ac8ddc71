"""Reads NVIDIA machine code (SASS) as `cuobjdump -sass` prints it: instructions, loops, tensor-core work.

Pure text analysis, without Triton or a GPU; `benchmarks.compiled` puts it to use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Some versions of cuobjdump add, before the semicolon, what the scheduler is to wait for: "&req={0} ?trans1".
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*(?:[&?].*)?;")
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)

# Jumps to the address that is their last operand. A CALL may serve as a jump (ptxas leaves loops with one), so its
# target counts as a successor; what it calls never branches back into the caller and so can't make a false loop.
_JUMPS = {"BRA", "JMP", "CALL"}
_INDIRECT = {"BRX", "BRXU", "JMX", "JMXU"}
_ENDS = {"EXIT", "RET", "KILL"}

# Multiply-adds of one matrix instruction, over a warp for HMMA and over a group of four warps for HGMMA.
_HMMA = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
_HGMMA = re.compile(r"(\d+)x(\d+)x(\d+)")

_LONG_PRODUCT = re.compile(r"IMAD\.(WIDE|HI)\b")  # half as many a clock as others (CUDA C++ Programming Guide)

_WIDTH = re.compile(r"\.[US]?(8|16|64|128|256)(?:\.|$)")  # of a load or store, in bits; 32 goes without saying


@dataclass(frozen=True)
class Instruction:
    """One machine instruction, such as `@!P0 BRA 0x1ee0`: predicate "!P0", opcode "BRA", operands "0x1ee0"."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers: HMMA for HMMA.16816.F32.BF16."""
        return self.opcode.split(".")[0]


def parse(text: str) -> list[Instruction]:
    """The instructions of the one function in `text`, padding included.

    Raises:
        ValueError: no function, or more than one.
    """
    functions = _FUNCTION.findall(text)
    if len(functions) != 1:
        raise ValueError(f"expected the machine code of one function, got {functions or 'none'}")
    matches = filter(None, map(_INSTRUCTION.match, text.splitlines()))
    return [Instruction(int(address, 16), *rest) for address, *rest in (match.groups("") for match in matches)]


def matrix_instructions(instructions: Iterable[Instruction]) -> Counter[str]:
    """How often each kind of tensor-core instruction occurs: {"HMMA.16816": 48}.

    Raises:
        ValueError: an instruction whose work is not known here, which must not count as none.
    """
    counts: Counter[str] = Counter()
    for instruction in instructions:
        if instruction.name.endswith("MMA"):
            kind = ".".join(instruction.opcode.split(".")[:2])
            _macs(kind)
            counts[kind] += 1
    return counts


def special_functions(instructions: Iterable[Instruction]) -> int:
    """Instructions that the special function units take: exp2, log2, 1/x, ..."""
    return sum(instruction.name == "MUFU" for instruction in instructions)


def issue_slots(instructions: Iterable[Instruction]) -> int:
    """Turns of a scheduler that they take: one each, but two where the upper half of an integer product is wanted."""
    return sum(2 if _LONG_PRODUCT.match(instruction.opcode) else 1 for instruction in instructions)


def loaded_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes that one thread reads from global memory, into registers (LDG) or shared memory (LDGSTS)."""
    return _bytes(instructions, {"LDG", "LDGSTS"})


def stored_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes that one thread writes to global memory."""
    return _bytes(instructions, {"STG"})


def _bytes(instructions: Iterable[Instruction], names: set[str]) -> int:
    moves = (instruction for instruction in instructions if instruction.name in names)
    return sum(int(match.group(1)) // 8 if (match := _WIDTH.search(move.opcode)) else 4 for move in moves)


def tensor_core_macs(kinds: Counter[str], num_warps: int) -> int:
    """Multiply-adds that a thread block of `num_warps` warps does in these instructions.

    Each warp runs each HMMA, each group of four warps each HGMMA. UTCHMMA (sm_100) counts as 0: its shape is in a
    descriptor in a register, not in the code.
    """
    crews = {"HMMA": num_warps, "HGMMA": num_warps // 4, "UTCHMMA": 1}
    return sum(count * _macs(kind) * crews[kind.split(".")[0]] for kind, count in kinds.items())


def _macs(kind: str) -> int:
    name, _, shape = kind.partition(".")
    if name == "HMMA" and shape in _HMMA:
        return _HMMA[shape]
    if name == "HGMMA" and (match := _HGMMA.fullmatch(shape)):
        m, n, k = map(int, match.groups())
        return m * n * k
    if name == "UTCHMMA":
        return 0
    raise ValueError(f"matrix instruction of unknown shape: {kind}")


def loops(instructions: list[Instruction]) -> list[frozenset[Instruction]]:
    """The natural loops: each one's instructions, those of nested loops included, padding not.

    Looking for backward branches is not enough: ptxas moves rarely taken code, such as the waiting at a barrier, behind
    the end of the function, and its way back is a backward branch too. So a loop is what can reach a jump to a block
    through which every way to that jump leads (its dominator).

    Raises:
        ValueError: a jump through a register, whose targets are unknown.
    """
    blocks = _basic_blocks(instructions)
    successors = _successors(blocks)
    predecessors: list[set[int]] = [set() for _ in blocks]
    for block, targets in enumerate(successors):
        for target in targets:
            predecessors[target].add(block)
    dominators = _dominators(successors, predecessors)

    bodies: dict[int, set[int]] = {}  # head -> blocks
    for block, over in dominators.items():
        for head in successors[block] & over:
            body = bodies.setdefault(head, {head})
            pending = {block} - body
            while pending:
                body |= pending
                pending = set().union(*(predecessors[inside] for inside in pending)) & dominators.keys() - body
    return [frozenset(i for block in body for i in blocks[block] if i.name != "NOP") for body in bodies.values()]


def after(instructions: list[Instruction], loop: frozenset[Instruction]) -> frozenset[Instruction]:
    """What may run once a loop is left, padding excluded."""
    blocks = _basic_blocks(instructions)
    successors = _successors(blocks)
    reached, pending = set(), {number for number, block in enumerate(blocks) if not loop.isdisjoint(block)}
    while pending:
        reached |= pending
        pending = set().union(*(successors[number] for number in pending)) - reached
    return frozenset(i for number in reached for i in blocks[number] if i.name != "NOP") - loop


def _basic_blocks(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The code cut after each jump and before each instruction that a jump leads to."""
    targets = {_target(instruction) for instruction in instructions}
    blocks: list[list[Instruction]] = []
    cut = True
    for instruction in instructions:
        if cut or instruction.address in targets:
            blocks.append([])
        blocks[-1].append(instruction)
        cut = instruction.name in _JUMPS | _ENDS
    return blocks


def _target(instruction: Instruction) -> int | None:
    """Where a jump leads; None for any other instruction."""
    if instruction.name in _INDIRECT:
        raise ValueError(f"can't follow the jump {instruction.opcode} {instruction.operands}")
    if instruction.name not in _JUMPS:
        return None
    return int(instruction.operands.split()[-1], 16)


def _successors(blocks: list[list[Instruction]]) -> list[set[int]]:
    """For each block, those that may run after it."""
    block_at = {block[0].address: number for number, block in enumerate(blocks)}
    successors = []
    for number, block in enumerate(blocks):
        last = block[-1]
        target = _target(last)
        # `BRA.U !UP0, 0x140` is as conditional as `@!P0 BRA 0x140`, and after a CALL the caller goes on.
        goes_on = bool(last.predicate) or "," in last.operands or last.name not in {"BRA", "JMP"} | _ENDS
        following = {number + 1} if goes_on and number + 1 < len(blocks) else set()
        successors.append(following if target is None else following | {block_at[target]})
    return successors


def _dominators(successors: list[set[int]], predecessors: list[set[int]]) -> dict[int, set[int]]:
    """For each block that can be reached from the first, the blocks through which every way to it leads."""
    reached, pending = {0}, {0}
    while pending:
        pending = set().union(*(successors[block] for block in pending)) - reached
        reached |= pending
    dominators = {block: set(reached) for block in sorted(reached)}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in dominators.keys() - {0}:
            ways = [dominators[way] for way in predecessors[block] & reached]
            through = set.intersection(*ways) | {block}
            if through != dominators[block]:
                dominators[block], changed = through, True
    return dominators
