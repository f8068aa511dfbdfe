"""Mutated files of a run through all that reads one: reports, lists, replay, resume, the plot."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prnn.errors import UserError
from prnn.manage import details, listing
from prnn.manage.text import lines
from prnn.reporting import page, replay, wandb_spec
from prnn.reporting.runs import load_all
from prnn.training.observe import record_writer, run_state, summary
from tests.reporting.conftest import ranks_at, trained_at

TRIALS = 12

_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**53, 2**63, 10**400, 1e300, -1e308, 5e-324, float("nan"), float("inf"), "", "x" * 300, "7",
    "\x00\x1b]0;t\x07\u202e", "\ud800", "$x_{", "../../secret.png", "/etc/passwd", "loop.png", "\x00.png", "a/" * 3000,
    [], [[]], {}, {"p50": "x"}, {"rank": -1}, [{"rank": 0, "step_ms": {"p50": {"a": [1]}}}], [7], {"": {"": {}}},
)  # fmt: skip
_LINES = (
    b"", b"\0" * 50, b"7", b"null", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"\xff\xfe{}", b'{"kind": "tr',
    b'{"kind": "train", "step": 1' + b"0" * 5000 + b"}", b'{"kind": "val", "step": 3, "loss": 1e999}',
    b'{"kind": "sample", "step": 4, "text": "\\udc9b\\u009b"}', b'{"kind": "train", "step": 4, "loss": NaN}',
)  # fmt: skip
_CONFIGS = (
    b"", b"- 7", b"][", b"a: &a [x]\nb: [*a, *a]", b"seed: 0x" + b"f" * 5000, b"logger: {tags: 7, project: {a: b}}",
    b"model: {cell: '${oc.env:HOME}', 7: 8}", b"a: " + b"[" * 2000, b"\xff", b"logger: {wandb: 'x', name: '\\e'}\n",
)  # fmt: skip


def _records() -> list[Any]:
    return [
        trained_at(1), trained_at(2), ranks_at(2, 3, 1), trained_at(3, exposed_comm=None),
        {"kind": "val", "step": 2, "loss": 2.0, "figures": {"accuracy": 0.5}},
        {"kind": "sample", "step": 2, "text": "to be\n"},
        {"kind": "pictures", "step": 3, "files": {"line": "line.png"}},
        {"kind": "test", "step": 3, "of_step": 2, "figures": {"solved": 0.5}},
    ]  # fmt: skip


def _mutate(rng: random.Random, value: Any) -> Any:
    """``value`` with one part changed, left out, or put under another name."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(_VALUES)
    if isinstance(value, list):
        found = list(value)
        index = rng.randrange(len(found))
        found[index] = _mutate(rng, found[index])
        return found
    found, name = dict(value), rng.choice(list(value))
    part = found.pop(name)
    action = rng.random()
    if action < 0.7:
        found[name] = _mutate(rng, part)
    elif action < 0.85:
        found[str(rng.choice(_VALUES))[:200]] = part
    return found


def _record(rng: random.Random) -> bytes:
    records = _records()
    for _ in range(rng.randrange(1, 6)):
        index = rng.randrange(len(records))
        records[index] = _mutate(rng, records[index])
    lines = [json.dumps(each).encode() for each in records]
    for _ in range(rng.randrange(3)):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES))
    content = bytearray(b"\n".join(lines) + b"\n" * rng.randrange(2))
    for _ in range(rng.choice((0, 0, 1, 5))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)


@cache
def _png() -> bytes:
    found = io.BytesIO()
    Figure(figsize=(0.5, 0.5)).savefig(found)
    return found.getvalue()


def _picture(rng: random.Random, path: Path) -> None:
    content = bytearray(_png())
    for _ in range(rng.randrange(4)):
        content[rng.randrange(min(len(content), 80))] = rng.randrange(256)
    path.write_bytes(content[: rng.randrange(1, len(content) + 1)] if rng.random() < 0.3 else content)


def trial(rng: random.Random, folder: Path) -> None:
    """Everything ends, in a result or in a ``UserError``, and nothing outside the run is shown."""
    secret = folder / "secret.png"
    secret.write_bytes(_png())
    run = folder / "runs" / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "loop.png").symlink_to(secret if rng.random() < 0.5 else "loop.png")
    _picture(rng, run / "line.png")
    (run / "metrics.jsonl").write_bytes(_record(rng))
    if rng.random() < 0.7:
        figures = {"steps": 3, "unit": "words", "versions": {"torch": "2"}, "seconds": 1.5, "tokens": 300}
        (run / "summary.json").write_bytes(
            json.dumps(_mutate(rng, figures)).encode() if rng.random() < 0.8 else rng.choice(_LINES)
        )
    if rng.random() < 0.7:
        (run / ".hydra" / "config.yaml").write_bytes(rng.choice(_CONFIGS))
        (run / ".hydra" / "overrides.yaml").write_bytes(rng.choice((b"- model=gru\n", *_CONFIGS)))
    if rng.random() < 0.7:
        (run / "heartbeat").mkdir()
        beat = json.loads(run_state.beat(0, 3, rng.choice(("forward", "failed")), 1e9, "a reason"))
        (run / "heartbeat" / "rank_0.json").write_bytes(
            json.dumps(_mutate(rng, beat)).encode() if rng.random() < 0.8 else rng.choice(_LINES)
        )
    runs = load_all([str(run)])
    text = page.render(runs)
    assert not set(text) & set("\x00\x1b\x07\x9b\u202e\ud800\udc9b"), "a character that is obeyed, not shown"
    assert text.count("data:image") <= 1
    json.dumps(wandb_spec.spec(runs), allow_nan=False)
    found = listing.entries(run.parent.parent)
    lines(listing.table(listing.ordered(found, rng.choice(listing.ORDERS), False)), 80, (), "state")
    json.dumps([listing.plain(each) for each in found], allow_nan=False)
    assert details.lines(run)
    try:
        replay.to_tensorboard(runs[0])
    except UserError:
        assert runs[0].count == 0
    if rng.random() < 0.05:  # it takes longer than all the others
        summary.plot_loss(run, "runs/run")
    record_writer.rewind(run, 2)
    assert load_all([str(run)])[0].damaged == 0
