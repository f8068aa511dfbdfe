"""Processes that need not import torch first: they are forked from one that has, which lives as long as this one."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# torch imports torch._dynamo, with sympy, in two seconds when the first optimizer is made.
FORKS.set_forkserver_preload(["tests.training.toy_task", "prnn.train", "torch._dynamo", "torch._inductor.config"])


def ranks(size: int) -> list[dict[str, str]]:
    """The environment variables of each rank of a job on this host, as torchrun sets them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def run(
    module: str, commands: list[tuple[list[str], dict[str, str]]], seconds: float = 300, folder: Path | None = None
) -> tuple[list[int], str]:
    """``main()`` of a module with the arguments and environment variables of each command, all at once, in ``folder``.

    As ``python -m module``, but for what is read from the environment or done at an import, and for what happens at the
    interpreter's end. Returns the exit statuses and what was printed. ``seconds``: a limit to all of it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        logs = [Path(temporary) / str(number) for number in range(len(commands))]
        processes = [
            FORKS.Process(
                target=_run, args=(module, arguments, {**os.environ, **environment}, folder or Path.cwd(), log)
            )
            for (arguments, environment), log in zip(commands, logs, strict=True)
        ]
        try:
            deadline = time.monotonic() + seconds
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0, deadline - time.monotonic()))
            said = "".join(log.read_text(errors="replace") for log in logs if log.exists())
            assert all(process.exitcode is not None for process in processes), f"no end after {seconds} s: {said}"
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
    return [process.exitcode for process in processes], said


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: Path, said: Path) -> None:
    gc.freeze()  # what was imported is no garbage, and is not copied to be searched
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv[:] = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


def run_code(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As ``python -c code`` in ``folder``, with torch imported and nothing else; the environment is added to this one.

    What Python and torch read from the environment when they start has been read. Whatever ``code`` has started ends
    with it.
    """
    server = _server_of_torch()
    with tempfile.TemporaryDirectory() as temporary:
        task = {"code": code, "folder": str(folder), "environment": {**os.environ, **environment}, "to": temporary}
        print(json.dumps(task), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        if not answer:
            _server_of_torch.cache_clear()
            raise RuntimeError(f"the process that has imported torch ended with status {server.wait()}")
        status = os.waitstatus_to_exitcode(int(answer))
        out, err = ((Path(temporary) / name).read_text(errors="replace") for name in ("out", "err"))
    if status == -signal.SIGALRM:
        raise TimeoutError(f"no end after {_CODE_SECONDS} s: {out}{err}")
    return subprocess.CompletedProcess(code, status, out, err)


@cache
def _server_of_torch() -> subprocess.Popen[str]:
    """Ends with this process, which closes its standard input."""
    command = [sys.executable, "-c", f"import torch{_SERVE}", str(_CODE_SECONDS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_CODE_SECONDS = 120
_SERVE = """
import contextlib, json, os, signal, sys
for line in sys.stdin:
    task = json.loads(line)
    if (pid := os.fork()) == 0:
        os.setsid()
        signal.alarm(int(sys.argv[1]))
        files = [os.devnull, *(os.path.join(task["to"], name) for name in ("out", "err"))]
        for number, file in enumerate(files):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(task["environment"])
        os.chdir(task["folder"])
        exec(task["code"], {"__name__": "__main__"})
        sys.exit()
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    print(status, flush=True)
"""
