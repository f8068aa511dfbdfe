import io
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from prnn import ops, sample, tasks, trained
from prnn.config import ModelConfig, TrainConfig, TrainerConfig
from prnn.data import parallel_corpora
from prnn.sample import SampleConfig, main
from prnn.tasks import translation
from prnn.tasks.char_lm import CharLM, Config, DataConfig
from prnn.tasks.decode import Decoding
from prnn.training import checkpoint
from tests import warm

ROOT = Path(__file__).parents[1]
STARTED = """
import gc, sys
from prnn import importing
before = gc.get_freeze_count()
with importing.quickly():
    import prnn.{module}
assert gc.isenabled() and gc.get_freeze_count() - before > 10_000
needless = {{"matplotlib.figure", "torch._dynamo", "prnn.training.loop"}} & sys.modules.keys()
assert needless <= {{*{needed}}}, needless
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("module", "needed"), [("trained", []), ("job", ["prnn.training.loop"])])
def test_a_command_starts_without_what_it_may_never_need(module: str, needed: list[str]) -> None:
    done = warm.run_code(STARTED.format(module=module, needed=needed), ROOT, {})
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of an untrained model: step 1 is the best, step 2 the last. Its text is gone."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    text = folder.parent / "text.txt"
    text.write_text("ROMEO: and JULIET.\nOne says this,\n\nthe other that.\n" * 20)
    cfg = TrainConfig(task=Config(bptt=5), data=DataConfig(path=str(text)))
    cfg.model = ModelConfig(hidden_size=16, num_layers=1)
    cfg.trainer.batch_size, cfg.trainer.max_steps = 2, 2
    task = tasks.build(cfg)
    for step in (1, 2):
        torch.manual_seed(step)
        manifest = {"config": asdict(cfg), "task": task.state_dict()}
        path = checkpoint.save(folder, step, task.build_model().state_dict(), {"position": {}}, manifest)
        if step == 1:
            checkpoint.mark_best(folder, path, 1.0)
    text.unlink()
    return folder


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        of_ones_own = any(each.startswith("run=") for each in arguments)
        status = main([*arguments] if of_ones_own else [f"run={run_dir}", *arguments])
        return (status, *capsys.readouterr())

    return run


def test_memory_that_is_not_there_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(sample, "load", fail)
    status, out, err = run("prompt=ROMEO:")
    assert (status, out) == (2, "")
    assert err == "prnn: the memory of the GPU is not enough for 20.00 GiB more: lower beam, or free some memory.\n"


def test_the_prompt_is_continued_for_the_given_length_and_repeats_with_the_seed(run: Run) -> None:
    status, out, err = run("prompt=ROMEO:", "length=40", "seed=3", "temperature=0.8")
    assert (status, err) == (0, "")
    assert out.startswith("ROMEO:") and out.endswith("\n") and len(out) == len("ROMEO:") + 40 + 1
    assert run("prompt=ROMEO:", "length=40", "seed=3", "temperature=0.8")[1] == out
    assert run("prompt=ROMEO:", "length=40", "seed=4", "temperature=0.8")[1] != out
    assert len(run("length=0")[1]) == 1


def test_the_settings_reach_the_decoder(run: Run, run_dir: Path) -> None:
    assert run("length=30", "top_k=1")[1] == run("length=30", "greedy=true")[1] == run("length=30", "top_p=1e-9")[1]
    assert run("length=30", "beam=1")[1] == run("length=30", "greedy=true")[1]
    assert run("length=30", "greedy=true", "which=best")[1] != run("length=30", "greedy=true")[1]
    settings = sample.parse(
        [f"run={run_dir}", "length=7", "temperature=0.5", "top_k=4", "top_p=0.9", "seed=5", "stop=x"]
    )
    assert settings.decoding() == Decoding(7, 0.5, 4, 0.9, False, 0, 5, "x")


def test_the_stop_string_and_its_escapes(run: Run) -> None:
    whole = run("length=300", "seed=1")[1]
    assert "\n" in whole[:-1]
    assert run("length=300", "seed=1", r"stop=\n")[1] == whole[: whole.index("\n")] + "\n"
    assert sample.parse(["run=x", r"prompt=a\nb\\n\t\x"]).prompt == "a\nb\\n\t\\x"


@pytest.mark.parametrize("prompt", ["ROMEO:", "12", "true", "null", "[1, 2]", "a=b", "${run}", "", "  two  "])
def test_a_prompt_is_taken_as_it_stands(prompt: str) -> None:
    assert sample.parse(["run=x", f"prompt={prompt}"]).prompt == prompt


def test_the_score_is_the_models(run: Run, run_dir: Path) -> None:
    status, out, _ = run("score=JULIET.", "prompt=ROMEO: and ")
    assert status == 0
    task, model, device = sample.load(sample.parse([f"run={run_dir}"]))
    score = task.score(model, device, "JULIET.", "ROMEO: and ")
    assert f"{score.nats:.4f} nats" in out and f"{-score.nats / math.log(2) / 7:.4f} (7 characters)" in out
    assert run("score=JULIET.")[1] != out


def test_latest_is_the_newest_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run=latest"]) == 2
    assert "there is no run yet (runs/latest does not exist)" in capsys.readouterr().err
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(run_dir)
    assert main(["run=latest", "length=3", "prompt=One"]) == 0
    assert capsys.readouterr().out.startswith("One")


def test_a_run_in_the_home_folder(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run_dir.parent))
    assert main([f"run=~/{run_dir.name}", "length=3"]) == 0


def test_a_backend_that_cannot_run_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> Iterator[str]:
        raise ops.BackendError("the backend 'cpu' was forced, but it does not run this")

    with monkeypatch.context() as patch:
        patch.setattr(CharLM, "generate", refuse)
        status, _, err = run()
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("prnn: the backend 'cpu' was forced, but it does not run this: unset PRNN_BACKEND")
    monkeypatch.setattr(ops.backends, "_forced", "foo")  # as read from PRNN_BACKEND
    message = "prnn: PRNN_BACKEND=foo: set it to one of reference, torch, cpu, cuda, or unset it.\n"
    assert run() == (2, "", message)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["lenght=3"], "lenght is not a setting of prnn-sample; did you mean length?"),
        (["length"], "'length' is not KEY=VALUE"),
        (["length=many"], "length=many must be an integer."),
        (["length=2.5"], "length=2.5 must be an integer."),
        (["length="], "length= must be an integer."),
        (["temperature=hot"], "temperature=hot must be a number."),
        (["temperature=[1"], "temperature=[1 must be a number."),
        (["temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["greedy=perhaps"], "greedy=perhaps must be true or false."),
        (["length=null"], "length=null must be an integer."),
        (["length=${run}"], "length=${run} must be an integer."),
        (["seed=x"], "seed=x must be an integer or null."),
        (["length=-1"], "length=-1 must be at least 0"),
        (["top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
        (["top_k=-1"], "top_k=-1 must be at least 0"),
        (["beam=2", "greedy=true"], "exclude each other"),
        (["beam=wide"], "beam=wide must be an integer or null."),
        (["length_penalty=-1"], "length_penalty=-1.0 must be null or from 0 to 10."),
        (["length_penalty=2000"], "length_penalty=2000.0 must be null or from 0 to 10."),
        (["beam=1000000000"], "beam=1000000000 must be from 0 (no beam search) to 1000."),
        (["length_penalty=long"], "length_penalty=long must be a number or null."),
        (["which=first"], "which=first must be last or best."),
        (["device=tpu"], "device=tpu must be cpu or cuda."),
        (["prompt=é"], "the prompt holds the character 'é' (U+00E9, position 0)"),
        (["score=né"], "the text to score holds the character 'é' (U+00E9, position 1)"),
        (["score="], "the text to score is empty"),
        (["run="], "run must be given"),
        (["run=" + "a" * 300], "cannot be read (File name too long)"),
        (["run=/nonexistent"], "there is no run '/nonexistent'"),
        (["run=."], "holds no checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_status_2(run: Run, arguments: list[str], sentence: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err and err.startswith("prnn: ") and err.count("\n") == 1


def test_a_task_that_writes_no_text_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = TrainConfig(task=Config(), data=DataConfig())
    monkeypatch.setattr(trained, "load", lambda *_: (cfg, object(), torch.nn.Linear(1, 1)))
    assert "was trained on task=char_lm, which does not write text" in run()[2]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained model that translates."""
    folder = tmp_path_factory.mktemp("translators") / "run"
    folder.mkdir()
    data = parallel_corpora.DataConfig(train_size=20, dev_size=5, test_size=0)
    cfg = TrainConfig(task=translation.Config(beam=3), data=data, trainer=TrainerConfig(batch_size=2, max_steps=1))
    cfg.model = ModelConfig(cell="gru", hidden_size=8, num_layers=1, embedding_size=4)
    task = tasks.build(cfg)
    torch.manual_seed(1)
    manifest = {"config": asdict(cfg), "task": task.state_dict()}
    checkpoint.save(folder, 1, task.build_model().state_dict(), {"position": {}}, manifest)
    return folder


