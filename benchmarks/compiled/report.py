"""Compiles one kernel for a GPU that need not be there, and reads from its code what it will cost.

A kernel can compile and still be a bad one: registers spilled to memory, tensor cores that do the same work in several
warps, a body that Triton has replaced by a trap because the tensor memory did not suffice, a barrier that is missing.
`Report.faults` names what no shipped kernel may have; the rest is for people to weigh, and for the limits in
tests/benchmarks/compiled/test_shipped.py. `benchmarks.compiled` is the command.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compiled import ptx, sass, ttgir
from benchmarks.compiled.architectures import ARCHITECTURES, bounds, occupancy, why_not_analysed
from maskgit_kernels.backend import interpreting
from maskgit_kernels.build import Build


@dataclass(frozen=True)
class Report:
    """What one build compiled to. Instructions are counted per thread, multiply-adds (MACs) per thread block.

    The main loop is the innermost one with tensor-core work; without any, the one that reads global memory and has the
    most instructions of its own, or just the latter where none reads. If the compiler unrolled it altogether, or there
    is none, it is the whole kernel.
    """

    name: str
    capability: int
    num_warps: int
    registers: int
    stack: int  # bytes
    local_stores: int  # instructions that spill a register
    local_loads: int  # instructions that fetch it back
    shared: int  # bytes
    tensor_memory: int  # columns
    blocks: int  # thread blocks that fit on one multiprocessor
    blocks_limit: str  # what limits them: "registers", "shared memory", ...
    instructions: int
    loop_instructions: int  # in the machine code's main loop
    unrolled: int  # passes of the source's loop that are one pass of the machine code's
    per_element: float  # instructions of all threads in the main loop, per element; 0 where the build counts none
    slots_per_element: float  # likewise, those that take two of a scheduler's turns counted twice
    special_per_element: float  # likewise, special functions alone (exp2, log2, 1/x)
    epilogue_per_element: (
        float  # likewise of what the loop around the main loop has besides or, with none, what follows
    )
    bytes_per_element: float  # likewise, read from global memory in the main loop, padding included
    stored_per_element: float  # likewise, bytes written to global memory in all of the code, each loop run once
    matrix_instructions: dict[str, int]  # in the machine code's main loop, by kind
    macs: int  # on tensor cores in one pass of the source's main loop, padding and replication included
    other_macs: int  # on tensor cores outside of the main loop, such as a masked tail, each other loop run once
    padding: float | None  # macs / (ideal_macs * replication): 1 is none; None where no tensor-core work is due
    replication: float  # how often the tensor cores do the same work: 1 is right; 0 where they do none
    limits: dict[str, float]  # see `architectures.bounds`, of the main loop, per element
    atomics: int  # in the PTX
    traps: int  # in the PTX
    handed_over: list[str]  # arguments through which threads pass numbers, behind a barrier; see `ptx.HandOvers`
    races: list[str]  # likewise, without a barrier

    @property
    def faults(self) -> list[str]:
        """What no shipped kernel may have, in words; empty if it is fit."""
        limits = ARCHITECTURES[self.capability]
        faults = []
        if self.traps:
            faults.append(f"{self.traps} traps")
        if self.races:
            faults.append(f"no barrier between what one thread stores and another needs: {', '.join(self.races)}")
        if self.local_stores or self.local_loads or self.stack:
            faults.append(f"spills: {self.local_stores} stores, {self.local_loads} loads, {self.stack} bytes of stack")
        if self.shared > limits.shared_per_block:
            faults.append(f"{self.shared} bytes of shared memory, over {limits.shared_per_block}")
        if self.tensor_memory > limits.tensor_memory:
            faults.append(f"{self.tensor_memory} columns of tensor memory, over {limits.tensor_memory}")
        if self.padding == 0:
            faults.append("no tensor-core work")
        if self.replication > 1:
            faults.append(f"tensor-core work done {self.replication:g} times")
        return faults


@dataclass(frozen=True)
class Failure:
    """A build that can't be compiled, or whose machine code can't be understood."""

    name: str
    capability: int
    faults: list[str]


def report(build: Build, capability: int) -> Report:
    """Compile one kernel and read its machine code. Needs Triton and the tools in its wheel, but no GPU.

    Args:
        build: what to compile.
        capability: ten times the compute capability: a key of ARCHITECTURES.

    Raises:
        RuntimeError: Triton is missing, or set to interpret.
        ValueError: an unknown architecture, or machine code that does not do the products that Triton asked for.
        Exception: whatever Triton raises for a kernel that it can't compile.
    """
    if reason := why_not_analysed(capability):
        raise ValueError(f"capability must be one of {', '.join(map(str, ARCHITECTURES))}, got {capability}: {reason}")
    compiled = _compile(build, capability)
    listing = _disassemble(compiled.asm["cubin"])
    code = sass.parse(listing)
    loop_bytes = _loop_bytes(compiled.asm["ttgir"])
    main, epilogue = _main_loop(code, build.num_warps, reads=loop_bytes > 0)
    names = Counter(instruction.name for instruction in code)
    kinds = sass.matrix_instructions(main)
    if kinds:
        macs, half_macs, replication, unrolled = _tensor_core_work(kinds, build.num_warps, compiled.asm["ttgir"])
    else:
        macs, half_macs, replication = 0, 0.0, 0.0
        unrolled = max(1, sass.loaded_bytes(main) // loop_bytes) if loop_bytes else 1
    source_macs = sum(dot.macs for dots in ttgir.dots(compiled.asm["ttir"]) for dot in dots)

    shared, tensor_memory = compiled.metadata.shared, compiled.metadata.tmem_size
    registers, stack = (int(re.findall(rf"\b{name}:(\d+)", listing)[0]) for name in ("REG", "STACK"))
    blocks, blocks_limit = occupancy(ARCHITECTURES[capability], build.num_warps, registers, shared, tensor_memory)
    per_element = 32 * build.num_warps / build.elements if build.elements else 0.0
    slots, special, loaded = (
        count(main) / unrolled * per_element for count in (sass.issue_slots, sass.special_functions, sass.loaded_bytes)
    )
    half_macs_per_element = half_macs / build.elements if build.elements else 0.0
    arguments = [argument for argument in build.kernel.arg_names if argument not in build.constants]
    hand_overs = ptx.hand_overs(compiled.asm["ptx"], arguments, build.num_warps)
    return Report(
        name=build.name,
        capability=capability,
        num_warps=build.num_warps,
        registers=registers,
        stack=stack,
        local_stores=names["STL"],
        local_loads=names["LDL"],
        shared=shared,
        tensor_memory=tensor_memory,
        blocks=blocks,
        blocks_limit=blocks_limit,
        instructions=len(code) - names["NOP"],
        loop_instructions=len(main),
        unrolled=unrolled,
        per_element=len(main) / unrolled * per_element,
        slots_per_element=slots,
        special_per_element=special,
        epilogue_per_element=len(epilogue) * per_element,
        bytes_per_element=loaded,
        stored_per_element=sass.stored_bytes(code) * per_element,
        matrix_instructions=dict(kinds),
        macs=macs,
        other_macs=round(source_macs - macs / replication) if replication else 0,
        padding=macs / (build.ideal_macs * max(1.0, replication)) if build.ideal_macs else None,
        replication=replication,
        limits=bounds(ARCHITECTURES[capability], slots, special, loaded, half_macs_per_element),
        atomics=len(re.findall(r"^\s*(?:@!?%\w+\s+)?(?:atom|red)\.", compiled.asm["ptx"], re.MULTILINE)),
        traps=len(re.findall(r"\btrap;", compiled.asm["ptx"])),
        handed_over=hand_overs.ordered,
        races=hand_overs.unordered,
    )


def require_compiler() -> None:
    """Raise a RuntimeError that says why nothing can be compiled here, if nothing can."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("compiling kernels needs the package triton, which is not installed")
    if interpreting():
        raise RuntimeError("TRITON_INTERPRET is set, which makes Triton interpret kernels, not compile them: unset it")


