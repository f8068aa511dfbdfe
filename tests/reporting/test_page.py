"""The page: what is in it, and that nothing in it runs or asks for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from prnn.reporting import tables
from prnn.reporting.page import MOST_SAMPLES, render
from prnn.reporting.page import write as write_page
from prnn.reporting.runs import load, load_all
from tests.reporting.conftest import Write, ranks_at, trained_at

VOID = {"meta", "link", "line", "circle", "polyline", "polygon", "img", "br", "i"}


class Page(HTMLParser):
    """What a browser makes of the text: elements, the data of the charts, and the visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.charts: dict[str, dict[str, Any]] = {}
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            kind = self.elements[-1][1].get("type")
            if kind is None:
                self.scripts.append(data)
            else:
                self.charts.setdefault(self.of("svg")[-1]["aria-label"] or "", json.loads(data))
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def curve(self, title: str, name: str) -> list[list[float | None]]:
        (found,) = (curve["points"] for curve in self.charts[title]["curves"] if curve["name"] == name)
        return found

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*paths: Path) -> Page:
    page = Page(render(load_all([str(path) for path in paths])))
    assert page.open == [], "an element was left open"
    return page


def test_a_trained_run_has_all_its_curves(trained: Path) -> None:
    page, run = page_of(trained), load(trained)
    assert page.curve("Loss by step", "training") == [
        [step, pytest.approx(loss, rel=1e-5)] for step, loss in run.points("train", "loss")
    ]
    assert [step for step, _ in page.curve("Loss by step", "validation")] == [3, 6]
    tokens = [tokens for _, tokens in run.points("train", "tokens")]
    assert [x for x, _ in page.curve("Loss by tokens", "training")] == tokens
    assert page.charts["Loss by training time"]["label"] == "seconds of training"
    for title, name in (
        ("Throughput", "tokens_per_second"), ("Step time", "step_ms"), ("Waiting for data", "data_wait"),
        ("Memory", "memory_mib"), ("Gradient norm", "grad_norm"), ("Learning rate", "lr"),
    ):  # fmt: skip
        values = [y for _, y in page.curve(title, title)]
        assert values == [pytest.approx(y, rel=1e-5) for _, y in run.points("train", name)], title
    assert "Throughput per device" not in page.charts  # there is one device
    sample = run.of_kind("sample")[-1]["text"]
    assert " ".join(sample.split()) in page.text
    for word in (run.summary["versions"]["torch"], "trainer.max_steps=6", "characters per second", str(trained)):
        assert word in page.text, word
    assert "hidden_size: 8" in page.text  # the whole configuration


def test_nothing_is_asked_of_the_network_and_only_the_pages_own_script_may_run(trained: Path) -> None:
    text = render(load_all([str(trained)]))
    page = Page(text)
    assert not re.findall(r"https?://", text) and "url(" not in text and "@import" not in text
    assert [link["href"] for link in page.of("link")] == ["data:,"] and not page.of("iframe")
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert text == render(load_all([str(trained)])), "the same runs give the same bytes"


