"""Reading machine code: instructions, loops, tensor-core work, on listings small enough to check by hand."""

from __future__ import annotations

import pytest

from benchmarks.compiled import sass


def listing(*lines: str) -> str:
    """What cuobjdump prints for these instructions, 16 bytes each; "AT(n)" stands for the address of the n-th."""
    text = [" Function : kernel", '\t.headerflags @"EF_CUDA_SM80"']
    for number, line in enumerate(lines):
        for index in range(len(lines)):
            line = line.replace(f"AT({index})", hex(16 * index))
        text.append(f"        /*{16 * number:04x}*/                   {line} ;     /* 0x00000a0000017a02 */")
        text.append("                                                  /* 0x000fe40000000f00 */")
    return "\n".join(text)


def numbers(loop: frozenset[sass.Instruction]) -> list[int]:
    return sorted(instruction.address // 16 for instruction in loop)


def loops(*lines: str) -> list[list[int]]:
    return sorted(numbers(loop) for loop in sass.loops(sass.parse(listing(*lines))))


def test_instructions_are_taken_apart() -> None:
    code = sass.parse(listing("MOV R1, c[0x0][0x28]", "@!P0 BRA AT(0)", "BRA.U !UP0, AT(1)", "EXIT", "NOP"))
    assert [(i.address, i.predicate, i.opcode, i.name, i.operands) for i in code] == [
        (0, "", "MOV", "MOV", "R1, c[0x0][0x28]"),
        (16, "!P0", "BRA", "BRA", "0x0"),
        (32, "", "BRA.U", "BRA", "!UP0, 0x10"),
        (48, "", "EXIT", "EXIT", ""),
        (64, "", "NOP", "NOP", ""),
    ]


def test_remarks_on_scheduling_are_no_operands() -> None:
    code = sass.parse(listing("MOV R1, c[0x0][0x28]     &wr=0x1    ?trans8", "@!P0 BRA AT(0)    &req={1}  ?trans6"))
    assert [(i.name, i.operands) for i in code] == [("MOV", "R1, c[0x0][0x28]"), ("BRA", "0x0")]


def test_one_function_at_a_time() -> None:
    text = listing("EXIT")
    with pytest.raises(ValueError, match="one function"):
        sass.parse(text + "\n" + text)
    with pytest.raises(ValueError, match="one function"):
        sass.parse("")


@pytest.mark.parametrize("back", ["@P0 BRA AT(1)", "BRA.U !UP0, AT(1)", "BRA P1, AT(1)"])
def test_loop_ends_at_a_conditional_branch_back(back: str) -> None:
    assert loops("MOV R1, R2", "FADD R1, R1, R2", "NOP", "FMUL R1, R1, R2", back, "EXIT") == [[1, 3, 4]]


def test_straight_code_and_the_trap_after_it_have_no_loop() -> None:
    # The branch to itself that ends every function is never reached.
    assert loops("@P0 BRA AT(2)", "FADD R1, R1, R2", "EXIT", "BRA AT(3)", "NOP") == []


def test_nested_loops_each_with_what_is_in_them() -> None:
    code = ["MOV R1, R2", "FADD R1, R1, R2", "FMUL R1, R1, R2", "@P0 BRA AT(2)", "@P1 BRA AT(1)", "EXIT"]
    assert loops(*code) == [[1, 2, 3, 4], [2, 3]]


def test_waiting_that_was_moved_behind_the_end_is_part_of_its_loop_and_makes_none_of_its_own() -> None:
    code = [
        "MOV R1, R2",
        "@!P0 BRA AT(7)",  # the barrier is not ready: wait below
        "FADD R1, R1, R2",  # where the waiting comes back to
        "@!P1 BRA AT(9)",  # once more, in straight code behind the loop's head
        "FMUL R1, R1, R2",
        "@P2 BRA AT(3)",
        "EXIT",
        "@!P0 BRA AT(7)",
        "BRA AT(2)",
        "@!P1 BRA AT(9)",
        "BRA AT(4)",
    ]
    assert loops(*code) == [[3, 4, 5, 9, 10], [7], [9]]


def test_what_follows_a_loop() -> None:
    code = sass.parse(
        listing(
            "MOV R1, R2",
            "@P0 BRA AT(5)",
            "FADD R1, R1, R2",
            "@P1 BRA AT(2)",
            "FMUL R1, R1, R2",
            "@!P2 BRA AT(7)",  # also reached without the loop
            "EXIT",
            "STG.E [R2.64], R1",
            "EXIT",
            "NOP",
        )
    )
    (loop,) = sass.loops(code)
    assert numbers(loop) == [2, 3]
    assert numbers(sass.after(code, loop)) == [4, 5, 6, 7, 8]


def test_a_call_that_leaves_a_loop_is_followed() -> None:
    # As ptxas writes it for sm_80: without its edge, everything after the loop would seem unreachable.
    code = ["FADD R1, R1, R2", "@P0 CALL.REL.NOINC AT(3)", "BRA AT(0)", "BRA AT(4)", "FMUL R1, R1, R2", "@P1 BRA AT(4)"]
    assert loops(*code, "EXIT") == [[0, 1, 2], [4, 5]]


def test_jump_through_a_register_is_refused() -> None:
    with pytest.raises(ValueError, match="BRX"):
        loops("BRX R2 -0x10", "EXIT")


def test_work_of_matrix_instructions() -> None:
    code = sass.parse(
        listing(
            "HMMA.16816.F32.BF16 R4, R8, R12, R4",
            "HMMA.16816.F32.BF16 R4, R8, R12, R4",
            "HMMA.1688.F32.TF32 R4, R8, R12, R4",
            "HGMMA.64x32x16.F32.BF16 R56, R80, gdesc[UR12].tnspB, R56",
            "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR31], tmem[UR32], idesc[UR33], !UPT",
            "FFMA R1, R2, R3, R4",
        )
    )
    kinds = sass.matrix_instructions(code)
    assert kinds == {"HMMA.16816": 2, "HMMA.1688": 1, "HGMMA.64x32x16": 1, "UTCHMMA": 1}
    assert sass.tensor_core_macs(kinds, num_warps=8) == 8 * (2 * 16 * 8 * 16 + 16 * 8 * 8) + 2 * 64 * 32 * 16


@pytest.mark.parametrize("opcode", ["IMMA.16832.S8.S8", "HMMA.SP.16832.F32", "DMMA.884"])
def test_unknown_matrix_instruction_is_refused(opcode: str) -> None:
    with pytest.raises(ValueError, match=opcode.split(".")[0]):
        sass.matrix_instructions(sass.parse(listing(f"{opcode} R4, R8, R12, R4")))


def test_turns_of_the_scheduler_and_special_functions() -> None:
    opcodes = ["IMAD.WIDE.U32", "IMAD.HI.U32", "IMAD.MOV.U32", "IMAD", "MUFU.EX2", "MUFU.LG2", "FFMA"]
    code = sass.parse(listing(*(f"{opcode} R1, R2, R3, R4" for opcode in opcodes)))
    assert sass.issue_slots(code) == 2 + 2 + 1 + 1 + 1 + 1 + 1
    assert sass.special_functions(code) == 2


def test_bytes_of_global_memory() -> None:
    opcodes = {  # read, written
        "LDG.E": (4, 0),
        "LDG.E.64": (8, 0),
        "LDG.E.128.CONSTANT": (16, 0),
        "LDG.E.U16": (2, 0),
        "LDG.E.U8": (1, 0),
        "LDGSTS.E.BYPASS.128": (16, 0),
        "LDGSTS.E.BYPASS.LTC128B.128": (16, 0),
        "LDS.128": (0, 0),
        "STG.E.128": (0, 16),
        "STG.E": (0, 4),
        "STG.E.U16": (0, 2),
    }
    for opcode, expected in opcodes.items():
        code = sass.parse(listing(f"{opcode} R4, [R2.64]"))
        assert (sass.loaded_bytes(code), sass.stored_bytes(code)) == expected, opcode