def _compile(build: Build, capability: int) -> Any:
    """Triton's CompiledKernel, with its stages in `.asm`; Triton's own cache answers when nothing has changed."""
    require_compiler()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.signature[name] for name in arguments}
    aligned = [n for n, name in enumerate(arguments) if signature[name].startswith("*") or name in build.aligned]
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs=build.constants,
        attrs={(n,): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, "maxnreg": build.max_registers}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _disassemble(cubin: bytes) -> str:
    """What cuobjdump has to say: the resources of the kernel, then its machine code."""
    import triton

    tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loop_bytes(ir: str) -> int:
    """Bytes of global memory that a thread reads in a pass of the TTGIR's loop that reads most; 0: none, or unknown."""
    sizes = [[load.bytes_per_thread for load in loads] for loads in ttgir.loads(ir)[1:]]
    return max((sum(loop) for loop in sizes if 0 not in loop), default=0)


_Code = frozenset[sass.Instruction]


def _main_loop(code: list[sass.Instruction], num_warps: int, reads: bool) -> tuple[_Code, _Code]:
    """The main loop (see Report), and what the next loop around it has besides or, if there is none, what follows.

    Args:
        code: of the kernel, which runs in `num_warps` warps.
        reads: whether the source has a loop that reads global memory.
    """
    whole = frozenset(instruction for instruction in code if instruction.name != "NOP")
    loops = sass.loops(code)

    def own(loop: _Code) -> _Code:
        return loop.difference(*(inner for inner in loops if inner < loop))

    matrix = [loop for loop in loops if sass.matrix_instructions(loop)]
    reading = [loop for loop in loops if sass.loaded_bytes(loop)]
    if matrix:
        innermost = [loop for loop in matrix if not any(inner < loop for inner in matrix)]

        def work(loop: _Code) -> tuple[int, int, int]:
            macs, utchmma = _done_by(sass.matrix_instructions(loop), num_warps)
            return utchmma, macs, len(loop)

        main = max(innermost, key=work)
    elif candidates := (reading if reads else loops):
        main = max(candidates, key=lambda loop: len(own(loop)))
    else:
        main = whole
    around = [loop for loop in loops if main < loop]
    return main, own(min(around, key=len)) if around else sass.after(code, main)


