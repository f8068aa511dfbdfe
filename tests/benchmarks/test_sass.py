"""The simulation of machine code: control bits, what instructions do, and times, on a few instructions each."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.common.files import ROOT
from benchmarks.sass import __main__ as program
from benchmarks.sass import latencies, launches, report, stages
from benchmarks.sass.disassembly import Control, Function, instruction, operands_of, parse, step_loop
from benchmarks.sass.exchange import EMPTY, Exchange, Mailbox
from benchmarks.sass.launches import CASES, Launch, is_kernel
from benchmarks.sass.machine import Fault, Machine
from benchmarks.sass.operands import HALF, of_float, to_float
from benchmarks.sass.results import Result, start_of
from benchmarks.sass.semantics import Unknown

STALL_1 = 0x000FE200000000FF  # of an IADD3: one cycle, no scoreboard
STALL_4 = 0x000FC800078E00FF


def high(stall: int = 1, write: int = 7, read: int = 7, wait: int = 0) -> int:
    return (stall | 1 << 4 | write << 5 | read << 8 | wait << 11) << 41


def machine(*texts: str | tuple[str, int], labels: dict[str, int] | None = None) -> Machine:
    """Of a program, each instruction with a stall of one cycle or with its own encoding, and EXIT after it."""
    code = [
        instruction(16 * i, *((text, STALL_1) if isinstance(text, str) else text))
        for i, text in enumerate((*texts, "EXIT ;"))
    ]
    values = {"rank": 3, "blocks": 4, "teams": 1, "shared_bytes": 4096, "slot_bytes": 64, "received_bytes": 0}
    values |= {"step_bytes": 64, "directions": 1}
    arrays = {"workspace": (1 << 40, 256), "output": (2 << 40, 256), "weight_hh": (3 << 40, 256)}
    launch = Launch([], arrays, values, "grid")
    return Machine(Function("kernel", code, {name: 16 * at for name, at in (labels or {}).items()}), launch, [])


def after(*texts: str, labels: dict[str, int] | None = None, **registers: int) -> list[int]:
    """The registers of warp 1 after a program that begins with these."""
    made = machine(*texts, labels=labels)
    for name, value in registers.items():
        for warp in made.warps:
            warp.r[int(name[1:])] = value & 0xFFFFFFFF
    made.run()
    return made.warps[1].r


def test_control_bits() -> None:
    assert Control.of(STALL_4) == Control(stall=4, yields=True, write=7, read=7, wait=0)
    assert Control.of(0x000E220000000800) == Control(stall=1, yields=False, write=0, read=7, wait=0)  # LDC
    assert Control.of(0x020F220000001000) == Control(stall=1, yields=False, write=4, read=7, wait=0b100000)  # MUFU
    assert Control.of(high(5, 2, 3, 0b100101)) == Control(5, False, 2, 3, 0b100101)


def test_operands() -> None:
    assert operands_of("R1, P0, c[0x0][R2+0x10], desc[UR4][R2.64+0x8]") == (
        "R1", "P0", "c[0x0][R2+0x10]", "desc[UR4][R2.64+0x8]",
    )  # fmt: skip
    assert operands_of("R4 `(kernel)") == ("R4", "`(kernel)")


def test_listing() -> None:
    listing = """
//--------------------- .text.kernel --------------------------
.text.kernel:
\t//## File "/a/exchange.cuh", line 5 inlined at "/a/team.cuh", line 9
\t//## File "/a/team.cuh", line 9
        /*0000*/              @!P0 IADD3 R1, R2, 0x1, RZ ;     /* 0x0000000102017810 */
                                                               /* 0x000fc800078e00ff */
