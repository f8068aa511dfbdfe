"""The Python of the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


PAGES = dict.fromkeys(
    ("README.md", "docs/index.md", "docs/cells.md", "docs/torch_nn.md", "docs/reinforcement_learning.md"), "layer 0: "
) | {"docs/export.md": "largest error "}


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(
    page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "docs/export.md":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'prnn[export]'")
    monkeypatch.chdir(tmp_path)  # where examples write
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    blocks = [block for block in blocks if "sb3" not in block]  # those run in tests/integrations/test_sb3.py
    assert blocks
    script = tmp_path / "example.py"  # a file: a cell's source is read from it
    script.write_text("\n".join(blocks))
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "example"})
    assert PAGES[page] in capsys.readouterr().out
