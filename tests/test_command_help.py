"""--help, --version and completion of prnn-train, and how wrong words are answered."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import prnn
from prnn import config, plugins, tasks, train
from prnn.config import describe

CONF = config.CONF


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run ``prnn-train`` in this process; gives the status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prnn-train", *arguments])
        status = train.main()
        said = capsys.readouterr()
        assert not list(tmp_path.glob("runs/*/*")), "an answer leaves nothing behind"
        return status, said.out, said.err

    return run


def test_help_and_version_need_no_torch():
    code = "import sys\nfrom prnn import train\ntrain.main()\nprint(*({'torch', 'numpy'} & set(sys.modules)))"
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "", "imported"
    assert done.stdout.startswith("prnn 0.")


@pytest.mark.parametrize("task", plugins.names())
def test_help_has_every_setting_with_its_meaning_type_and_value(task, call):
    status, said, err = call(f"task={task}", "optimizer.lr=0.125", "--help")
    assert (status, err) == (0, "")
    shown = dict(re.findall(r"^  ([\w.]+)=(.*)$", said, re.MULTILINE))
    known = config.known_keys(tasks.schemas(task))
    assert shown.keys() == known.keys() - {"task.name"}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"task={task}", "optimizer.lr=0.125"])
    for key, value in shown.items():
        there = OmegaConf.select(cfg, key)
        assert value == ("null" if there is None else str(there).replace(" ", "").lower() if key == "optimizer.betas"
                         else str(there).lower() if isinstance(there, bool) else str(there))  # fmt: skip
    of_prnn = [
        each for each in describe.settings(plugins.place(task).source()) if each.key not in ("task.name", "data.name")
    ]
    assert all(each.meaning for each in of_prnn), [each.key for each in of_prnn if not each.meaning]


def test_help_is_of_the_types_and_ranges_that_are_checked():
    """What the source tells without an import is what the imported dataclasses hold."""
    for name in plugins.names():
        schemas = dict(zip(("task", "data"), tasks.schemas(name), strict=True))
        for each in describe.settings(plugins.place(name).source()):
            section, _, field = each.key.partition(".")
            if section in schemas:
                assert getattr(schemas[section](), field) == each.default, each.key
                limits = getattr(schemas[section], "RANGES", {}).get(field)
            else:
                limits = config.RANGES.get(each.key)
            start = "" if limits is None else limits[1].split(" and at most")[0]
            assert start in each.expected or start.startswith("a number from"), (each, start)


def test_help_of_one_section_or_group(call):
    _, said, _ = call("--help", "optimizer")
    assert "optimizer.schedule.gamma=0.5" in said and "  trainer." not in said and "  adagrad" in said
    _, said, _ = call("experiment=char_rnn", "--help", "experiment", "optimizer.schedule")
    assert "experiment=CHOICE, here char_rnn" in said and "optimizer.schedule.gamma=0.97" in said
    assert call("--help", "task.bptt", "optimizer.lr")[1].count("=") == 2 and "trainer" not in said
    assert re.search(r"  min_char_rnn +min-char-rnn \(Andrej Karpathy, 2015\)$", said, re.MULTILINE)
    status, _, err = call("--help", "optimiser")
    assert status == 2 and err.startswith("prnn: --help optimiser: there is no setting, section or group of this name")
    assert "(did you mean optimizer.lr?)" in call("--help", "optimiser.lr")[2]
    assert "task.name=char_lm" in call("--help", "task.name")[1]


def test_help_of_a_run_has_its_values(call, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / ".hydra").mkdir()
    (run / ".hydra/overrides.yaml").write_text("- model=gru\n- optimizer.lr=0.5\n- seed=3\n")
    status, said, err = call(f"resume={run}", "seed=4", "--help")
    assert (status, err) == (0, "") and "model.cell=gru\n" in said
    assert "optimizer.lr=0.5\n" in said and "  seed=4\n" in said


def test_help_of_a_folder_of_ones_own(call, tmp_path_factory):
    mine = tmp_path_factory.mktemp("conf")
    (mine / "experiment").mkdir()
    (mine / "experiment" / "mine.yaml").write_text("# @package _global_\n# A preset. And more.\nseed: 7\n")
    _, said, _ = call("experiment=mine", f"--config-dir={mine}", "--help")
    assert "mine" in said and "  seed=7" in said


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--max_steps", "3"], "--max_steps is not an option: settings are written without dashes, as KEY=VALUE, such"),
        (["--max_steps", "3"], "such as trainer.max_steps=3; --help lists them"),
        (["--max-steps=3"], "such as trainer.max_steps=3;"),
        (["--lr", "1e-3", "model=gru"], "such as optimizer.lr=1e-3;"),
        (["model=gru", "--nonesuchatall"], "such as KEY=VALUE;"),
        (["model=ltsm"], "there is no model=ltsm (did you mean lstm?): the known ones are alif, ctrnn, gru,"),
        (["experiment=char-rnn"], "there is no experiment=char-rnn (did you mean char_rnn?)"),
        (["optimizer=nonesuchatall"], "there is no optimizer=nonesuchatall: the known ones are adagrad, adam,"),
        (["task=chr_lm"], "there is no task=chr_lm (did you mean char_lm?)"),
        (["trainer.max_steps=1.5"], "trainer.max_steps=1.5 must be an integer or null."),
    ],
)  # fmt: skip
def test_wrong_words_are_answered_with_the_right_ones(arguments, sentence, call):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "") and err.startswith("prnn: ") and sentence in err and err.count("\n") == 1
    assert "default" not in err


def test_a_whole_number_may_be_written_with_an_exponent():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["trainer.max_steps=1e3", "seed=2.0", "data.max_words=1e4", "optimizer.lr=1"])
    typed = config.check(cfg, tasks.schemas("char_lm"))
    found = typed.trainer.max_steps, typed.seed, typed.data.max_words
    assert found == (1000, 2, 10_000) and all(type(each) is int for each in found)
    assert cfg.trainer.max_steps == 1000.0  # what was given is recorded as it was


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_settings_and_groups(tmp_path):
    script = tmp_path / "prnn-train"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom prnn.train import main\nsys.exit(main())\n")
    script.chmod(0o755)
    program = r"""
