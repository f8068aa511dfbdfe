"""A wheel in environments where nothing but torch is: layers on the native kernels, then ten steps of prnn-train.

    python -m tests.wheel dist/prnn-*.whl torch==2.10.0 torch==2.13.0     each installed by pip into a new environment
    python -m tests.wheel dist/prnn-*.whl here                            the packages of this Python, linked into one
    python -m tests.wheel dist/prnn-*.whl /path/to/environment            one in which torch and the wheel are installed

No compiler is on the PATH. Where PyPI has torch for CUDA alone, that is a download of gigabytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.distributions import required_by

LAYERS = """
import sys, torch, prnn
for name in ("RNN", "GRU", "LSTM"):
    layer, theirs, x = getattr(prnn, name)(5, 17), getattr(torch.nn, name)(5, 17), torch.randn(7, 3, 5)
    theirs.load_state_dict(layer.state_dict())
    ours, expected = layer(x)[0], theirs(x)[0]
    for output in (ours, expected):
        output.square().sum().backward()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for parameter, other in zip(layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4)
    step = torch.randn(1, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(step), theirs(step), rtol=1e-4, atol=1e-5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], ours, rtol=0, atol=0)
    assert type(prnn.convert(theirs, verbose=False)) is type(layer)
    assert "cpu (native kernels, " in prnn.explain(layer, x), prnn.explain(layer, x)
assert "hydra" not in sys.modules
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}:", prnn.explain(layer, x).splitlines()[1].strip())
"""
SMALL = ["trainer.max_steps=10", "task.eval_tokens=500", "task.sample_length=5", "model.hidden_size=8"]


def environment(folder: Path, given: str, wheel: Path) -> Path:
    """The environment ``given`` as on the command line, with the wheel, and without the extra ``train``."""
    if Path(given).is_dir():
        return Path(given)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if given == "here":
        link(required_by("torch"), folder)
        pip(folder, "--no-index", str(wheel))
    else:
        pip(folder, given)
        pip(folder, str(wheel))
    return folder


def pip(folder: Path, *arguments: str) -> None:
    run(folder, sys.executable, "-m", "pip", "--python", folder, "install", "-q", *arguments)


def run(folder: Path, *command: str | Path) -> str:
    """What a command printed that sees the environment and its Python, and nothing beside."""
    seen = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PRNN_"))}
    seen |= {"PATH": str(folder / "bin"), "CXX": ""}
    return subprocess.run(command, cwd=folder.parent, env=seen, text=True, stdout=subprocess.PIPE, check=True).stdout


def link(distributions: set[str], folder: Path) -> None:
    """Make installed distributions importable in another environment of the same Python."""
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in distributions:
        found = metadata.distribution(name)
        for top in {path.parts[0] for path in found.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))


def extra(wheel: Path) -> set[str]:
    """The distributions that the extra ``train`` names."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(path).decode()
    return set(re.findall(r"^Requires-Dist: ([\w.-]+).*extra == .train.", text, re.MULTILINE))


def check(wheel: Path, given: str, folder: Path) -> None:
    """Raises CalledProcessError where something fails; prints what ran."""
    there = environment(folder / "environment", given, wheel)
    print(given, run(there, there / "bin/python", "-W", "ignore", "-c", LAYERS).strip(), sep=": ", flush=True)
    if given == "here":
        link(required_by(*extra(wheel)), there)
        pip(there, "--no-index", f"{wheel}[train]")
    elif not Path(given).is_dir():
        pip(there, f"{wheel}[train]")
    run(there, there / "bin/prnn-train", f"run_dir={folder / 'run'}", *SMALL)
    assert (folder / "run/summary.json").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("environments", nargs="+")
    arguments = parser.parse_args()
    for given in arguments.environments:
        with tempfile.TemporaryDirectory() as folder:
            check(arguments.wheel.resolve(), given, Path(folder))


if __name__ == "__main__":
    main()