.L_x_1:
        /*0010*/                   BRA `(.L_x_1) ;             /* 0xfffffffc00fc7947 */
                                                               /* 0x000fc0000383ffff */
"""
    (function,) = parse(listing.splitlines())
    first, second = function.code
    assert (first.predicate, first.opcode, first.operands) == ("!P0", "IADD3", ("R1", "R2", "0x1", "RZ"))
    assert first.frames == (("/a/exchange.cuh", 5), ("/a/team.cuh", 9)) == second.frames
    assert first.control.stall == 4 and function.target(second) == 16


@pytest.mark.parametrize(("text", "expected"), [
    ("IADD3 R0, R1, -R2, 0x5 ;", 100 - 7 + 5),
    ("VIADD R0, R1, 0xffffffff ;", 99),
    ("IMAD R0, R1, R2, R3 ;", 703),
    ("IMAD.MOV R0, RZ, RZ, -R1 ;", -100),
    ("IMAD.IADD R0, R1, 0x1, -R2 ;", 93),
    ("IMAD.HI.U32 R0, R4, R4, RZ ;", 0xFFFFFFFE * 0xFFFFFFFE >> 32),
    ("IMAD.HI R0, R4, R1, RZ ;", -1),
    ("LEA R0, R1, R2, 0x3 ;", 807),
    ("LEA.HI R0, R4, R2, RZ, 0x1 ;", 8),
    ("LEA.HI.SX32 R0, R4, R2, 0x1f ;", 6),
    ("LOP3.LUT R0, R1, 0xf, R2, 0x78, !PT ;", 100 ^ (15 & 7)),
    ("LOP3.LUT R0, R1, 0xf, R2, 0xf8, !PT ;", 100 | (15 & 7)),
    ("LOP3.LUT R0, RZ, R1, RZ, 0x33, !PT ;", ~100),
    ("SHF.R.S32.HI R0, RZ, 0x1f, R4 ;", -1),
    ("SHF.R.U32 R0, R1, 0x2, RZ ;", 25),
    ("SHF.L.U64.HI R0, R4, 0x1, R1 ;", 201),
    ("SHF.R.U64 R0, R1, 0x1, R2 ;", 50 | 1 << 31),
    ("PRMT R0, R1, 0x5410, R2 ;", 100 | 7 << 16),
    ("IABS R0, R4 ;", 2),
    ("VIMNMX R0, R1, R4, !PT ;", 100),
    ("VIADDMNMX R0, R4, 0x1, R1, PT ;", -1),
    ("SEL R0, R1, R2, !PT ;", 7),
    ("CS2R R0, SRZ ;", 0),
    ("S2R R0, SR_TID.X ;", 32),
    ("S2R R0, SR_CTAID.X ;", 3),
    ("FADD R0, R5, -1 ;", of_float(0.5)),
    ("FFMA R0, -R5, R5, 1 ;", of_float(-1.25)),
    ("MUFU.EX2 R0, R5 ;", of_float(2**1.5)),
    ("HFMA2.MMA R0, -RZ, RZ, 1.875, 0 ;", 0x3F800000),
    ("HFMA2.MMA R0, -RZ, RZ, 0, 5.9604644775390625e-08 ;", 1),
    ("F2FP.BF16.F32.PACK_AB R0, R5, R5 ;", 0x3FC03FC0),
    ("HADD2.F32 R0, -RZ, R6.H1_H1 ;", of_float(1.0)),
    ("P2R R0, PR, RZ, 0x7f ;", 0),
    ("SGXT R0, R1, 0x3 ;", -4),
    ("POPC R0, R1 ;", 3),
])  # fmt: skip
def test_values(text: str, expected: int) -> None:
    assert after(text, R1=100, R2=7, R3=3, R4=-2, R5=of_float(1.5), R6=0x3C000000)[0] == expected & 0xFFFFFFFF


def test_carries() -> None:
    """64-bit sums and differences, and comparisons of them."""
    wide = {"R2": 0xFFFFFFFF, "R3": 1, "R4": 1, "R5": 2}
    r = after("IADD3 R0, P0, R2, R4, RZ ;", "IADD3.X R1, R3, R5, RZ, P0, !PT ;", **wide)
    assert r[:2] == [0, 4]
    r = after("IADD3 R0, P0, R4, -R2, RZ ;", "IADD3.X R1, R5, ~R3, RZ, P0, !PT ;", **wide)
    assert r[:2] == [2, 0]
    r = after("IADD3 R0, P1, R2, R4, RZ ;", "IMAD.X R1, R3, 0x1, R5, P1 ;", **wide)
    assert r[:2] == [0, 4]
    assert after("IMAD.WIDE R0, R2, 0x8, R4 ;", **wide)[:2] == [0xFFFFFFF9, 1]
    less = ("ISETP.LT.U32.AND P1, PT, R2, R4, PT ;", "ISETP.LT.AND.EX P1, PT, R3, R5, PT, P1 ;")
    assert after(*less, "SEL R0, R4, RZ, P1 ;", **wide)[0] == 1
    assert after("LEA R0, P3, R2, R4, 0x1 ;", "LEA.HI.X R1, R2, R5, R3, 0x1, P3 ;", **wide)[:2] == [0xFFFFFFFF, 5]


def test_floats() -> None:
    assert to_float(0x3FC00000) == to_float(0x3E00, HALF) == to_float(0xABCD3E00, HALF) == 1.5
    assert (of_float(1.5), of_float(1.5, HALF)) == (0x3FC00000, 0x3E00)
    assert (of_float(1e39), of_float(-7e4, HALF)) == (0x7F800000, 0xFC00)


def quotient(a: int, b: int) -> int:
    """nvcc's division of unsigned numbers."""
    return after(
        "I2F.U32.RP R2, R1 ;", "MUFU.RCP R2, R2 ;", "VIADD R4, R2, 0xffffffe ;", "F2I.FTZ.U32.TRUNC.NTZ R3, R4 ;",
        "IMAD.MOV.U32 R2, RZ, RZ, RZ ;", "IMAD.MOV R5, RZ, RZ, -R3 ;", "IMAD R5, R5, R1, RZ ;",
        "IMAD.HI.U32 R6, R3, R5, R2 ;", "IMAD.HI.U32 R6, R6, R0, RZ ;", "IMAD.MOV R7, RZ, RZ, -R6 ;",
        "IMAD R7, R1, R7, R0 ;", "ISETP.GE.U32.AND P0, PT, R7, R1, PT ;", "@P0 IMAD.IADD R7, R7, 0x1, -R1 ;",
        "@P0 VIADD R6, R6, 0x1 ;", "ISETP.GE.U32.AND P1, PT, R7, R1, PT ;", "@P1 VIADD R6, R6, 0x1 ;", R0=a, R1=b,
    )[6]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), [(0, 1), (95, 8), (96, 8), (12345678, 3), (0xFFFFFFFF, 7), (767, 768), (768, 768)])
def test_division(a: int, b: int) -> None:
    assert quotient(a, b) == a // b


def test_control_flow_and_memory() -> None:
    """A loop that sums 1 to 5 in shared memory, in every warp for itself."""
    r = after(
        "S2R R4, SR_TID.X ;", "IMAD R4, R4, 0x4, RZ ;", "VIADD R2, R2, 0x1 ;", "LDS R0, [R4+0x400] ;",
        "IADD3 R0, R0, R2, RZ ;", "STS [R4+0x400], R0 ;", "ISETP.NE.AND P0, PT, R2, 0x5, PT ;",
        "@P0 BRA `(.L_1) ;", labels={".L_1": 2},
    )  # fmt: skip
    assert r[0] == 15
    r = after("STS.128 [R4+0x800], R0 ;", "LDS.U16 R8, [R4+0x806] ;", "LDS.64 R10, [R4+0x808] ;", R1=0xABCD0000, R3=9)
    assert (r[8], r[10], r[11]) == (0xABCD, 0, 9)


