"""A process that ends with its parent."""

import signal
import subprocess
import sys
import time

import pytest

from prnn import parent_death

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
PARENT = """
import signal, subprocess, sys, time
from prnn import parent_death
command = parent_death.command([sys.executable, "-c", sys.argv[1]], signal.SIGTERM)
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
time.sleep(60)
"""
CHILD = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({path!r}).touch(), sys.exit()))
print("ready", flush=True)
time.sleep(60)
"""


def test_the_command_gets_the_signal_when_its_parent_is_killed(tmp_path):
    child = CHILD.format(path=str(tmp_path / "told"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 30
    while not (tmp_path / "told").exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_parent_that_has_ended_is_found():
    """Also as a zombie, or with another process of its number: the parent is the process that has started it."""
    command = parent_death.command([sys.executable, "-c", "print('it runs')"], signal.SIGTERM)
    assert subprocess.run(command, capture_output=True, text=True).stdout == "it runs\n"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    try:
        time.sleep(0.3)  # a zombie, until it is waited for
        command[command.index("prnn.parent_death") + 2] = str(gone.pid)
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "") and "which this one was to end with, has ended" in done.stderr
    finally:
        gone.wait()


def test_a_command_that_does_not_start_is_a_sentence():
    done = subprocess.run(parent_death.command(["/no/such"]), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: /no/such does not start: No such file or directory\n")
