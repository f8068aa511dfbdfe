"""What all tests share: a clean environment, fresh memory full of NaN, and data that may not be there."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch and Hydra are imported, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
# Switches of ours, and what a launcher leaves behind: a test that wants one sets it.
LEFTOVERS = ("PRNN_BACKEND", "PRNN_NO_NATIVE", "PRNN_CPU_ISA", "PRNN_CACHE", "PRNN_RUN_DIR", "HYDRA_FULL_ERROR")
LEFTOVERS += ("WANDB_API_KEY", "WANDB_DIR", "WANDB_RUN_ID")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
for name in (*LEFTOVERS, *LAUNCHER, *(key for key in os.environ if key.startswith("TORCHELASTIC_"))):
    os.environ.pop(name, None)
# Where no bytecode may stand beside the sources, every process a test starts would compile torch's: ten seconds each.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    bytecode = Path(__file__).resolve().parents[1] / "build" / "bytecode"
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(bytecode))
gc.disable()  # imports make no garbage
# A shell's background job ignores Ctrl-C, and so would every command a test starts from it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

TESTS = Path(__file__).resolve().parent
# Folders whose tests must fail if an output is read that nobody wrote.
NAN_FILLED = ("ops", "nn", "torch_nn", "integrations", "cuda_emulation")


@pytest.fixture(autouse=True)
def _same_precision_afterwards() -> Iterator[None]:
    """What a test sets of tf32 is undone: torch.export raises where its flags differ from each other."""
    matmul, rnn = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    yield
    if torch.backends.cuda.matmul.fp32_precision != matmul:
        torch.backends.cuda.matmul.fp32_precision = matmul
    if torch.backends.cudnn.rnn.fp32_precision != rnn:
        torch.backends.cudnn.rnn.fp32_precision = rnn


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """``torch.empty`` gives NaN in tests of kernels; torch does that only under deterministic algorithms."""
    if request.path.relative_to(TESTS).parts[0] not in NAN_FILLED:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True)
def _same_state_for_all() -> Iterator[None]:
    """Every test begins with the same random numbers and logging, and none leaves its number of threads to the next."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    _reset_logging()
    yield
    torch.set_num_threads(threads)


def _reset_logging() -> None:
    """Undo the logging that Hydra has set up for a command that ran in this process."""
    for logger, level in ((logging.getLogger(), logging.WARNING), (logging.getLogger("prnn"), logging.NOTSET)):
        logger.setLevel(level)
        logger.propagate = True
        logger.handlers[:] = [each for each in logger.handlers if type(each).__module__.startswith("_pytest")]


@pytest.fixture(autouse=True)
def _small_loss_plot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot at the end of a run is an empty one, but for tests marked ``plots``: drawing takes a quarter second."""
    summary = sys.modules.get("prnn.training.observe.summary")  # absent where nothing trains
    if summary and request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr(summary, "_loss_plot", lambda path, title: Figure(figsize=(1, 1)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of pytest-xdist, so that nothing is compiled twice."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data, ``PRNN_DATA``; skips the test where there is none."""
    folder = os.environ.get("PRNN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: PRNN_DATA names no folder with tinyshakespeare/, mnist/ and bible-en-es/")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first. Those marked ``gpu`` are skipped, visibly, where torch has no CUDA device."""
    items.sort(key=_seconds, reverse=True)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What is alive after collection, all of torch among it, is exempt from garbage collection, which begins here."""
    gc.freeze()
    gc.enable()


def _seconds(item: pytest.Item) -> float:
    """How long a test takes, as far as its mark says."""
    slow = item.get_closest_marker("slow")
    return float(slow.kwargs.get("seconds", 30)) if slow else 0.0