def test_call_and_return() -> None:
    r = after(
        "MOV R4, 0x20 ;", "CALL.REL.NOINC `($f) ;", "EXIT ;", "MOV R0, 0x7 ;", "RET.REL.NODEC R4 `(kernel) ;",
        labels={"$f": 3},
    )  # fmt: skip
    assert r[0] == 7


def test_unknown() -> None:
    """An opcode that is not known is an error where it is executed, with its text."""
    with pytest.raises(Unknown, match=r"QMMA\.FOO .*0x10: QMMA"):
        machine("NOP ;", "QMMA.FOO R0, R1 ;").run()
    machine("BRA `(.L_2) ;", "QMMA.FOO R0, R1 ;", labels={".L_2": 2}).run()
    with pytest.raises(Fault, match="outside of every array"):
        machine("LDG.E R0, desc[UR4][R2.64] ;").run()
    with pytest.raises(Fault, match="outside of shared memory"):
        machine("STS [R2+0x1400], R0 ;").run()


def issues(*texts: str | tuple[str, int], only: int = 0) -> list[int]:
    """When warp ``only`` issues its instructions, with the others gone."""
    made = machine(*texts)
    for warp in made.warps:
        warp.done = warp.number != only
    made.run()
    return [when for when, _ in made.warps[only].log]


