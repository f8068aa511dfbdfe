from pathlib import Path

import pytest

TEXT = "The quick brown fox jumps over the lazy dog.\nA stitch in time saves nine; so they say.\n" * 12


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path