def test_what_a_run_says_is_text_and_never_markup(write: Write) -> None:
    evil = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)> & ünï 步骤 \x00\x1b[31m \ud800 end"
    path = write(
        "<b>name",
        [
            trained_at(1, **{"<i>field": 1.0}),
            {"kind": "sample", "step": 1, "text": evil},
            {"kind": "val", "step": 1, "loss": 1.0, "figures": {"</script><script>x": 0.5}},
            {"kind": "test", "step": 1, "of_step": 1, "figures": {"<u>": 1.0}},
            {"kind": "pictures", "step": 1, "files": {'"><s>': "../../etc/passwd"}},
            {"kind": "ranks", "step": 1, "ranks": [{"rank": 0, "host": "<h1>", "step_ms": {"p50": 1.0}}]},
        ],
        summary={"device": "<em>", "stopped_by": "<a>"},
        config='"<script>": "<k>"\n',
    )
    page = page_of(path)
    assert len(page.scripts) == 1
    assert not [name for name, _ in page.elements if name in ("img", "s", "u", "em", "a")]
    assert len(page.of("b")) == len(page.charts)  # their titles
    assert len(page.of("h1")) == 1
    assert "<script>alert(1)</script>" in page.text and "ünï 步骤 ␀␛[31m" in page.text
    assert page.charts["</script><script>x"]["curves"][0]["points"] == [[1, 0.5]]
    write_page([load(path)], path / "report.html")
    assert "? end" in (path / "report.html").read_text(encoding="utf-8")  # half a character cannot be written


def test_no_text_of_a_run_steers_the_browser(write: Write) -> None:
    evil = "\x1b\x9b\u202e\u2066\x7f"
    path = write(
        f"name{evil}",
        [
            trained_at(1, **{f"field{evil}": 1.0}),
            {"kind": "sample", "step": 1, "text": evil},
            {"kind": "val", "step": 1, "loss": 1.0, "figures": {evil: 0.5}},
            {"kind": "test", "step": 1, "figures": {evil: evil}},
            {"kind": "pictures", "step": 1, "files": {evil: "gone.png"}},
            {"kind": "ranks", "step": 1, "ranks": [{"rank": 0, "host": evil, "step_ms": {"p50": 1.0}}]},
        ],
        summary={"device": evil, "stopped_by": evil, "unit": evil},
    )
    (path / ".hydra" / "overrides.yaml").write_text(json.dumps([f"name={evil}"]))
    text = render(load_all([str(path), str(write("other", [trained_at(1)]))]))
    assert not set(evil) & set(text)
    assert "name␛\\u009b\\u202e\\u2066␡" in text
    names = [curve["name"] for chart in Page(text).charts.values() for curve in chart["curves"]]
    assert names and not set(evil) & set("".join(names))


def test_damaged_lines_are_counted_in_one_sentence(write: Write) -> None:
    path = write("run", [trained_at(1), 7, {"kind": "val", "step": 1, "figures": 7}, trained_at(2)])
    page = page_of(path)
    assert f"2 damaged lines of {path}/metrics.jsonl are left out." in page.text
    assert len(page.curve("Throughput", "Throughput")) == 2


def test_runs_beside_each_other_differ_in_what_is_shown(write: Write) -> None:
    config = "model: {cell: %s, hidden_size: 8}\nseed: 1\nrun_dir: %s\n"
    a = write(
        "x/run", [trained_at(1), trained_at(2)], summary={"steps": 2, "unit": "words"}, config=config % ("gru", 1)
    )
    b = write("y/run", [trained_at(1)], config=config % ("lstm", 2))
    c = write("z/run", [])
    page = page_of(a, b, c)
    assert page.curve("Loss by step", "x/run · training") == [[1, 3.99], [2, 3.98]]
    assert page.curve("Loss by step", "y/run · training") == [[1, 3.99]]
    colors = {curve["name"]: curve["color"] for curve in page.charts["Throughput"]["curves"]}
    assert colors == {"x/run": 0, "y/run": 1}
    assert page.charts["Loss by tokens"]["label"] == "tokens"  # words and who knows what
    found = tables.differences(load_all(map(str, (a, b, c))))
    assert found == tables.Table(["", "x/run", "y/run"], [["model.cell", "gru", "lstm"]])
    assert "In which these runs differ" in page.text and "empty" in page.text
    assert tables.differences(load_all(map(str, (a, c)))) is None


@pytest.mark.parametrize("count", [3, 40])
def test_the_slowest_process_is_named(write: Write, count: int) -> None:
    slow = count - 2
    page = page_of(write("run", [trained_at(5), ranks_at(5, count, slow), ranks_at(10, count, slow)]))
    assert f"Slowest: rank {slow} on node{slow // 4}, 30 ms a step" in page.text
    title = next(title for title in page.charts if title.startswith("Step time of each process"))
    name = f"rank {slow}" if count == 3 else f"slowest: rank {slow}"
    assert page.curve(title, name) == [[5, 30], [10, 30]]
    assert len(page.charts[title]["curves"]) == 3
    assert len(page.of("polygon")) == 2 * (3 if count == 3 else 1)  # bands, in the large and the small drawing
    row = f"{slow} node{slow // 4} 30 ms 35 ms 50 ms 25 % 12.5 % {100 + slow} MiB"
    assert row in page.text
    assert ("24 faster processes are left out" in page.text) == (count == 40)


def test_fields_of_a_later_version_are_shown_and_null_ones_are_not(write: Write) -> None:
    more = {"tflops": 1.5, "mfu": None, "exposed_comm": 0.25, "loss_scale": 65536.0}
    page = page_of(write("run", [trained_at(1, **more), trained_at(2, **more)]))
    assert page.curve("Arithmetic", "Arithmetic") == [[1, 1.5], [2, 1.5]]
    assert page.curve("Exposed communication", "Exposed communication") == [[1, 0.25], [2, 0.25]]
    assert page.curve("loss_scale", "loss_scale") == [[1, 65536], [2, 65536]]
    assert "Model FLOP utilisation" not in page.charts


def test_pictures_are_inside_the_page_and_missing_ones_are_told(write: Write) -> None:
    files = {"line": "line.png", "gone": "gone.png", "text": "text.png", "outside": "../secret.png"}
    path = write("run", [trained_at(1), {"kind": "pictures", "step": 1, "files": files}])
    Figure(figsize=(1, 1)).savefig(path / "line.png")
    (path.parent / "secret.png").write_bytes((path / "line.png").read_bytes())
    (path / "text.png").write_text("no picture")
    page = page_of(path)
    (picture,) = page.of("img")
    assert picture["alt"] == "line"
    encoded = (picture["src"] or "").removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded) == (path / "line.png").read_bytes()
    assert page.text.count("The file of this picture is not there") == 3


def test_of_many_samples_the_first_the_last_and_some_between_are_shown(write: Write) -> None:
    samples = [{"kind": "sample", "step": step, "text": f"text {step}."} for step in range(100)]
    page = page_of(write("run", samples))
    shown = [int(step) for step in re.findall(r"text (\d+)\.", page.text)]
    assert len(shown) == MOST_SAMPLES and (shown[0], shown[-1]) == (99, 0)
    assert "80 samples between these are left out" in page.text


@pytest.mark.parametrize(
    "records", [[], [{"kind": "other", "step": 1}], [trained_at(1, loss=None)], [trained_at(7)],
                [{"kind": "val", "step": 3, "loss": None, "figures": {}}], [{"kind": "val", "step": 3, "loss": 2.0}],
                [{"kind": "ranks", "step": 1, "ranks": None}], [{"kind": "pictures", "step": 1, "files": None}],
                [{"kind": "test", "step": 1, "figures": None}, {"kind": "sample", "step": 1}]]
)  # fmt: skip
def test_a_run_with_almost_nothing_still_has_a_page(write: Write, records: list[Any]) -> None:
    assert "unknown (no heartbeat)" in page_of(write("run", records, torn='{"kind"')).text or not records


def test_thousands_of_records_make_a_page_of_bearable_size(write: Write) -> None:
    path = write("run", [trained_at(step, loss=9.5 if step == 3333 else 2.0) for step in range(1, 8001)])
    text = render(load_all([str(path)]))
    assert len(text) < 700_000
    assert [3333, 9.5] in Page(text).curve("Loss by step", "training")
