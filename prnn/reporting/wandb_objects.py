"""Build a W&B workspace or report from the specification: the only module that uses wandb-workspaces.

Building the objects needs no account; saving them with ``push_workspace`` and ``push_report`` does.
"""

from __future__ import annotations

import os
import unicodedata
from typing import Any

from prnn.errors import UserError
from prnn.training.observe.loggers import unusable_package
from prnn.training.observe.wandb_setup import wandb_complaint, wandb_mode

_WIDTH, _HEIGHT, _COLUMNS = 8, 6, 3  # of a panel in a report's grid of 24 columns


def _package() -> tuple[Any, Any]:
    """The two modules of wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("a W&B workspace or report needs a package: pip install wandb-workspaces.") from error
    except Exception as error:  # incompatible with the installed wandb
        raise unusable_package("a W&B workspace or report", "wandb-workspaces", error) from error
    return workspaces, reports


def workspace(spec: dict[str, Any]) -> Any:
    """A ``Workspace`` with the specification's sections, filtered to its runs if any are named."""
    workspaces, reports = _package()
    sections = [
        workspaces.Section(
            name=section["title"],
            panels=[_panel(panel, reports) for panel in section["panels"]],
            is_open=True,
        )
        for section in spec["sections"]
    ]
    return workspaces.Workspace(
        entity=spec["entity"] or "",
        project=spec["project"],
        name=_plain(spec["title"]),
        sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=max(10, len(spec["runs"]))),
        runset_settings=workspaces.RunsetSettings(filters=_filter(spec["runs"])),
    )


def report(spec: dict[str, Any]) -> Any:
    """A ``Report`` with a heading and a grid of panels for each section."""
    _, reports = _package()
    entity, project = spec["entity"] or "", spec["project"]
    blocks = [reports.TableOfContents()]
    for section in spec["sections"]:
        panels = [_panel(panel, reports) for panel in section["panels"]]
        for index, panel in enumerate(panels):
            row, column = divmod(index, _COLUMNS)
            panel.layout = reports.Layout(x=_WIDTH * column, y=_HEIGHT * row, w=_WIDTH, h=_HEIGHT)
        runset = reports.Runset(entity=entity, project=project, filters=_filter(spec["runs"]))
        blocks += [reports.H2(section["title"]), reports.PanelGrid(runsets=[runset], panels=panels)]
    return reports.Report(entity=entity, project=project, title=spec["title"], blocks=blocks, width="fluid")


def _panel(panel: dict[str, Any], reports: Any) -> Any:
    if panel["kind"] == "lines":
        return reports.LinePlot(
            title=panel["title"],
            x=panel["x"],
            y=panel.get("y", []),
            metric_regex=panel.get("pattern"),
            title_y=panel.get("y_title") or None,
            range_y=(0, None) if panel["from_zero"] else (None, None),
        )
    if panel["kind"] == "pictures":
        return reports.MediaBrowser(title=panel["title"], media_keys=panel["keys"], num_columns=1)
    if panel["kind"] == "table":
        return reports.WeavePanelSummaryTable(table_name=panel["name"])
    if panel["kind"] == "text":
        return reports.MarkdownPanel(markdown=panel["markdown"])
    return reports.RunComparer(diff_only=True)


def _filter(ids: list[str]) -> str:
    """W&B's filter expression for these runs; empty, for all runs of the project, if none are named."""
    return f"Metric('ID') in {ids}" if ids else ""


def _plain(title: str) -> str:
    """The title without symbols, which a workspace's name must not contain."""
    return "".join(sign for sign in title if unicodedata.category(sign) not in ("So", "Sk", "Sm", "Sc", "Cs"))


def push_workspace(spec: dict[str, Any]) -> str:
    """Save a workspace as a new view of the project; returns its URL. Raises ``UserError`` without a login."""
    return _saved(workspace, spec)


def push_report(spec: dict[str, Any]) -> str:
    """Save a report in the project; returns its URL. Raises ``UserError`` without a login."""
    return _saved(report, spec)


def _saved(build: Any, spec: dict[str, Any]) -> str:
    _package()
    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or wandb_mode("auto") != "online":
        raise UserError("a workspace or a report needs a W&B login: run wandb login, or set to=spec.")
    import wandb

    try:
        entity = spec["entity"] or wandb.Api().default_entity
        return str(build({**spec, "entity": entity}).save().url)
    except UserError:
        raise
    except Exception as error:  # the package raises its own, requests', GraphQL's and plain Exception
        reason = wandb_complaint(error)
        raise UserError(
            f"W&B has not saved it ({reason.rstrip('.')}): check the login (wandb login), and that project and entity "
            "exist and are yours."
        ) from error
