"""What a W&B run is opened with: its ID, its mode, and W&B's complaints in terms of the settings."""

from __future__ import annotations

import configparser
import netrc
import os
import uuid
from pathlib import Path
from urllib.parse import urlparse

from prnn.errors import UserError, one_line

WANDB_ID = "wandb_id.txt"


def wandb_id(run_dir: Path, saved: str | None) -> str:
    """The job's W&B run id: the checkpoint's, else the one saved in the run directory, else a new one, saved there."""
    note = run_dir / WANDB_ID
    if saved is None and note.exists():
        try:
            saved = note.read_text().strip()
        except ValueError:
            raise UserError(f"{note} is damaged: it must hold the ID of the W&B run, or be removed.") from None
    chosen = saved or uuid.uuid4().hex[:12]
    note.write_text(chosen + "\n")
    return chosen


def wandb_mode(setting: str) -> str:
    """Resolve ``auto``: WANDB_MODE if set, else online when logged in, else offline."""
    if setting != "auto":
        return setting
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:  # netloc: `wandb login --host` writes the port too
        logged_in = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(_wandb_url()).netloc) is not None
    except (OSError, ValueError, netrc.NetrcParseError, configparser.Error):  # ValueError: not a URL, or not text
        logged_in = False
    return "online" if logged_in else "offline"


def _wandb_url() -> str:
    """The server's address, of WANDB_BASE_URL or of ``wandb login --host``."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(folder / "settings")
    saved = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL") or saved


# W&B's setting names, and the corresponding settings here.
_WANDB_NAMES = {
    "project": "logger.project",
    "entity": "logger.entity",
    "name": "logger.name",
    "group": "logger.group",
    "tags": "logger.tags",
    "mode": "logger.wandb_mode",
    "id": f"the ID in {WANDB_ID}",
}


def wandb_complaint(error: Exception) -> str:
    """W&B's error message, prefixed with the setting or environment variable it refers to, where that is known."""
    name, reason = "", one_line(error)
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic's
        [first, *_] = details()
        name, reason = str(first["loc"][0]).removeprefix("run_"), str(first["msg"]).removeprefix("Value error, ")
    elif "project name" in reason or "Run ID" in reason:
        name = "project" if "project name" in reason else "id"
    variables = sorted(each for each in os.environ if each.startswith("WANDB_"))
    blamed = [each for each in variables if each in reason or each[6:].lower().removeprefix("run_") == name]
    if name in _WANDB_NAMES and not (name == "mode" and blamed):  # WANDB_MODE takes precedence for the mode
        blamed.insert(0, _WANDB_NAMES[name])
    return f"{' or '.join(blamed)}: {reason}" if blamed else reason
