"""The CUDA kernels without a GPU: every cell, element, pass and regime on an emulated one, and bugs it must find."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_emulation import build
from tests.native.build import BuildFailed, call


@pytest.fixture
def emulator(shared_folder: Path) -> Path:
    """Where the emulator itself is compiled, once for all tests."""
    return shared_folder / "emulator"


@pytest.mark.slow(seconds=60)
def test_kernels(tmp_path: Path, emulator: Path) -> None:
    done = build.run(build.build(tmp_path, emulator=emulator), thin=8)
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
    seed: int = 3


BUGS = {
    "missing barrier": Bug(
        "team.cuh", "if (plan.k_warps() > 1) sync_named(1 + row, 32 * plan.k_warps());", "", "shared memory"
    ),
    "wrong fragment index": Bug("product.cuh", "words[2 * i + half] =\n", "words[i + 2 * half] =\n", "is off by"),
    "early flag": Bug(
        "exchange.cuh",
        "if (expected) barrier_expect(barrier, expected);",
        "if (expected) barrier_expect(barrier, expected - 16);",
        "races with a write to shared memory|races with a read|nobody wrote|waited more than|is off by",
    ),
    "missing fence": Bug(
        "exchange.cuh", "      exchange_fence();", "      ;", "is off by|waited more than|the bits of", seed=1
    ),
    "three slots": Bug("plan.h", "kSlots = 4", "kSlots = 3", "is off by|waited more than"),
    "a word that is not sent": Bug(
        "exchange.cuh",
        "word == kEmpty ? kNan : word);",
        "number == 2 ? kEmpty : word);",
        " of publication 2, and this process",
    ),
    "a piece that is not sent": Bug(
        "exchange.cuh",
        "      remote_store(from, ",
        "      if (number != 2 || i) remote_store(from, ",
        "waited more than 2 s for publication 2, and",
    ),
    "sending too early": Bug(
        "exchange.cuh", "if (plan.regime == Regime::cluster) sync_cluster();", "", "a store from another block"
    ),
    "put without publishing": Bug(
        "forward.cuh", "if (s + 1 < T) put(item);", "put(item);", "is off by|waited more than"
    ),
    "one buffer": Bug(
        "exchange.cuh",
        "char* received = state + index % buffers * state_size;",
        "char* received = state;",
        "shared memory",
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
    for seed in {bug.seed for bug in BUGS.values()}:
        done = build.run(program, thin=3, seed=seed, first=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(bug: str, tmp_path: Path, emulator: Path) -> None:
    planted = BUGS[bug]
    source = tmp_path / "csrc"
    shutil.copytree(build.CSRC, source)
    file = source / "cuda" / planted.file
    text = file.read_text()
    assert text.count(planted.right) == 1, f"{planted.file} no longer has the line this test breaks"
    file.write_text(text.replace(planted.right, planted.wrong))
    program = build.build(tmp_path / "build", source, PLANTED, planted.test, emulator)
    done = build.run(program, thin=3, seed=planted.seed, first=True)
    assert done.returncode != 0
    assert any(said in done.stdout for said in planted.says.split("|")), done.stdout