def translations(run: Path, *lines: str, beam: int, penalty: float) -> str:
    task, model, device = sample.load(sample.parse([f"run={run}"]))
    assert isinstance(task, translation.Translation)
    return "".join(line + "\n" for line in task.translate(model, device, lines, beam, penalty))


def test_stdin_is_translated_line_by_line(
    translator: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"3 1 4\n\n2 7\xff\r\n9 9")))
    assert main([f"run={translator}"]) == 0
    expected = translations(translator, "3 1 4", "", "2 7\ufffd", "9 9", beam=3, penalty=1.0)
    assert capsys.readouterr() == (expected, "") and expected.count("\n") == 4 and expected.splitlines()[1] == ""


def test_a_prompt_is_translated_instead_and_the_search_can_be_set(
    translator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, (beam, penalty) in (
        ([], (3, 1.0)), (["greedy=true"], (1, 1.0)), (["beam=0"], (1, 1.0)), (["beam=7"], (7, 1.0)),
        (["length_penalty=0"], (3, 0.0)),
    ):  # fmt: skip
        assert main([f"run={translator}", r"prompt=3 1 4\n2 7", *settings]) == 0
        assert capsys.readouterr().out == translations(translator, "3 1 4", "2 7", beam=beam, penalty=penalty)
    shown = {translations(translator, "3 1 4", beam=b, penalty=p) for b, p in ((1, 1.0), (7, 1.0), (3, 0.0))}
    assert len(shown) > 1  # the settings matter to this model


@pytest.mark.parametrize(
    "setting", ["length=7", "temperature=0.5", "top_k=3", "top_p=0.5", "seed=1", "stop=x", "score=3 1"]
)
def test_a_setting_that_is_for_texts(translator: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={translator}", "prompt=3", setting]) == 2
    assert capsys.readouterr() == (
        "", f"prnn: {setting} is not for run={translator}: its task=translation translates; leave it out.\n"
    )  # fmt: skip


def test_a_setting_that_is_for_translations(run: Run, run_dir: Path) -> None:
    assert run("length_penalty=1") == (
        2, "", f"prnn: length_penalty=1.0 is not for run={run_dir}: its task=char_lm writes text; leave it out.\n"
    )  # fmt: skip


@pytest.mark.slow(seconds=10)
def test_each_line_is_answered_before_the_next_is_written(translator: Path) -> None:
    process = start(f"run={translator}", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    for line in (b"3 1 4\n", b"\n", b"2 7\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_help_names_every_setting_and_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for setting in fields(SampleConfig):
        assert re.search(rf"^  {setting.name} +{re.escape(setting.metadata['meaning'])}", out, re.MULTILINE)


def test_each_piece_is_shown_before_the_next_is_asked_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        shown = ""

        def flush(self) -> None:
            self.shown = self.getvalue()

    def pieces(*arguments: object) -> Iterator[str]:
        for piece in "abc":
            yield piece
            assert terminal.shown.endswith(piece)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(CharLM, "generate", pieces)
    assert main([f"run={run_dir}", "prompt=One"]) == 0
    assert terminal.shown == "Oneabc\n"


def start(*arguments: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prnn.sample", *arguments]
    # PYTHONUNBUFFERED empty: stdout is to be buffered, as people have it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    )


def closed(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Exit status and stderr of a process whose reader goes away."""
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        return process.wait(timeout=100), process.stderr.read()


@pytest.mark.slow(seconds=10)
def test_text_is_streamed_and_a_closed_pipe_is_no_error(run_dir: Path) -> None:
    process = start(f"run={run_dir}", "length=10000000", "prompt=One")
    assert process.stdout is not None
    assert process.stdout.read(50).startswith(b"One")  # long before the end
    assert closed(process) == (0, b"")


@pytest.mark.slow(seconds=10)
def test_a_pipe_closed_from_the_beginning_is_no_error() -> None:
    assert closed(start("--help")) == (0, b"")


@pytest.mark.slow(seconds=10)
def test_ctrl_c_is_quiet(run_dir: Path) -> None:
    process = start(f"run={run_dir}", "length=10000000", "prompt=One")
    assert process.stdout is not None
    process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, b"")


def test_text_is_raw_into_a_pipe_and_visible_on_a_terminal(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        terminal = False

        def isatty(self) -> bool:
            return self.terminal

    monkeypatch.setattr(CharLM, "generate", lambda *_: iter(["\x1b]0;x\x07", "\u202e"]))
    for terminal, text in ((False, "One\x1b]0;x\x07\u202e\n"), (True, "One␛]0;x␇\\u202e\n")):
        stream = Stream()
        stream.terminal = terminal
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([f"run={run_dir}", "prompt=One"]) == 0
        assert stream.getvalue() == text


def test_an_error_that_quotes_what_was_given_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run=\x1b]0;x\x07\u202e"]) == 2
    assert not set("\x1b\x07\u202e") & set(capsys.readouterr().err)
    assert main(["\x9b=1"]) == 2
    assert "\\u009b is not a setting" in capsys.readouterr().err
