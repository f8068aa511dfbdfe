"""The page as text: what is in it, and that nothing else in it runs or asks for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from prnn.reporting import tables
from prnn.reporting.page import MOST_SAMPLES, _script, render
from prnn.reporting.page import write as write_page
from prnn.reporting.runs import load, load_all
from tests.reporting.conftest import Write, ranks_at, trained_at

UPLOT_ADDRESS = "https://github.com/leeoniya/uPlot"  # in its comment
VOID = {"meta", "link", "img", "br", "i", "input"}


class Page(HTMLParser):
    """What a browser makes of the text: elements, the charts' data, and the visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.data: dict[str, Any] = {}
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
            if self.elements[-1][1].get("id") == "data":
                self.data = json.loads(data)
            else:
                self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        return {chart["title"]: chart for chart in self.data["charts"]}

    def curve(self, title: str, name: str = "", run: int = 0) -> list[list[float | None]]:
        (found,) = (each for each in self.charts[title]["curves"] if (each["name"], each["run"]) == (name, run))
        return [list(point) for point in zip(found["steps"], found["values"], strict=True)]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*paths: Path) -> Page:
    page = Page(render(load_all([str(path) for path in paths])))
    assert page.open == [], "an element was left open"
    return page


def test_a_trained_run_has_all_its_curves(trained: Path) -> None:
    page, run = page_of(trained), load(trained)
    assert page.curve("Loss", "training") == [
        [step, pytest.approx(loss, rel=1e-5)] for step, loss in run.points("train", "loss")
    ]
    assert [step for step, _ in page.curve("Loss", "validation")] == [3, 6]
    (shown,) = page.data["runs"]
    assert (shown["unit"], shown["ended"]) == ("characters", True)
    assert shown["positions"]["tokens"] == [0, *(40 * step for step in range(1, 7))]
    last = run.points("val", "loss")[-1][1]
    assert last is not None and page.curve("Bits per character")[-1][1] == pytest.approx(last / math.log(2), rel=1e-5)
    for title, name in (
        ("Throughput", "tokens_per_second"), ("Step time", "step_ms"), ("Waiting for data", "data_wait"),
        ("Memory", "memory_mib"), ("Gradient norm", "grad_norm"), ("Learning rate", "lr"),
    ):  # fmt: skip
        values = [y for _, y in page.curve(title)]
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
    assert (
        not re.findall(r"https?://", text.replace(UPLOT_ADDRESS, "", 1))
        and "url(" not in text
        and "@import" not in text
    )
    assert [link["href"] for link in page.of("link")] == ["data:,"] and not page.of("iframe")
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in page.scripts
    )
    assert len(page.scripts) == 2 and policy is not None
    assert "default-src 'none'" in policy and f"script-src {hashes}; " in policy and "connect-src" not in policy
    assert text == render(load_all([str(trained)])), "the same runs give the same bytes"


def test_no_name_is_taken_twice_in_the_scope_that_the_scripts_share() -> None:
    declared = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", _script(), re.MULTILINE)
    assert len(declared) > 50 and len(declared) == len(set(declared)), sorted(declared)


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
    assert len(page.scripts) == 2
    assert not [name for name, _ in page.elements if name in ("img", "s", "u", "em", "a")]
    assert not page.of("b")
    assert len(page.of("h1")) == 1
    assert "<script>alert(1)</script>" in page.text and "ünï 步骤 ␀␛[31m" in page.text
    assert page.curve("</script><script>x") == [[1, 0.5]]
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
    assert not set(evil) & set(json.dumps(Page(text).data, ensure_ascii=False))


def test_damaged_lines_are_counted_in_one_sentence(write: Write) -> None:
    path = write("run", [trained_at(1), 7, {"kind": "val", "step": 1, "figures": 7}, trained_at(2)])
    page = page_of(path)
    assert f"2 damaged lines of {path}/metrics.jsonl are left out." in page.text
    assert len(page.curve("Throughput")) == 2


