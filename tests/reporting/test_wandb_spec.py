"""What W&B is to show, without an account: the plain data, and the package's objects where it is installed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prnn.errors import UserError
from prnn.reporting import wandb_objects
from prnn.reporting.runs import load, load_all
from prnn.reporting.wandb_spec import spec
from prnn.training.observe.loggers import flatten
from tests.reporting.conftest import Write, ranks_at, trained_at

RECORDS: list[Any] = [
    trained_at(1, tflops=1.5),
    {"kind": "val", "step": 1, "loss": 2.0, "figures": {"accuracy": 0.5}},
    {"kind": "sample", "step": 1, "text": "early"},
    {"kind": "sample", "step": 2, "text": "a ```` fence"},
    {"kind": "pictures", "step": 2, "files": {"line": "line.png"}},
    ranks_at(2, 2, 1),
]


@pytest.fixture
def found(write: Write) -> dict[str, Any]:
    path = write("run", RECORDS, config="logger: {project: mine, entity: us}\n")
    (path / "wandb_id.txt").write_text("abc123\n")
    return spec(load_all([str(path), str(write("other", [trained_at(1)]))]))


def panels(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [panel for section in found["sections"] for panel in section["panels"] if panel["kind"] == kind]


def test_the_specification_is_json_and_names_what_is_logged(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert (found["project"], found["entity"], found["runs"]) == ("mine", "us", ["abc123"])
    assert [section["title"] for section in found["sections"]] == [
        "Loss", "Validation", "Speed", "Optimisation", "Memory", "Processes", "Samples", "Pictures", "Settings",
    ]  # fmt: skip
    logged = {key for record in RECORDS for key in flatten(record)} | {"Step"}
    lines = panels(found, "lines")
    assert {panel["x"] for panel in lines} == {"Step", "train/tokens", "train/seconds"}
    for panel in lines:
        if "pattern" in panel:
            assert any(re.search(panel["pattern"], key) for key in logged), panel
        else:
            assert {panel["x"], *panel["y"]} <= logged, panel
    assert [panel["title"] for panel in lines][:3] == ["Loss by step", "Loss by tokens", "Loss by training time"]
    assert panels(found, "pictures") == [{"kind": "pictures", "title": "line", "keys": ["pictures/line"]}]
    assert [panel["name"] for panel in panels(found, "table")] == ["samples", "picture_table"]
    assert "`````text\na ```` fence\n`````" in panels(found, "text")[0]["markdown"]  # the newest, behind a longer fence
    assert len(panels(found, "differences")) == 1


def test_project_and_entity_can_be_given_and_a_long_title_is_cut(write: Write) -> None:
    runs = [load(write(f"run{'x' * 100}{index}", [trained_at(1)])) for index in range(3)]
    found = spec(runs, "p", "e")
    assert (found["project"], found["entity"]) == ("p", "e")
    assert found["title"].startswith("3 runs") and len(found["title"]) <= 128


def test_the_objects_of_the_package_hold_the_same_panels(found: dict[str, Any]) -> None:
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    count = sum(len(section["panels"]) for section in found["sections"])
    made = wandb_objects.workspace({**found, "title": "a 😀 title"})._spec
    assert (made["entity"], made["project"], made["displayName"]) == ("us", "mine", "a  title")
    section = made["spec"]["section"]
    shown = [panel for each in section["panelBankConfig"]["sections"] for panel in each["panels"]]
    assert len(shown) == count
    assert {panel["viewType"] for panel in shown} == {
        "Run History Line Plot", "Media Browser", "Markdown Panel", "Run Comparer", "Weave",
    }  # fmt: skip
    configs = {panel["config"].get("chartTitle"): panel["config"] for panel in shown}
    assert configs["Loss by tokens"]["xAxis"] == "train/tokens"
    assert configs["Loss by step"] == {
        "chartTitle": "Loss by step",
        "xAxis": "_step",
        "metrics": ["train/loss", "val/loss"],
    }
    assert configs["Step time of each process"]["useMetricRegex"] is True
    assert section["runSets"][0]["filters"]["filters"][0]["value"] == ["abc123"]

    report = wandb_objects.report(found)
    grids = [block for block in report.blocks if isinstance(block, reports.PanelGrid)]
    assert sum(len(grid.panels) for grid in grids) == count
    places = [(panel.layout.x, panel.layout.y) for panel in grids[2].panels]  # of Speed, the largest
    assert len(set(places)) == len(places) and max(x for x, _ in places) == 16
    assert all(panel._to_model().view_type for grid in grids for panel in grid.panels)


def package(monkeypatch: pytest.MonkeyPatch, save: Any) -> None:
    """A stand-in for W&B, with somebody logged in."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: SimpleNamespace(default_entity="me")))
    monkeypatch.setattr(wandb_objects, "_package", lambda: (None, None))
    for name in ("workspace", "report"):
        monkeypatch.setattr(wandb_objects, name, lambda given: SimpleNamespace(save=lambda: save(given)))


def test_it_is_saved_for_those_who_are_logged_in(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, lambda given: SimpleNamespace(url=f"https://wandb.test/{given['entity']}"))
    assert wandb_objects.push_workspace(found) == "https://wandb.test/us"
    assert wandb_objects.push_report({**found, "entity": None}) == "https://wandb.test/me"


def test_what_stands_in_its_way_is_told_in_one_sentence(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(given: Any) -> None:
        raise ValueError("project\n  not found")

    with monkeypatch.context() as patch:
        package(patch, refuse)
        with pytest.raises(UserError, match="W&B has not saved it \\(project not found\\)"):
            wandb_objects.push_workspace(found)
        patch.setenv("NETRC", str(tmp_path / "netrc"))
        patch.delenv("WANDB_API_KEY")
        with pytest.raises(UserError, match="needs a W&B login: run wandb login"):
            wandb_objects.push_report(found)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="pip install wandb-workspaces"):
        wandb_objects.push_report(found)