def test_stalls_and_scoreboards() -> None:
    plain = "IADD3 R0, R0, R1, RZ ;"
    assert issues((plain, high(4)), (plain, high(6)), plain) == [0, 4, 10, 11]
    load = ("LDS R0, [R2+0x400] ;", high(1, write=2))
    assert issues(load, plain, (plain, high(wait=0b100)))[2] == latencies.LATENCY["LDS"]
    wide = ("LDS.128 R4, [R2+0x400] ;", high(1, write=2))
    assert issues(wide, plain, (plain, high(wait=0b100)))[2] == latencies.LATENCY["LDS"] + 3  # wavefronts
    at = issues("MOV R3, 0x200 ;", ("STG.E desc[UR4][R2.64], R0 ;", high()), "MEMBAR.ALL.GPU ;", plain)
    assert at[3] == at[1] + latencies.STORE_AND_FENCE


def test_asynchronous_copies() -> None:
    """DEPBAR waits for all groups of copies but the last ones."""
    copy = "LDGSTS.E.BYPASS.128 [R0+0x400], desc[UR4][R2.64] ;"
    program = ("MOV R3, 0x200 ;", copy, "LDGDEPBAR ;", copy, "LDGDEPBAR ;")
    for left, first in ((1, 1), (0, 3)):
        at = issues(*program, f"DEPBAR.LE SB0, {left:#x} ;", "NOP ;")
        hit = latencies.L1_LOAD if first == 3 else latencies.DRAM_LOAD  # the second copy of the same sector
        assert at[6] >= at[first] + hit and at[6] >= at[1] + latencies.DRAM_LOAD


def test_weight_loads() -> None:
    """Two in flight: the second begins when the first one's bytes have passed. The first one's words are in L1 then."""
    load, again = ("LDG.E.64 R4, desc[UR4][R2.64] ;", high(write=2)), ("LDG.E.64 R8, desc[UR4][R2.64] ;", high(write=4))
    other = ("LDG.E.64 R6, desc[UR4][R2.64+0x20] ;", high(write=3))
    waits = [("NOP ;", high(wait=1 << board)) for board in (2, 3, 4)]
    at = issues("MOV R3, 0x300 ;", load, other, *waits[:2], again, waits[2])
    assert at[3] == at[1] + latencies.WEIGHT_LOAD
    assert at[4] == at[3] + 8 * 32 / latencies.WEIGHT_BYTES
    assert at[6] == at[5] + latencies.L1_LOAD
    at = issues("MOV R3, 0x300 ;", load, again, waits[2])
    assert at[3] == at[1] + latencies.WEIGHT_LOAD  # in flight


def test_additions_of_all_blocks() -> None:
    made = machine("MOV R3, 0x100 ;", "RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R1 ;")
    for warp in made.warps:
        warp.r[1], warp.done = 1, warp.number > 0
    made.run()
    assert made.exchange.load(1 << 40, 10_000) == 3  # of four blocks, to a word of 0xFFFFFFFF


def test_schedulers() -> None:
    """Warps 0 and 4 have one scheduler, whose integer unit takes an instruction every other cycle."""
    made = machine(*["IADD3 R0, R0, R1, RZ ;"] * 4)
    made.run()
    first, other = ([when for when, _ in made.warps[n].log][:4] for n in (0, 4))
    assert sorted(first + other) == list(range(0, 16, 2))
    assert [when for when, _ in made.warps[1].log] == [when for when, _ in made.warps[0].log]


def test_block_barrier() -> None:
    """All wait for the slowest warp."""
    made = machine("S2R R0, SR_TID.X ;", "ISETP.NE.AND P0, PT, R0, 0x60, PT ;", ("@!P0 NOP ;", high(1)),
                   "@P0 BRA `(.L_5) ;", ("NOP ;", high(15)), "BAR.SYNC.DEFER_BLOCKING 0x0 ;", "NOP ;",
                   labels={".L_5": 5})  # fmt: skip
    made.run()
    arrived = max(when for warp in made.warps for when, at in warp.log if at == 5)
    assert all(when >= arrived + latencies.BLOCK_BARRIER for warp in made.warps for when, at in warp.log if at == 6)


