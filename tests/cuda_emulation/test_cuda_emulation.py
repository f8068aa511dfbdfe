"""The CUDA kernels without a GPU: every cell, element, pass and regime on an emulated one, and bugs it must find."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_emulation import build
from tests.native.build import BuildFailed, call
from tests.thinned import thinned


@pytest.fixture
def emulator(shared_folder: Path) -> Path:
    """Where the emulator itself is compiled, once for all tests."""
    return shared_folder / "emulator"


@pytest.mark.slow(seconds=60)
def test_kernels(tmp_path: Path, emulator: Path) -> None:
    done = build.run(build.build(tmp_path, emulator=emulator), thin=24)
    assert done.returncode == 0, done.stdout
    print(done.stdout)


def sanitizers(folder: Path) -> tuple[str, ...]:
    """Flags for them; none where the compiler has none."""
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    try:
        call(["g++", *build.SANITIZED, str(probe), "-o", str(folder / "probe")])
    except BuildFailed:
        return ()
    return build.SANITIZED


@pytest.mark.slow(seconds=70)
def test_kernels_under_sanitizers(tmp_path: Path, emulator: Path) -> None:
    flags = sanitizers(tmp_path)
    if not flags:
        pytest.skip("the compiler has no sanitizers")
    program = build.build(tmp_path, flags=(*flags, "-DPRNN_ONLY_LSTM"), emulator=emulator / "sanitized")
    done = build.run(program, thin=32, seed=2)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow(seconds=20)
def test_memories(tmp_path: Path, emulator: Path) -> None:
    if flags := sanitizers(tmp_path):
        emulator = emulator / "sanitized"
    done = build.run(build.build(tmp_path, flags=flags, test="test_memory", emulator=emulator), thin=8)
    assert done.returncode == 0, done.stdout
    print(done.stdout)


@pytest.mark.slow(seconds=8)
def test_exchanges_of_the_microbenchmarks(tmp_path: Path, emulator: Path) -> None:
    program = build.build(tmp_path, test="test_exchange_rounds", emulator=emulator)
    for seed in (1, 2):
        done = build.run(program, seed=seed)
        assert done.returncode == 0, done.stdout


def test_the_document_has_the_plans(tmp_path: Path) -> None:
    document = (build.CSRC.parents[1] / "docs" / "kernels.md").read_text()
    assert build.plans(tmp_path) in document, "docs/kernels.md: run python -m tests.cuda_emulation.build plans"


@dataclass(frozen=True)
class Bug:
    """A line of a kernel, what becomes of it, and what the emulator then says."""

    file: str
    right: str
    wrong: str
    says: str
    test: str = "test_recurrence"
    seeds: tuple[int, ...] = ()  # others than the usual ones
    reuse: bool = False  # a hazard of slots that are used again: from each of three seeds it has to be found


# What is said when a publication is read too early or too late, or never comes.
STALE = "is off by|waited more than|the bits of"
SEEDS = (1, 2, 3)

BUGS = {
    "missing barrier": Bug(
        "team.cuh",
        "    if (k_warps > 1)\n      sync_named(1 + row, 32 * k_warps);\n    else\n      sync_warp();\n",
        "",
        "shared memory",
    ),
    "wrong fragment index": Bug(
        "product.cuh",
        "some[j].word[2 * n + half] = row[2 * n].bits |",
        "some[j].word[n + 2 * half] = row[2 * n].bits |",
        "is off by",
    ),
    "early flag": Bug(
        "arrivals.cuh",
        "if (next) barrier_expect(barrier(publication), next);",
        "if (next) barrier_expect(barrier(publication), next - 16);",
        "races with a write to shared memory|races with a read|nobody wrote|waited more than|is off by",
    ),
    "missing fence": Bug("exchange.cuh", "        exchange_fence();", "        ;", STALE, reuse=True),
    "a fence before the clearing": Bug(
        "exchange.cuh",
        "        clears();\n        exchange_fence();",
        "        exchange_fence();\n        clears();",
        STALE,
        reuse=True,
    ),
    "clearing half of the words": Bug(
        "exchange.cuh",
        "if (number % kCleared == 0) {",
        "if (number % (2 * kCleared) == 0) {",
        STALE,
        reuse=True,
    ),
    "a word that is not cleared": Bug(
        "exchange.cuh",
        "    each_word<kN>(at, [&](int, int at) {",
        "    each_word<kN>(number == 2 * kCleared ? -1 : at, [&](int, int at) {",
        STALE,
        reuse=True,
    ),
    "a word used again too early": Bug("plan.h", "kSlots = 3 * kCleared", "kSlots = 2 * kCleared", STALE, reuse=True),
    "a word that is not sent": Bug(
        "exchange.cuh",
        "word[q] == kEmpty ? kNan : word[q]);",
        "number == 2 ? kEmpty : word[q]);",
        " of publication 2, and this process",
    ),
    "a piece that is not sent": Bug(
        "exchange.cuh",
        "        remote_store(own + at, ",
        "        if (number != 2 || at) remote_store(own + at, ",
        "waited more than 2 s for publication 2, and",
    ),
    "sending too early": Bug(
        "arrivals.cuh", "    sync_cluster();\n", "", "comes before its barrier is initialised", seeds=SEEDS
    ),
    # It stands for sending p + 2 before p + 1 was received, too: that is computed from what was read too early.
    "a warp that does not wait": Bug(
        "arrivals.cuh",
        "while (!barrier_try(barrier(publication), phase));",
        "while (warp() == 0 && !barrier_try(barrier(publication), phase));",
        "races with a write to shared memory|shared memory nobody wrote|races with a read",
        seeds=SEEDS,
    ),
    "put without publishing": Bug("forward.cuh", "if (s + 1 < T) put(states[j]);", "put(states[j]);", STALE),
    "one buffer": Bug(
        "exchange.cuh",
        "char* received = state + (",
        "char* received = state + 0 * (",
        "shared memory",
    ),
    "sums: one buffer": Bug(
        "cluster_sums.cuh", "publication % 2) * buffer_size", "publication % 1) * buffer_size", "races with a read"
    ),
    "sums: a block's share is left out": Bug("cluster_sums.cuh", "part[s] += part[s + step];", ";", "is off by"),
    "sums: 16 blocks": Bug(
        "cluster_sums.cuh", ": total_of<16>(from);", ": 0 * total_of<16>(from);", "is off by", seeds=(2,)
    ),
    "a gradient from where there is no step": Bug(
        "backward.cuh", "state.cut = !active || (", "state.cut = active && (", "is not grad_h_n's"
    ),
    "wide weights: a wrong element": Bug("team.cuh", "rows[1][i] = both.x[1];", "rows[1][i] = both.x[0];", "is off by"),
    "sums: not waited for": Bug("team.cuh", "cluster_sums.wait(exchange.published());", "", "shared memory"),
    "sums: a block's share is not waited for": Bug(
        "cluster_sums.cuh",
        "arrivals.prepare(plan.blocks * own",
        "arrivals.prepare((plan.blocks - 1) * own",
        "races with a write to shared memory|nobody wrote|waited more than|is off by",
    ),
    "memories: missing barrier": Bug(
        "memory_backward.cuh",
        "        sync_block();\n        through_reading(t);",
        "        through_reading(t);",
        "shared memory",
        "test_memory",
    ),
    "memories: nobody waits for a copy": Bug(
        "memory_forward.cuh",
        "        copy_async_wait();\n        sync_block();",
        "        sync_block();",
        "shared memory nobody wrote|is off by",
        "test_memory",
    ),
}


# One cell and one element, which compile in ten seconds instead of a minute.
PLANTED = ("-DPRNN_ONLY_LSTM", "-DPRNN_ONLY_BFLOAT16")


@pytest.mark.slow(seconds=20)
def test_without_a_planted_bug_nothing_is_found(tmp_path: Path, emulator: Path) -> None:
    program = build.build(tmp_path, flags=PLANTED, emulator=emulator)
    runs = [(seed, form, thin) for form, thin in (("first", 3), ("first long", 1)) for seed in SEEDS]
    for seed, form, thin in thinned(runs):
        done = build.run(program, thin, seed, first=form)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("bug", thinned(BUGS, 3))
def test_planted_bug_is_found(bug: str, tmp_path: Path, emulator: Path) -> None:
    planted = BUGS[bug]
    source = tmp_path / "csrc"
    shutil.copytree(build.CSRC, source)
    file = source / "cuda" / planted.file
    text = file.read_text()
    assert text.count(planted.right) == 1, f"{planted.file} no longer has the line this test breaks"
    file.write_text(text.replace(planted.right, planted.wrong))
    program = build.build(tmp_path / "build", source, PLANTED, planted.test, emulator)
    form, thin = ("first long", 1) if planted.reuse else ("first", 3)
    for seed in planted.seeds or (SEEDS if planted.reuse else (3,)):
        found = build.run(program, thin, seed, first=form)
        assert found.returncode != 0, f"seed {seed}"
        assert any(said in found.stdout for said in planted.says.split("|")), found.stdout
