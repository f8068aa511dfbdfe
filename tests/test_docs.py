"""The Python of the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


PAGES = ["README.md", "docs/cells.md", "docs/torch_nn.md", "docs/reinforcement_learning.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    blocks = [block for block in blocks if "sb3" not in block]  # those run in tests/integrations/test_sb3.py
    assert blocks
    script = tmp_path / "example.py"  # a file: a cell's source is read from it
    script.write_text("\n".join(blocks))
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "example"})
    assert "layer 0: " in capsys.readouterr().out
