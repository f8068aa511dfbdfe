"""What a benchmark's command line cannot mean is told in a sentence, before anything is timed."""

import pytest

from benchmarks import cells_picture, memory_networks, translation
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import training_step
from benchmarks.sass import cells as sass_cells
from benchmarks.training import __main__ as training


@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (memory_networks, "--rounds"),
        (memory_networks, "--threads"),
        (training, "--rounds"),
        (training, "--steps"),
        (training_step, "--rounds"),
        (training_step, "--batches"),
        (translation, "--epochs"),
        (translation, "--threads"),
        (kernels, "--rounds"),
        (kernels, "--threads"),
        (gpu_check, "--rounds"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_counts_are_at_least_one(module, argument, value, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", argument, value])
    with pytest.raises(SystemExit, match="2"):
        module.main(None) if module is gpu_check else module.main()
    assert f"argument {argument}: '{value}' must be an integer of at least 1" in capsys.readouterr().err


def test_a_folder_is_no_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["memory_networks", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="2"):
        memory_networks.main()
    assert "is a file, and must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("no/x.md", "there is no folder "), (".", "'.' is no file"), ("file/x.md", "there is no folder")],
)
def test_a_file_to_write_is_in_a_folder(out, sentence, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sass.cells", "--out", out])
    with pytest.raises(SystemExit, match="2"):
        sass_cells.main()
    assert f"argument --out: {sentence}" in capsys.readouterr().err


def test_a_folder_without_runs_has_no_picture(tmp_path):
    with pytest.raises(SystemExit, match="has no finished run "):
        cells_picture.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("cases", "sentence"), [("(", "( is no regular expression"), ("nothing", "--suite table has no such case; one is ")]
)
def test_cases_there_are_none_of(cases, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        kernels.parse(["--cases", cases])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "sentence"), [("adding_20", "not of task=adding"), ("nonsense", "--experiment nonsense: ")]
)
def test_translation_wants_a_preset_of_translation(experiment, sentence):
    with pytest.raises(SystemExit, match=sentence):
        translation.configured(experiment, 1, 1)