def test_exchange() -> None:
    """A word of another block changes when the last own word of the publication arrives."""
    exchange = Exchange(1000 * 16, 1024, 256)
    base, reaches, samples = exchange.base, latencies.STORE_REACHES_L2, latencies.LOAD_SAMPLES_L2
    exchange.store(base, 5, 0)
    exchange.store(base + 16, 6, 100)
    assert exchange.load(base, reaches - samples) == 5
    assert exchange.load(base, reaches - samples - 1) == EMPTY
    assert exchange.load(base + 128, reaches - samples) == EMPTY
    assert exchange.load(base + 128, 100 + reaches - samples) != EMPTY
    assert exchange.load(base + 256 + 128, 10_000) == EMPTY  # another slot
    exchange.store(base, EMPTY, 5000)
    assert exchange.load(base + 128, 6000) == 6  # the slot is cleared when all own words are
    exchange.store(base + 16, EMPTY, 5100)
    assert exchange.load(base + 128, 6000) == EMPTY


def test_mailbox() -> None:
    box = Mailbox(4, 1800)
    assert box.complete_at(0) is None
    box.send(0, 100)
    box.send(0, 110)
    assert box.complete_at(0) == 100 + latencies.CLUSTER_EXCHANGE + 100
    box.seen[0] += 1
    assert box.complete_at(0) is None


def test_step_loop() -> None:
    """The innermost loop with products and outputs, not the smaller one of products alone."""
    texts = [
        "NOP ;", "HMMA.16816.F32 R0, R4, R8, R0 ;", "@P0 BRA `(.L_1) ;", "STG.E.U16 desc[UR4][R2.64], R0 ;",
        "@P1 BRA `(.L_0) ;", "STG.E desc[UR4][R2.64], R0 ;", "@P2 BRA `(.L_out) ;", "EXIT ;",
    ]  # fmt: skip
    code = [instruction(16 * i, text) for i, text in enumerate(texts)]
    loop = step_loop(Function("kernel", code, {".L_out": 0, ".L_0": 16, ".L_1": 16}))
    assert [it.address for it in loop] == [16, 32, 48, 64]


def test_step_loop_without_a_product() -> None:
    """Around it is the loop over tiles, with the last state."""
    texts = [
        "NOP ;", "LDG.E.U16 R4, desc[UR4][R2.64] ;", "STG.E.U16 desc[UR4][R2.64], R0 ;", "@P1 BRA `(.L_step) ;",
        "STG.E desc[UR4][R2.64], R0 ;", "@P2 BRA `(.L_tile) ;", "EXIT ;",
    ]  # fmt: skip
    code = [instruction(16 * i, text) for i, text in enumerate(texts)]
    function = Function("kernel", code, {".L_tile": 0, ".L_step": 16})
    assert [it.address for it in step_loop(function, has_product=False)] == [16, 32, 48] and not step_loop(function)


