"""What is shipped: a wheel that works on its own, a bare checkout that works as it is, and one version number."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import prnn
from prnn import extras
from prnn.codegen.headers import CUDA_HEADERS, HEADERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ("prnn", "conf", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def sources(folder: str, suffix: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f"*{suffix}")}


def of_the_wheel(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs the wheel: all of them run on one worker, which builds it once."""
    return pytest.mark.slow(seconds=20)(pytest.mark.xdist_group("wheel")(test))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pure-Python wheel, built from a copy: a build leaves folders behind and takes up what an earlier one left."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, copy],
        check=True,
        env=os.environ | {"PRNN_NO_NATIVE": "1"},
        stdin=subprocess.DEVNULL,
    )
    (path,) = out.glob("prnn-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    target = tmp_path_factory.mktemp("target")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return target


def prnn_train(arguments: list[str], path: Path, cwd: Path) -> subprocess.Popen[str]:
    """`python -m prnn.train` with ``path`` in front of everything else, in ``cwd``."""
    return subprocess.Popen(
        [sys.executable, "-m", "prnn.train", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@of_the_wheel
def test_wheel_holds_all_that_is_needed_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    yaml = {f"prnn/{name}" for name in sources("conf", ".yaml")}
    assert yaml and len(sources("prnn", ".py")) > 20
    corpus = {"prnn/data/shakespeare.txt.xz", "prnn/data/SHAKESPEARE.md", "prnn/data/digits.xz", "prnn/data/DIGITS.md"}
    browser = ROOT / "prnn/reporting/browser"
    page = {str(path.relative_to(ROOT)) for path in browser.rglob("*") if path.is_file()}
    assert "prnn/reporting/browser/uplot/LICENSE" in page
    headers = {
        f"prnn/csrc/{name}" for name in (*HEADERS, *CUDA_HEADERS)
    }  # cells written in Python are compiled with them
    parts = {f"prnn/export/c/parts/{path.name}" for path in (ROOT / "prnn/export/c/parts").iterdir()}
    assert names == sources("prnn", ".py") | yaml | corpus | page | headers | parts | {"prnn/py.typed"}


@of_the_wheel
def test_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert (
        f"\nVersion: {prnn.__version__}\n" in texts["METADATA"]
        and "License-Expression: Apache-2.0" in texts["METADATA"]
    )
    required = re.findall(r"^Requires-Dist: (.*)", texts["METADATA"], re.MULTILINE)
    assert [each for each in required if "extra ==" not in each] == ["torch>=2.10"]
    assert "Apache License" in texts["LICENSE"]
    for command in ("train", "sample", "doctor", "report"):
        assert f"prnn-{command} = prnn.{command}:main" in texts["entry_points.txt"]
        assert re.search(r"^def main\(.*\) -> int:", (ROOT / "prnn" / f"{command}.py").read_text(), re.MULTILINE)


@of_the_wheel
def test_installed_wheel_trains_from_its_own_configuration(installed: Path, tmp_path: Path) -> None:
    small = ["trainer.max_steps=2", "task.eval_tokens=500", "task.sample_length=5", "model.hidden_size=8"]
    asked, trained = (prnn_train(each, installed, tmp_path) for each in (["--info", "searchpath"], small))
    assert f"file://{installed}/prnn/conf" in printed(asked)
    printed(trained)
    assert (tmp_path / "runs" / "latest" / "summary.json").exists()


@pytest.mark.slow(seconds=15)
def test_bare_checkout_shows_its_configuration_and_help(tmp_path: Path) -> None:
    shown, helped = (prnn_train(each, ROOT, tmp_path) for each in (["--cfg", "job", "model=gru"], ["--help"]))
    assert "cell: gru" in printed(shown)
    text = printed(helped)
    presets = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    assert re.sub(r",\s+", ", ", text).count(", ".join(presets)) == 1 and "model.hidden_size=128" in text
    assert not list(tmp_path.iterdir()), "showing the configuration must write nothing"


def test_build_does_not_ask_for_torch() -> None:
    assert not any("torch" in each for each in PYPROJECT["build-system"]["requires"])


def test_constraints_pin_everything_that_is_asked_for() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    project = PYPROJECT["project"]
    asked = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    assert not {re.split(r"[<>=;]", each)[0] for each in asked} - set(pins) - {"prnn[train]"}
    assert pins["torch"] == "2.13.0"


# The others are imported by their own names.
DISTRIBUTIONS = {"hydra": "hydra-core", "yaml": "PyYAML", "sb3_contrib": "sb3-contrib"}
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def test_the_commands_ask_for_the_packages_of_their_extra() -> None:
    assert {DISTRIBUTIONS.get(name, name) for name in extras.TRAIN} == {
        re.split(r"[<>=]", each)[0] for each in EXTRAS["train"]
    }


def test_extras_that_training_uses_bring_its_packages() -> None:
    own = {name for name, packages in EXTRAS.items() if "prnn[train]" not in packages}
    assert own == {"train", "bench", "export", "programs", "sb3"}


def test_every_import_is_declared() -> None:
    """What the package imports from outside is a dependency, or an extra, of that name."""
    declared = PYPROJECT["project"]["dependencies"] + EXTRAS["train"] + EXTRAS["sb3"] + EXTRAS["export"]
    declared += ["wandb", "wandb_workspaces", "tensorboard", "sacrebleu", "backports", "optuna"]
    declared += ["compression"]  # Python's, from 3.14 on
    allowed = {re.split(r"[<>=]", each)[0] for each in declared} | {"prnn"} | set(sys.stdlib_module_names)
    for path in (ROOT / "prnn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            roots = {DISTRIBUTIONS.get(module.split(".")[0], module.split(".")[0]) for module in modules}
            assert roots <= allowed, f"{path.name} imports {roots - allowed}"


@pytest.mark.parametrize("python", ["3.10.0", "3.11.0", "3.11.2", "3.12.0", "3.13.0"])
def test_no_pin_is_for_a_python_that_its_package_refuses(python: str) -> None:
    """Of the packages that are installed here, in the versions that are pinned."""
    requirements, specifiers = (pytest.importorskip(f"packaging.{name}") for name in ("requirements", "specifiers"))
    marked = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    seen = 0
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = requirements.Requirement(line) if line and not line.startswith("#") else None
        if pin is None or (pin.marker and not pin.marker.evaluate(marked)):
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed = metadata.metadata(pin.name)
            if installed["Version"] in pin.specifier:
                seen += 1
                assert python in specifiers.SpecifierSet(installed["Requires-Python"] or ""), line
    assert seen > 50
