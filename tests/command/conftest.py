"""The command, in this process."""

import sys
from pathlib import Path

import pytest
import torch

from prnn import train
from tests.command.small import SMALL


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``prnn-train`` in an empty directory, in this process; gives the status, stdout and stderr."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main() sets it
    Path("text.txt").write_text("to be or not to be, that is the question. " * 100)

    def run(*arguments, small=True):
        monkeypatch.setattr(sys, "argv", ["prnn-train", *(SMALL if small else []), *arguments])
        status = train.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