eval "$(prnn-train -sc install=bash)"
complete -p prnn-train
for COMP_LINE in "prnn-train model=g" "prnn-train optimizer.l" "prnn-train experiment=irnn_d"; do
    COMP_POINT=${#COMP_LINE} COMP_WORDS=($COMP_LINE) COMP_CWORD=1
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
"""
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=os.environ | path, cwd=tmp_path)
    installed, *completed = done.stdout.splitlines()
    assert "-F hydra_bash_completion prnn-train" in installed, done.stderr
    assert completed == ["model=gru", "optimizer.lr=", "experiment=irnn_digits"]


def test_the_first_sentence_of_a_configuration(tmp_path):
    path = tmp_path / "a.yaml"
    for text, expected in {
        "# @package _global_\n# One of them.\n# Another.\na: 1\n": "One of them",
        "# Something: https://example.org\n# More\n": "Something",
        "a: 1  # not this\n": "",
    }.items():
        path.write_text(text)
        assert describe.summary(path) == expected
    assert all(
        describe.summary(path)
        for path in CONF.glob("*/*.yaml")
        if path.stem != "default" and path.parent.name in ("experiment", "task", "data")
    )


def test_a_task_whose_source_says_little(tmp_path):
    """Ranges that need an import are left out; what is no literal is no default; nothing raises."""
    path = tmp_path / "task.py"
    path.write_text(
        "from nonesuch import LIMIT\nimport torch\nfrom dataclasses import dataclass\n\n@dataclass\nclass Config:\n"
        "    a: int = 1  # of a\n    b: float = torch.pi\n    c: 'dict[str, int] | None' = None  # of c\n"
        "    RANGES = {'a': within(1, LIMIT), 'b': nonesuch(3), **OTHERS}\n"
    )
    found = {each.key: each for each in describe.settings(path)}
    assert found["task.a"] == ("task.a", "an integer", 1, "of a")
    assert found["task.b"].default is None and found["task.c"].meaning == "of c"
    assert not [key for key in found if key.startswith("data")]


def test_a_task_that_is_no_python_is_told(call, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("modules")
    monkeypatch.syspath_prepend(folder)
    (folder / "torn.py").write_text("def f(:\n")
    (folder / "latin.py").write_bytes(b"# \xe9\n")
    (folder / "one.py").write_text("from two import Config\n")
    (folder / "two.py").write_text("from one import Config\n")
    for name in ("torn", "latin"):
        status, _, err = call("--help", f"task.name={name}:T")
        assert status == 2 and f"{name}.py cannot be read as Python" in err and err.count("\n") == 1
    assert call("--help", "task.name=one:T")[0] == 0


def test_help_of_a_sweep_and_of_flags_that_are_wrong(call):
    assert "model=CHOICE, here lstm" in call("--multirun", "model=lstm,gru", "--help", "model")[1]
    for flag in ("-mx", "--cfg"):
        status, out, err = call(flag, "nonesuch")
        assert status == 2 and err.startswith("prnn: ") and err.count("\n") == 1 and not out


@pytest.mark.parametrize("module", ["doctor", "export_run", "report", "sample"])
def test_the_options_of_every_command(module, monkeypatch, capsys):
    for word in ("--help", "--version"):
        monkeypatch.setattr(sys, "argv", ["prnn", word])
        assert import_module(f"prnn.{module}").main() == 0
        out, err = capsys.readouterr()
        assert out and not err and (out == f"prnn {prnn.__version__}\n") == (word == "--version")
