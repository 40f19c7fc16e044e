"""The check of machine code finds registers that nothing has set, and no others."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def findings(compile_report):
    def findings(*lines):
        return compile_report.uniform_registers.unset_uniform_registers(function("kernel", lines))

    return findings


def function(name, lines):
    """Code as cuobjdump prints it: one instruction per 16 bytes, with its bits after it and on the next line."""
    code = "\n".join(
        f"        /*{16 * i:04x}*/                   {line} ;      /* 0x0000004010107890 */\n"
        "                                                     /* 0x000fe2000ff1e03f */"
        for i, line in enumerate(lines)
    )
    return f'\tcode for sm_90a\n\t\tFunction : {name}\n\t.headerflags\t@"EF_CUDA_SM90"\n{code}\n\t\t..........\n'


def test_what_ptxas_made_of_a_descriptor(findings):
    """The mistake itself, from the gradient of slot weights: UR16 and UR17 were never set."""
    assert findings(
        "UIADD3 UR16, UP0, UR16, 0x40, URZ",
        "UIADD3.X UR17, UR17, -0x7fffffe0, URZ, UP0, !UPT",
        "HGMMA.64x64x16.F32.BF16 R24, R56, gdesc[UR16], R24",
        "EXIT",
    ) == [
        "0x0 UIADD3 reads UR16, which nothing sets",
        "0x10 UIADD3.X reads UR17, which nothing sets",
        "0x20 HGMMA.64x64x16.F32.BF16 reads UR18, UR19, which nothing sets",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("UMOV UR4, 0x1", "MOV R0, UR4"),
        ("@P0 UMOV UR4, 0x1", "MOV R0, UR4"),
        ("@P0 BRA 0x20", "UMOV UR4, 0x1", "MOV R0, UR4"),
        ("BRA.U UP0, 0x20", "UMOV UR4, 0x1", "MOV R0, UR4"),
        ("@P0 BRA 0x20", "MOV R0, UR4", "UMOV UR4, 0x1", "@P1 BRA 0x10", "EXIT"),
        ("BRA 0x30", "MOV R0, UR4", "EXIT", "UMOV UR4, 0x1", "BRA 0x10"),
        ("CALL.REL.NOINC 0x30", "MOV R0, UR4", "EXIT", "S2UR UR4, SR_CTAID.X", "RET.REL.NODEC R2 0x0"),
        ("EXIT", "MOV R0, UR4"),
        ("BRA 0x20", "MOV R0, UR4", "EXIT"),
        ("UMOV UR4, URZ", "UMOV UR5, UR4", "UISETP.NE.AND UP0, UPT, UR5, URZ, UPT", "NOP"),
    ],
    ids=[
        "before", "under a condition", "jumped over", "jumped over by all", "in the round before", "further down",
        "in what is called", "never runs", "jumped over always", "zero register",
    ],
)  # fmt: skip
def test_written_on_some_way(findings, lines):
    assert findings(*lines) == []


@pytest.mark.parametrize(
    ("lines", "at"),
    [
        (("MOV R0, UR4", "UMOV UR4, 0x1"), 0x0),
        (("BRA 0x20", "UMOV UR4, 0x1", "MOV R0, UR4"), 0x20),
        (("@P0 EXIT", "MOV R0, UR4", "EXIT"), 0x10),
        (("@!P0 BRA 0x30", "UMOV UR4, 0x1", "EXIT", "MOV R0, UR4"), 0x30),
        (("MOV R0, UR4", "@P0 BRA 0x0", "UMOV UR4, 0x1", "EXIT"), 0x0),
    ],
    ids=["too late", "jumped over", "behind a condition", "on the other way", "after the loop"],
)
def test_written_on_no_way(findings, lines, at):
    assert findings(*lines) == [f"{at:#x} MOV reads UR4, which nothing sets"]


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        (("ULDC.64 UR4, c[0x0][0x208]", "LDG.E R2, desc[UR4][R2.64+0x10]"), ""),
        (("ULDC UR4, c[0x0][0x208]", "LDG.E R2, desc[UR4][R2.64]"), "UR5"),
        (("UMOV UR4, 0x1", "STS.128 [R5+UR4+0x20], R8", "LDS.64 R2, [UR4]"), ""),
        (("UMOV UR4, 0x1", "UIADD3.64 UR6, UR4, 0x2, URZ"), "UR5"),
        (("UMOV UR4, 0x1", "UIMAD.WIDE UR6, UR4, 0x2, UR8", "UMOV UR10, UR7"), "UR8, UR9"),
        (("UMOV UR4, 0x1", "UISETP.NE.AND UP0, UPT, UR4, UR6, UPT"), "UR6"),
        (("R2UR UR4, R2", "REDUX.SUM UR5, R2", "VOTEU.ANY UR6, UPT, PT", "UIADD3 UR7, UR4, UR5, UR6"), ""),
        (("LDCU.128 UR8, c[0x0][0x380]", "HGMMA.64x64x16.F32 R24, gdesc[UR8], R24"), ""),
        (("LDCU.128 UR8, c[0x0][0x380]", "HGMMA.64x64x16.F32 R24, gdesc[UR9].tnspB, R24"), "UR12"),
        (("ULDC.64 UR10, c[0x0][0x208]", "HGMMA.64x64x16.F32 R24, R56, gdesc[UR8], R24"), ""),
        (("UTCATOMSWS.FIND_AND_SET.ALIGN UP0, UR4, UR5", "UMOV UR6, UR4"), "UR5"),
        (("UTCATOMSWS.AND URZ, UR4",), "UR4"),
        (("LDCU.128 UR4, c[0x0][0x8]", "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR4], tmem[UR8], idesc[UR9]"), "UR8, UR9"),
    ],
    ids=[
        "pair", "half a pair", "address", "64 bits", "wide sum", "compared", "from ordinary registers",
        "both factors", "one too far", "first factor in registers", "result after a predicate", "no result",
        "Blackwell",
    ],
)  # fmt: skip
def test_how_wide_operands_are(findings, lines, missing):
    found = findings(*lines)
    assert [x.split(" reads ")[1] for x in found] == ([f"{missing}, which nothing sets"] if missing else [])


def test_each_function_begins_anew(compile_report):
    sass = function("first", ["UMOV UR4, 0x1", "EXIT"]) + function("second", ["NOP", "MOV R0, UR4", "EXIT"])
    found = compile_report.uniform_registers.unset_uniform_registers(sass)
    assert found == ["0x10 MOV reads UR4, which nothing sets"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_report_looks_at_what_has_descriptors(compile_report, monkeypatch, target):
    printed = {
        "--dump-resource-usage": "REG:240 STACK:0",
        "--dump-sass": function("kernel", ["UIADD3 UR16, UP0, UR16, 0x40, URZ", "UIADD3.X UR17, UR17, 0x1, URZ, UP0"]),
    }
    kernel = SimpleNamespace(asm={"cubin": b"", "ptx": ""}, metadata=SimpleNamespace(shared=0))
    monkeypatch.setattr(compile_report, "compiled", lambda launch, target: kernel)
    monkeypatch.setattr(compile_report.uniform_registers, "cuobjdump", lambda cubin, option: printed[option])
    verdict = "wrong machine code (2 instructions): 0x0 UIADD3 reads UR16, which nothing sets"
    row, bad = compile_report.row_of(None, target, "bf16")
    assert (row.split(" | ")[-1], bad) == (("fits", False) if target == "sm_80" else (verdict, True))