def _done_by(kinds: Counter[str], num_warps: int) -> tuple[int, int]:
    """MACs of these instructions, and the number of UTCHMMA, of whose MACs the machine code says nothing."""
    utchmma = sum(count for kind, count in kinds.items() if kind.startswith("UTCHMMA"))
    return sass.tensor_core_macs(kinds, num_warps), utchmma


def _tensor_core_work(kinds: Counter[str], num_warps: int, ir: str) -> tuple[int, float, float, int]:
    """What tensor cores do in the main loop, from its matrix instructions and the TTGIR that they were made from.

    Returns:
        (MACs in one pass of the source's loop, as many as 16-bit ones would take the same time, how often each is done,
        passes of the source's loop in one of the machine code's).

    Raises:
        ValueError: the two do not fit together: this analysis does not hold for this kernel.
    """
    groups = [[dot for dot in dots if dot.on_tensor_cores] for dots in ttgir.dots(ir)]
    due = max([dots for dots in groups[1:] if dots] or groups, key=lambda dots: sum(dot.macs for dot in dots))
    asked = (
        round(sum(dot.macs * dot.replication for dot in due if not dot.blackwell)),
        sum(dot.utchmma for dot in due),
    )
    done = _done_by(kinds, num_warps)
    unrolled = sum(done) // max(1, sum(asked))
    if unrolled < 1 or done != (unrolled * asked[0], unrolled * asked[1]):
        raise ValueError(
            f"in its main loop the machine code does {done[0]} MACs and {done[1]} UTCHMMA, which is no multiple of the "
            f"{asked[0]} and {asked[1]} that Triton's intermediate code asks for"
        )
    macs = sum(dot.macs * dot.replication for dot in due)
    half_macs = sum(dot.macs * dot.replication * dot.bits / 16 for dot in due)
    return round(macs), half_macs, macs / sum(dot.macs for dot in due), unrolled
