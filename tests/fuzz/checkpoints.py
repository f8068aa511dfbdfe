"""Mutated checkpoints: read, resumed, best model, sampled from. What is refused is refused in one sentence.

A real checkpoint of either format has entries of its manifest, its state and its tensors removed, replaced or reshaped,
and is sealed again with the right checksums; or bytes of a file are flipped, and it is not.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from torch import Tensor

from prnn import sample, tasks
from prnn.config import ModelConfig, TrainConfig, TrainerConfig
from prnn.errors import UserError
from prnn.tasks import char_lm
from prnn.training import checkpoint, fit, snapshot
from prnn.training.checkpoint import MANIFEST
from prnn.training.checkpoint.directory import checksum
from prnn.training.distributed import World
from prnn.training.progress import Progress

TRIALS = 30
STEPS = 3  # of the run whose checkpoint is mutated; a resume makes one more

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, -0.5, 1e308, math.nan, math.inf,
    "", "x", "word", "a\0b", "${x}", "../x", [], {}, [1], [None], {"a": 1}, [[]],
]  # fmt: skip


def trial(rng: random.Random, folder: Path) -> None:
    """One checkpoint, mutated, and everything that reads it."""
    layout = rng.choice(("file", "sharded"))
    run = folder / "run"
    shutil.copytree(base(layout), run)
    [path] = checkpoint.listing(run)
    name = rng.choice(sorted(file.name for file in path.iterdir()))
    done = flip(rng, path / name) if rng.random() < 0.2 else mutate(rng, path / name, rng.choice((1, 1, 1, 2, 3)))
    text = f"{layout}, {name}: {done}"
    for reader in (resume, best, write):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                reader(run, layout)
            assert "Traceback" not in said.getvalue(), text
        except UserError as error:
            assert "\n" not in str(error), f"{text}: {reader.__name__}: two lines: {error}"
        except Exception as error:
            raise AssertionError(f"{text}: {reader.__name__}: {type(error).__name__}: {error}") from error


def config(layout: str) -> TrainConfig:
    data = char_lm.DataConfig(path=str(_home() / "text.txt"))
    trainer = TrainerConfig(max_steps=STEPS, batch_size=3, threads=1, progress="off", eval_every=0, checkpoint_every=0)
    trainer.checkpoint_format = layout
    task = char_lm.Config(bptt=5, sample_length=2, eval_tokens=20)
    return TrainConfig(task=task, data=data, model=ModelConfig(hidden_size=4, embedding_size=3), trainer=trainer)


@functools.cache
def _home() -> Path:
    """A folder for what all trials share; it is removed with the process."""
    home = tempfile.TemporaryDirectory(prefix="prnn-fuzz-checkpoints-")
    _KEPT.append(home)
    Path(home.name, "text.txt").write_text("to be or not to be, that is the question. " * 20)
    return Path(home.name)


_KEPT: list[Any] = []


@functools.cache
def base(layout: str) -> Path:
    """The run whose checkpoint is mutated."""
    cfg, run = config(layout), _home() / layout
    with contextlib.redirect_stdout(io.StringIO()):
        fit(cfg, tasks.build(cfg), World(), run)
    return run


def resume(run: Path, layout: str) -> None:
    """Go on, as ``prnn-train resume=...`` does."""
    loaded, cfg = checkpoint.read(run), config(layout)
    cfg.trainer.max_steps, cfg.trainer.eval_every = STEPS + 1, 0
    task = tasks.build(cfg, loaded.manifest.get("task", {}), loaded.path)
    with mock.patch("prnn.training.observe.summary.plot_loss"):  # which takes longer than all the rest
        fit(cfg, task, World(), run, loaded)
    shutil.rmtree(checkpoint.folder(run) / checkpoint.name_of(STEPS + 1))


def best(run: Path, layout: str) -> None:
    """The best model, as the final test reads it."""
    cfg = config(layout)
    model = tasks.build(cfg).build_model()
    snapshot.best_model(run, asdict(cfg), model, Progress(step=STEPS + 1, best_step=STEPS, best_loss=1.0))


def write(run: Path, layout: str) -> None:
    """``prnn-sample``."""
    assert sample.main([f"run={run}", "length=3", "seed=1", "which=best"]) in (0, 2)


# Mutations


def flip(rng: random.Random, file: Path) -> str:
    """Change bytes of a file, and nothing else."""
    content = bytearray(file.read_bytes())
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 8)))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
    return f"flipped {places}"


def mutate(rng: random.Random, file: Path, times: int) -> str:
    """Change entries of a file, and seal the checkpoint again."""
    box = {"": _load(file)}
    done = [_change(rng, box) for _ in range(times)]
    with contextlib.suppress(Exception):  # what the file's format cannot hold is not written
        _store(file, box[""])
    manifest = file.with_name(MANIFEST)
    content = json.loads(manifest.read_bytes())
    if isinstance(content, dict):
        if isinstance(content.get("sha256"), dict):
            for name in content["sha256"]:
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    if file.name != MANIFEST or rng.random() < 0.8:
                        content["sha256"][name] = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
        content.pop("checksum", None)
        manifest.write_text(json.dumps({**content, "checksum": checksum(content)}))
    return "; ".join(done)


def _load(file: Path) -> Any:
    if file.suffix == ".json":
        return json.loads(file.read_bytes())
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    return torch.load(file, weights_only=True)


def _store(file: Path, value: Any) -> None:
    buffer = io.BytesIO()
    if file.suffix == ".json":
        buffer.write(json.dumps(value).encode())
    elif file.suffix == ".safetensors":
        buffer.write(
            safetensors.torch.save({name: each.contiguous() for name, each in value.items() if each.numel() < 10**9})
        )
    else:
        torch.save(value, buffer)
    file.write_bytes(buffer.getvalue())


def _change(rng: random.Random, box: dict[str, Any]) -> str:
    """Change one entry of the tree in ``box``; says which, and how."""
    holder, key, where = rng.choice(list(_entries(box, "")))
    value = holder[key]
    how, new = rng.choice(_ways(rng, value))
    if isinstance(holder, tuple):  # its holder's entry is changed instead
        return f"{where} left alone"
    if how == "removed":
        del holder[key]
        if holder is box:
            box[""] = {}
    elif how == "renamed" and isinstance(holder, dict) and holder is not box:
        holder[rng.choice(["other", 10**9, -1, f"{key}x"])] = holder.pop(key)
    else:
        try:
            holder[key] = new()
        except RuntimeError:  # of a tensor that has been changed before
            return f"{where} left alone"
    return f"{where} {how}" + (f" with {holder[key]!r:.60}" if how == "replaced" else "")


def _ways(rng: random.Random, value: Any) -> list[tuple[str, Callable[[], Any]]]:
    tensors: list[Any] = [
        torch.zeros(0),
        torch.tensor(math.nan),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.ones(1, 3, 4),
    ]
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("removed", lambda: None), ("renamed", lambda: value), ("wrapped", lambda: [value]),
        ("replaced", lambda: rng.choice(VALUES)), ("replaced", lambda: rng.choice(VALUES)),
        ("replaced", lambda: rng.choice(tensors)), ("made a tuple", lambda: (value, value)),
    ]  # fmt: skip
    if isinstance(value, Tensor):
        ways += [
            ("flattened", lambda: value.reshape(-1)), ("doubled", lambda: torch.cat([value.reshape(-1)] * 2)),
            ("transposed", lambda: value.transpose(0, -1) if value.dim() else value[None]),
            ("made integers", lambda: value.to(torch.int64)), ("made complex", lambda: value.to(torch.complex64)),
            ("made NaN", lambda: torch.full_like(value, math.nan) if value.is_floating_point() else value * 0 - 1),
            ("made float8", lambda: value.to(torch.float8_e4m3fn)), ("made sparse", lambda: value.to_sparse()),
            ("expanded", lambda: torch.zeros(1).expand(10**12)), ("made a meta tensor", lambda: value.to("meta")),
        ]  # fmt: skip
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        ways += [("negated", lambda: -value), ("made larger", lambda: value * 1000 + 1), ("a text", lambda: str(value))]
    elif isinstance(value, str):
        ways += [
            ("doubled", lambda: value * 2),
            ("emptied", lambda: ""),
            ("a character changed", lambda: value[:-1] + "\ud800"),
        ]
    elif isinstance(value, list) and value:
        ways += [("doubled", lambda: value * 2), ("shortened", lambda: value[:-1]), ("reversed", lambda: value[::-1])]
    return ways


def _entries(holder: Any, where: str) -> Any:
    """Every place of the tree: what holds it, its key there, and its path."""
    places = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in list(places):
        path = f"{where}.{key}".lstrip(".")
        yield holder, key, path
        if isinstance(value, (dict, list)) or (isinstance(value, tuple) and len(value) < 10):
            yield from _entries(value, path)


logging.getLogger("prnn").addHandler(logging.NullHandler())
