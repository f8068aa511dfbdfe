"""The choice of a backend, forcing it, and the native library's presence, absence and damage."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import prnn
from prnn import cuda_plan, ops
from prnn.ops import backends, reference, vendor
from prnn.ops.operands import Operands, Weights
from tests import warm
from tests.ops.problems import assert_same, problem, recurrence

LOADED, REASON = ops.native.status()
needs_native = pytest.mark.skipif(not LOADED, reason=f"native library: {REASON}")


ROOT = Path(__file__).parents[2]


def run_python(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a process that has imported torch alone, where ``prnn`` is the one found in ``cwd``."""
    return warm.run_code(code, cwd, environment)


def explain(cell: str, dtype: torch.dtype = torch.float32, **options: torch.Tensor) -> ops.Choice:
    rows = ops.CELLS[cell].gates * 8
    weights = Weights(torch.zeros(rows, 3, dtype=dtype), torch.zeros(rows, 8, dtype=dtype))
    return ops.choose(ops.Request.of(torch.zeros(4, 2, 3, dtype=dtype), weights, cell, **options))


@needs_native
def test_the_table():
    assert explain("rnn_tanh").backend == "cpu"
    assert explain("rnn_relu", lengths=torch.tensor([1, 2])).backend == "cpu"
    refused = "the native kernels take float32 and bfloat16, not float64"
    assert explain("rnn_tanh", torch.float64) == ops.Choice("torch", refused, "stepwise")
    assert explain("lstm", resets=torch.zeros(4, 2, dtype=torch.bool)).backend == "cpu"
    weights = Weights(torch.zeros(512, 3), torch.zeros(512, 512, requires_grad=True))
    one_step = ops.choose(ops.Request.of(torch.zeros(1, 1, 3), weights, "rnn_tanh"))
    assert one_step == ops.Choice("torch", "a few steps do not pay for packing the weights", "aten")
    assert str(one_step).startswith("torch, by torch.nn's own functions")


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("cell", "T"), [("rnn_tanh", 1), ("rnn_relu", 2), ("gru", 1), ("gru", 3), ("lstm", 1)])
def test_few_steps_by_torchs_functions(cell, T, directions):
    rows, x, h0 = ops.CELLS[cell].gates * 4, torch.randn(T, 2, 3), torch.randn(directions, 2, 4)
    state = (h0, torch.randn(directions, 2, 4)) if ops.CELLS[cell].has_c else (h0,)
    for biases in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weights = [
            Weights(
                torch.randn(rows, 3), torch.randn(rows, 4), *(torch.randn(rows) if given else None for given in biases)
            )
            for _ in range(directions)
        ]
        right = reference.layer(Operands.of(x, weights, state), ops.CELLS[cell])
        output, final = vendor.few_steps(x, weights, state, ops.CELLS[cell])
        assert_same([output, *final], list(right[: 1 + len(state)]), 1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_the_vendor_library_runs_what_it_can():
    with ops.backend("torch"):
        assert explain("lstm").implementation == "onednn"
        assert explain("gru").implementation == "stepwise"
        assert explain("lstm", lengths=torch.tensor([1, 2])).implementation == "stepwise"
        assert explain("lstm", torch.float64).implementation == "stepwise"


def test_a_choice_says_how_torch_runs_it():
    assert str(ops.Choice("torch", "why", "onednn")) == "torch, the whole layer in oneDNN (why)"
    assert str(ops.Choice("torch", "why", "stepwise")) == "torch, step by step (why)"
    assert str(ops.Choice("cpu", "why", "cpu")) == "cpu (why)"


def test_an_unknown_instruction_set_is_refused():
    code = "from prnn import ops; print(ops.native.status())"
    assert (
        "PRNN_CPU_ISA=AVX2 is none of portable, avx2, avx512, avx512_bf16"
        in run_python(code, PRNN_CPU_ISA="AVX2").stdout
    )


def test_forcing_a_backend():
    for name in ("reference", "torch"):
        with ops.backend(name):
            assert explain("gru").backend == name
    with (
        ops.backend("cpu"),
        pytest.raises(ValueError, match="'cpu' was forced, but .*float32 and bfloat16, not float16"),
    ):
        explain("gru", torch.float16)
    with pytest.raises(ValueError, match="unknown backend 'cuda9'"), ops.backend("cuda9"):
        pass
    assert explain("gru").reason != "forced by prnn.ops.backend or PRNN_BACKEND"


EXPLAIN = (
    "import torch; from prnn import ops;"
    "weights = ops.Weights(torch.zeros(5, 3), torch.zeros(5, 5))\n"
    "print(ops.choose(ops.Request.of(torch.zeros(2, 1, 3), weights, 'rnn_tanh')).backend)"
)


def test_forcing_by_environment():
    assert run_python(EXPLAIN, PRNN_BACKEND="reference").stdout.strip() == "reference"
    failed = run_python(EXPLAIN, PRNN_BACKEND="tpu")
    assert "PRNN_BACKEND=tpu: set it to one of reference, torch, cpu, cuda, or unset it" in failed.stderr


def test_the_mark_of_a_function_that_torch_compile_evaluates_is_torchs():
    assert vars(torch.compiler.assume_constant_result(lambda: None)) == vars(cuda_plan.expected)


def test_without_the_native_library():
    done = run_python(EXPLAIN, PRNN_NO_NATIVE="1", PRNN_BACKEND="")
    assert (done.returncode, done.stdout.strip()) == (0, "torch")


def test_a_broken_native_library_is_one_warning(tmp_path: Path):
    """`import prnn` works, torch's kernels serve, and one sentence says why."""
    package = tmp_path / "prnn"
    shutil.copytree(Path(ops.__file__).parent.parent, package, ignore=shutil.ignore_patterns("*.so", "csrc", "*.xz"))
    (package / "_native.abi3.so").write_bytes(b"not a library")
    done = run_python(EXPLAIN, cwd=tmp_path, PRNN_BACKEND="", PRNN_NO_NATIVE="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch"
    assert done.stderr.count("the native library is broken") == 1


@pytest.mark.parametrize(
    ("files", "says"), [(["setup.py"], "install --no-build-isolation -e ."), ([], "isolation . in")]
)
def test_a_missing_library_says_how_it_is_built(files, says, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(ops.native, "__file__", str(tmp_path / "prnn" / "native.py"))
    monkeypatch.delenv("PRNN_NO_NATIVE", raising=False)
    present, reason = ops.native._load()
    assert not present and says in reason and reason.startswith("not built")
    assert (str(tmp_path) in reason) == bool(files)


@pytest.fixture
def no_library(monkeypatch):
    """As in a package that was installed without the native library, by the reason that is returned."""
    reason = "not built: build it"
    monkeypatch.setattr(ops.native, "_STATUS", (False, reason))
    yield reason
    ops.native._warn.cache_clear()
    backends._known.cache_clear()


def forward(layer):
    return layer(torch.zeros(2, 1, 3))[0]


def test_the_first_pass_without_the_native_library_warns(no_library):
    backends._known.cache_clear()
    with pytest.warns(UserWarning) as warned:
        forward(prnn.RNN(3, 5))
        forward(prnn.GRU(3, 5))
        forward(prnn.nn.StackRNN(3, 5))
    expected = "prnn: torch's own kernels run, which are slower: the native library is not built: build it"
    assert [str(each.message) for each in warned] == [expected]


def test_memories_without_the_native_library_warn(no_library):
    with pytest.warns(UserWarning, match="the native library is not built"):
        forward(prnn.nn.StackRNN(3, 5))


@pytest.mark.parametrize("why", ["forced", "left out", "float64", "compiled"])
def test_no_warning_of_what_was_asked_for(no_library, monkeypatch, recwarn, why):
    backends._known.cache_clear()
    layer = prnn.RNN(3, 5)
    if why == "left out":
        monkeypatch.setattr(ops.native, "_STATUS", (False, ops.native._LEFT_OUT))
    if why == "compiled":
        layer = torch.compile(layer, backend="eager", fullgraph=True)
    with ops.backend("torch" if why == "forced" else None):
        if why == "float64":
            layer.double()(torch.zeros(2, 1, 3, dtype=torch.float64))
        else:
            forward(layer)
    assert not [each for each in recwarn if "prnn" in str(each.message)]


@needs_native
@pytest.mark.parametrize("isa", ops.native.INSTRUCTION_SETS)
def test_every_instruction_set(isa):
    """The same source built for each instruction set gives the reference's numbers (where the processor has it)."""
    code = (
        "import torch; from prnn import ops; from tests.ops.problems import assert_same, problem\n"
        "print(ops.native.status()[1])\n"
        "for cell in ops.CELLS:\n"
        "    for shape in ((5, 7, 1), (4, 3, 17), (6, 5, 100), (3, 4, 131)):\n"
        "        for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 4e-2)):\n"
        "            p = problem(cell, *shape, dtype=dtype, lengths=True, resets=True)\n"
        "            assert_same(p.outputs_and_gradients('cpu'), p.outputs_and_gradients('reference'), tolerance)\n"
    )
    done = run_python(code, PRNN_CPU_ISA=isa, PRNN_BACKEND="")
    assert done.returncode == 0, done.stderr
    if f" {isa} kernels" not in done.stdout:
        pytest.skip(f"this processor has no {isa}")


@needs_native
@pytest.mark.parametrize("shape", [(40, 7, 33), (30, 1, 257)], ids=str)  # split over the batch, over hidden units
@pytest.mark.parametrize("cell", ops.CELLS)
def test_threads_do_not_change_a_bit(cell, shape):
    """Neither outputs nor any gradient: no sum is ever split over threads."""
    p = problem(cell, *shape, lengths=shape[1] > 1, resets=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(p.outputs_and_gradients("cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_two_python_threads_at_once_and_without_the_interpreter():
    """Two modules in two threads share the cores and the GIL is free meanwhile: a third thread counts on."""
    code = (
        "import threading, torch; from tests.ops.problems import problem\n"
        "torch.set_num_threads(2)\n"
        "problems = [problem(cell, 400, 4, 200) for cell in ('gru', 'lstm')]\n"
        "expected = [p.outputs_and_gradients('cpu') for p in problems]\n"
        "found, counted, done = [None, None], [0], threading.Event()\n"
        "def work(i):\n"
        "    for _ in range(5): found[i] = problems[i].outputs_and_gradients(None)\n"
        "def count():\n"
        "    while not done.is_set(): counted[0] += 1; done.wait(1e-4)\n"
        "threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]\n"
        "counter = threading.Thread(target=count); counter.start()\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; done.set(); counter.join()\n"
        "same = all(a.equal(b) for e, f in zip(expected, found) for a, b in zip(e, f))\n"
        "print(same and counted[0] > 10)\n"
    )
    done = run_python(code, PRNN_BACKEND="")
    assert done.stdout.strip() == "True", (done.stdout, done.stderr)


@needs_native
@pytest.mark.parametrize("threads", [1, 2])  # a DataLoader worker's, and those the parent had
def test_in_a_forked_process(threads):
    """A process forked from one that has used its threads must not wait for threads it does not have."""
    code = (
        "import os, torch; from tests.ops.problems import problem\n"
        "torch.set_num_threads(2)\n"
        "expected = problem('rnn_tanh', 50, 8, 64).outputs_and_gradients('cpu')\n"
        "given = problem('rnn_tanh', 50, 8, 64)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        f"    if {threads} == 1: torch.set_num_threads(1)\n"
        "    got = given.run('cpu')\n"
        "    os._exit(0 if got[0].equal(expected[0]) else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = run_python(code, PRNN_BACKEND="")
    assert done.stdout.strip() == "0", done.stderr


@needs_native
def test_both_directions_in_a_forked_process():
    code = (
        "import os, torch, prnn\n"
        "torch.set_num_threads(2)\n"
        # Much to add up for the two directions' gradients of x, and nothing that torch would start threads for.
        "module, x = prnn.LSTM(256, 8, bidirectional=True), torch.randn(64, 8, 256, requires_grad=True)\n"
        "run = lambda: torch.autograd.grad(module(x)[0].sum(), x)[0]\n"
        "run()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    run()\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = run_python(code, PRNN_BACKEND="cpu")
    assert done.stdout.strip() == "0", done.stderr


@needs_native
def test_tanh_is_accurate_to_three_ulp():
    x = torch.cat((torch.linspace(-12, 12, 20_001), torch.logspace(-20, 0, 2_001), torch.tensor([0.0, 1e30, -1e30])))
    gates_x, h0 = x.view(1, -1, 1), torch.zeros(len(x), 1)
    with ops.backend("cpu"):
        y, _, _ = recurrence(gates_x, torch.zeros(1, 1), None, h0, None, None, None, "rnn_tanh")
    exact = torch.tanh(x.double())
    ulp = torch.nextafter(exact.abs().float(), torch.tensor(2.0)).double() - exact.abs().float().double()
    assert ((y.flatten().double() - exact).abs() / ulp).max() < 3


@needs_native
def test_sigmoid_is_accurate_to_three_ulp():
    """The LSTM's output gate, seen through c = 0 + 1 * 1 where its other gates are open: h = sigmoid(o) tanh(1)."""
    x = torch.cat((torch.linspace(-80, 30, 20_001), torch.logspace(-20, 0, 2_001), torch.tensor([0.0, 1e30])))
    gates_x = torch.full((1, len(x), 4), 100.0)
    gates_x[0, :, 1], gates_x[0, :, 3] = -100.0, x
    zeros = torch.zeros(len(x), 1)
    with ops.backend("cpu"):
        y, _, _ = recurrence(gates_x, torch.zeros(4, 1), None, zeros, zeros, None, None, "lstm")
        one, _, _ = recurrence(
            torch.full((1, 1, 4), 100.0), torch.zeros(4, 1), None, *[zeros[:1]] * 2, None, None, "lstm"
        )
    exact = torch.sigmoid(x.double()) * one.double().item()
    assert ((y.flatten().double() - exact) / exact).abs().max() < 4 * 2.0**-24 * 2


@needs_native
def test_nan_and_infinity_pass_through():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")]).view(1, 3, 1)
    with ops.backend("cpu"):
        for cell in ("rnn_tanh", "rnn_relu"):
            y, _, _ = recurrence(x, torch.zeros(1, 1), None, torch.zeros(3, 1), None, None, None, cell)
            expected = torch.tanh(x) if cell == "rnn_tanh" else torch.relu(x)
            torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The table's questions about a GPU, answered: what ``cuda_explain`` says stands in the dictionary."""
    answer = {"said": "1.4 grid regime, 2 x 48 blocks\n2.0 grid regime, 2 x 48 blocks\n"}
    monkeypatch.setattr(backends.native, "cuda_status", lambda: (True, ""))
    monkeypatch.setattr(backends.native, "cuda_cells", lambda: tuple(ops.CELLS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def explain(*arguments: object) -> str:
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["said"]

    monkeypatch.setattr(torch.ops.prnn_native, "cuda_explain", explain, raising=False)
    cuda_plan._plans.cache_clear()
    yield answer
    cuda_plan._plans.cache_clear()


def _on_gpu(H: int = 768, dtype: torch.dtype = torch.bfloat16, projection: bool = False) -> ops.Request:
    return ops.Request("lstm", 9, 16, 64, H, dtype, "cuda", False, False, projection, 0, True)


def test_a_gpu_runs_its_own_kernels(a_gpu: dict[str, str]) -> None:
    choice = ops.choose(_on_gpu())
    assert choice.backend == "cuda"
    assert choice.reason.startswith("grid regime, 2 x 48 blocks, ") and "; backward: grid regime" in choice.reason
    assert "1.4 us a step expected" in choice.reason and "2 us" in choice.reason


def test_a_gpu_goes_to_torch_where_the_kernels_do_not(a_gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for request, reason in (
        (_on_gpu(dtype=torch.float64), "take float32, bfloat16 and float16, not float64"),
        (_on_gpu(projection=True), "no projection"),
    ):
        assert ops.choose(request).backend == "torch" and reason in ops.choose(request).reason
        with ops.backend("cuda"), pytest.raises(ops.BackendError, match=reason):
            ops.choose(request)
    a_gpu["said"] = "\n\n"
    assert "768 units fit into no regime" in ops.choose(_on_gpu()).reason
    cuda_plan._plans.cache_clear()
    a_gpu["said"] = "1.4 grid regime\n\n"
    assert ops.choose(_on_gpu()).reason.endswith("of this GPU backward")
    assert ops.choose(_on_gpu()._replace(gradients=False)).backend == "cuda"
    monkeypatch.setenv("PRNN_CUDA_REGIME", "mesh")
    with pytest.raises(ops.BackendError, match="PRNN_CUDA_REGIME=mesh: expected one of block, cluster, grid"):
        ops.choose(_on_gpu())
    monkeypatch.delenv("PRNN_CUDA_REGIME")
    a_gpu["error"] = "PRNN_CUDA_PLAN=warp=1: expected numbers of shape"
    monkeypatch.setenv("PRNN_CUDA_PLAN", "warp=1")  # another plan is asked for again, and not remembered
    with pytest.raises(ops.BackendError, match="^PRNN_CUDA_PLAN=warp=1: expected numbers"):
        ops.choose(_on_gpu())
    monkeypatch.delenv("PRNN_CUDA_PLAN")
    for given in ("two", "-1", "nan", "inf"):
        monkeypatch.setenv("PRNN_CUDA_WAIT_SECONDS", given)
        with pytest.raises(ops.BackendError, match=f"PRNN_CUDA_WAIT_SECONDS={given}: expected the seconds"):
            ops.choose(_on_gpu())
    monkeypatch.setenv("PRNN_CUDA_WAIT_SECONDS", "0")
    cuda_plan._plans.cache_clear()
    a_gpu["error"] = "no kernel image is available\nmore of it"
    choice = ops.choose(_on_gpu())
    assert choice.backend == "torch" and choice.reason == "no kernel image is available"
    with monkeypatch.context() as lost:
        lost.setattr(backends.native, "cuda_fault", lambda: "prnn: block 7 waited")
        with pytest.raises(RuntimeError, match="no kernel image"):  # in the library's own words, which say the fault
            ops.choose(_on_gpu())
    cuda_plan._plans.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "sm_80" in ops.choose(_on_gpu()).reason
    monkeypatch.setattr(backends.native, "cuda_status", lambda: (False, "built without CUDA"))
    assert "built without CUDA" in ops.choose(_on_gpu()).reason


def test_a_step_that_takes_long_is_cudnns(a_gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu["said"] = "60 grid regime\n80 grid regime\n"
    monkeypatch.setattr(backends, "_CUDNN", True)
    choice = ops.choose(_on_gpu())
    assert (choice.backend, choice.implementation) == ("torch", "cudnn") and "60 us a step" in choice.reason
    with ops.backend("cuda"):
        assert ops.choose(_on_gpu()).backend == "cuda"