def test_step_loop_with_two_entries() -> None:
    """As in a backward pass, whose first step begins behind the product; around it is the loop over tiles."""
    texts = [
        "NOP ;", "@P3 BRA `(.L_cell) ;", "NOP ;", "HMMA.16816.F32 R0, R4, R8, R0 ;", "STG.E.U16 desc[UR4][R2.64], R0 ;",
        "@P1 BRA `(.L_product) ;", "HMMA.16816.F32 R0, R4, R8, R0 ;", "STG.E desc[UR4][R2.64], R0 ;",
        "@P2 BRA `(.L_tile) ;", "EXIT ;",
    ]  # fmt: skip
    labels = {".L_tile": 0, ".L_product": 3, ".L_cell": 4}
    code = [instruction(16 * i, text) for i, text in enumerate(texts)]
    loop = step_loop(Function("kernel", code, {name: 16 * at for name, at in labels.items()}))
    assert [it.address // 16 for it in loop] == [3, 4, 5]


def test_step_loop_with_a_way_around_the_loads() -> None:
    texts = [
        "NOP ;", "LDG.E.U16 R4, desc[UR4][R2.64] ;", "HMMA.16816.F32 R0, R4, R8, R0 ;",
        "STG.E.U16 desc[UR4][R2.64], R0 ;", "@P0 BRA `(.L_product) ;", "@P1 BRA `(.L_load) ;",
        "STG.E desc[UR4][R2.64], R0 ;", "@P2 BRA `(.L_tile) ;", "EXIT ;",
    ]  # fmt: skip
    code = [instruction(16 * i, text) for i, text in enumerate(texts)]
    loop = step_loop(Function("kernel", code, {".L_tile": 0, ".L_load": 16, ".L_product": 32}))
    assert [it.address // 16 for it in loop] == [1, 2, 3, 4, 5]


def test_start() -> None:
    """Until the last warp begins its first step; a warp without units has none."""
    texts = ("MOV R3, 0x200 ;", "HMMA.16816.F32 R4, R8, R12, R4 ;", "STG.E desc[UR4][R2.64], R0 ;", "@P0 BRA `(.L_0) ;")
    made = machine(*texts, labels={".L_0": 1})
    made.warps[7].done = True
    made.run()
    begun = [when for warp in made.warps for when, at in warp.log if at == 1]
    assert start_of(made) == max(begun) > min(begun) > 0
    with pytest.raises(Fault, match="step loop, of 0 instructions"):
        start_of(machine("NOP ;"))
    stage, kinds = dict.fromkeys(stages.STAGES, 0.0), dict.fromkeys((*stages.CLASSES, "divisions"), 0.0)
    result = Result("lstm768, forward", "grid", 19800, 1980.0, 300, 400, stage, stage, kinds, kinds, None)
    assert report.summary([result]).endswith("| 19,800 (10.0, 17%) |")  # of 19,800 + 50 * 1,980 cycles


def test_stages(tmp_path: Path) -> None:
    source = tmp_path / "exchange.cuh"
    source.write_text("""PRNN_DEVICE_MEMBER int piece_at(int i) const {
  return i;
}
PRNN_DEVICE_MEMBER void gather(int i) const {
  if (i) {
    piece_at(i);
  }
}
""")
    assert [stages.function_at(str(source), line) for line in (2, 3, 6, 8)] == [
        "piece_at", "piece_at", "gather", "gather",
    ]  # fmt: skip
    assert stages.stage_of_frames(((str(source), 2), (str(source), 6))) == "receive"
    assert stages.stage_of_frames(((str(source), 2),)) == "other"


@pytest.mark.slow(seconds=10)
def test_launches(tmp_path: Path) -> None:
    """launches.cpp knows the kernels' arguments, and each shape has a plan."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    built = launches.program(ROOT, tmp_path)
    for case in (*CASES, *launches.VALIDATION):
        launch = launches.launch(built, case)
        assert len(launch.parameters) == 4 and launch.arrays["workspace"][0] > 0 and launch.has_product
        assert all(launch.plan().count(value) for key, value in case.filter if key == "regime")
    sizes, resident = "1 1 0 2 0 -1 0", " 0" * 24
    diagonal = launches.launch(built, launches.Case("", f"leaky {sizes}{resident}", "float32", 4, 20, K=1))
    assert not diagonal.has_product and diagonal.regime == "block"


def test_cubins_of_two_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same sources, each with the lines of its own."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        Path(command[-1]).write_text(command[-3])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(program, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(program, "subprocess", SimpleNamespace(run=run))
    for name in ("a", "b"):
        cubin = program.compiled(tmp_path / name, "lstm", tmp_path)
        assert cubin.read_text() == str(tmp_path / name / "prnn/csrc/cuda/kernels_lstm.cu")
    assert program.compiled(tmp_path / "a", "lstm", tmp_path) != cubin


def test_kernel_of_its_regime() -> None:
    names = [f"recurrence_forwardINS0_5quick4LstmENS0_8Bfloat16ELb{grid}ELi0EEEv" for grid in range(2)]
    case = next(case for case in CASES if case.name == "lstm768" and not case.backward)
    launch = Launch(values={"shape": 0}, regime="grid")
    assert launches.kernel_of(names, case, launch) == names[1]
    assert launches.kernel_of(names, case, Launch(values={"shape": 0}, regime="cluster")) == names[0]
    assert launches.kernel_of(names, case, launch, "ELb0E") == names[0]
    with pytest.raises(RuntimeError, match="0 kernels"):
        launches.kernel_of(names, case, Launch(values={"shape": 1}, regime="grid"))
    names = [f"recurrence_forwardINS0_5quick4LstmENS0_8Bfloat16ELNS0_6SchemeE{n}ELi0EEEv" for n in range(3)]
    for n, name in enumerate(names):
        assert launches.kernel_of(names, case, Launch(values={"shape": 0, "scheme": n}, regime="cluster")) == name


def test_kernel_names() -> None:
    name = "_ZN4prnn4cuda18recurrence_forwardINS0_5quick4LstmENS0_8Bfloat16ELi0EEEvNS0_4PlanE"
    case = next(case for case in CASES if case.name == "lstm768" and not case.backward)
    assert is_kernel(name, case, 0) and not is_kernel(name, case, 1)
    assert not is_kernel(name.replace("8Bfloat16", "7Float16"), case, 0)