def test_runs_beside_each_other_differ_in_what_is_shown(write: Write) -> None:
    config = "model: {cell: %s, hidden_size: 8}\nseed: 1\nrun_dir: %s\n"
    a = write(
        "x/run", [trained_at(1), trained_at(2)], summary={"steps": 2, "unit": "words"}, config=config % ("gru", 1)
    )
    b = write("y/run", [trained_at(1)], config=config % ("lstm", 2))
    c = write("z/run", [])
    page = page_of(a, b, c)
    assert page.curve("Loss", "training", run=0) == [[1, 3.99], [2, 3.98]]
    assert page.curve("Loss", "training", run=1) == [[1, 3.99]]
    assert [(each["run"], each["color"]) for each in page.charts["Throughput"]["curves"]] == [(0, 0), (1, 1)]
    assert [(each["label"], each["unit"]) for each in page.data["runs"]] == [
        ("x/run", "words"), ("y/run", "tokens"), ("z/run", "tokens"),
    ]  # fmt: skip
    assert page.charts["Throughput"]["unit"] == "tokens/s"  # words and who knows what
    found = tables.differences(load_all(map(str, (a, b, c))))
    assert found is not None and found.head == ["", "x/run", "y/run"]
    assert [[cell.text for cell in row] for row in found.rows] == [["model.cell", "gru", "lstm"]]
    assert "Differences between these runs" in page.text and "empty" in page.text
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
    assert sum("upper" in curve for curve in page.charts[title]["curves"]) == (3 if count == 3 else 1)
    row = f"{slow} node{slow // 4} 30 ms 35 ms 50 ms 25 % 12.5 % {100 + slow} MiB"
    assert row in page.text
    assert ("24 faster processes are left out" in page.text) == (count == 40)


def test_fields_of_a_later_version_are_shown_and_null_ones_are_not(write: Write) -> None:
    more = {"tflops": 1.5, "mfu": None, "exposed_comm": 0.25, "loss_scale": 65536.0}
    page = page_of(write("run", [trained_at(1, **more), trained_at(2, **more)]))
    assert page.curve("Arithmetic") == [[1, 1.5], [2, 1.5]]
    assert page.curve("Exposed communication") == [[1, 0.25], [2, 0.25]]
    assert page.curve("Loss scale") == [[1, 65536], [2, 65536]]
    assert "Model FLOP utilisation" not in page.charts
    assert [
        (chart["unit"], chart["percent"]) for chart in page.data["charts"] if "communication" in chart["title"]
    ] == [("", True)]


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
    assert [3333, 9.5] in Page(text).curve("Loss", "training")


def test_the_more_runs_the_fewer_points_of_each(write: Write) -> None:
    for index in range(10):
        write(f"sweep/{index}", [trained_at(step) for step in range(1, 1000)])
    text = render(load_all([str(write("sweep/10", []).parent)]))
    assert len(text) < 1_000_000 and len(Page(text).curve("Loss", "training", run=3)) < 400


def test_runs_of_different_tasks_have_groups_of_their_own(write: Write) -> None:
    def run(name: str, task: str, figures: dict[str, float]) -> Path:
        records = [trained_at(1), {"kind": "val", "step": 1, "loss": 1.0, "figures": figures}]
        return write(name, records, config=f"task: {{name: {task}}}\ndata: {{level: char}}\n")

    a, b, c = run("a", "char_lm", {}), run("b", "irnn_mnist", {"accuracy": 0.5}), run("c", "their_own", {"f1_score": 1})
    page = page_of(a, b, c)
    groups = {(chart["section"], chart["title"]): {each["run"] for each in chart["curves"]}
              for chart in page.data["charts"]}  # fmt: skip
    assert groups["Language model: loss", "Loss"] == {0} and groups["Image classification: loss", "Loss"] == {1}
    assert groups["Language model: validation", "Bits per character"] == {0}
    assert groups["Image classification: validation", "Accuracy"] == {1}
    assert groups["Their own: validation", "F1 score"] == {2}
    assert groups["Language model: speed", "Throughput"] == {0} and groups["Memory", "Memory"] == {0, 1, 2}
    assert page.charts["Accuracy"]["percent"]
    alone = page_of(b)
    assert [chart["section"] for chart in alone.data["charts"]][:2] == ["Loss", "Validation"]


def test_the_overview_has_numbers_to_sort_by(write: Write) -> None:
    records = [trained_at(12000), {"kind": "val", "step": 12000, "loss": 1.5}]
    a, b = write("a", records, summary={"steps": 12000, "stopped_by": "max_steps"}), write("b", [])
    page = page_of(a, b)
    overview = tables.overviews(load_all([str(a), str(b)]))
    assert overview.head[:4] == ["run", "state", "best validation loss", "at step"]
    assert overview.rows[0][3] == tables.Cell("12,000", 12000) and overview.rows[1][3] == tables.Cell("–")
    assert {"data-value": "12000"} in page.of("td") and "done (step limit)" in page.text
    (table,) = (each for each in page.of("table") if "data-sortable" in each)
    assert table["class"] == "numbers overview"
    assert [each["data-run"] for each in page.of("tr") if "data-run" in each] == ["0", "1"]


def test_the_test_is_told_in_words(write: Write) -> None:
    figures = {"solved_to": 12.0, "solved_to_rounded": 40.0, "accuracy": 0.98765, "my_own": 3}
    page = page_of(write("run", [{"kind": "test", "step": 9, "of_step": 8, "figures": figures}]))
    for row in ("longest size solved 12", "longest size solved, actions rounded 40", "accuracy 98.77 %", "my own 3"):
        assert row in page.text, row
