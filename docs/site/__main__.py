"""Build the documentation site: ``python -m docs.site [FOLDER]``, without network; the site is FOLDER/site.

FOLDER is build/ if left out. Faults of pages and links are printed, with exit status 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from docs.site import links, pages, reference, settings
from docs.site.pages import ROOT


def main(folder: Path) -> int:
    """Build the site into ``folder``/site; returns the exit status."""
    try:
        faults = lay(folder) or generate(folder) or links.faults(folder / "site")
    except LookupError as error:  # of what docs/site/reference.py lists
        faults = [str(error.args[0])]
    for fault in faults:
        print(f"docs: {fault}", file=sys.stderr)
    if not faults:
        print(f"the documentation: {folder / 'site' / 'index.html'}")
    return 1 if faults else 0


def lay(folder: Path) -> list[str]:
    """Lay the pages and the configuration that the generator reads; returns what is wrong with them."""
    for old in ("pages", "site"):
        shutil.rmtree(folder / old, ignore_errors=True)
    text = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    head, _, nav = text.partition("\nnav:\n")
    repository = yaml.safe_load(head.partition("\nplugins:")[0]).get("repo_url")
    faults = pages.lay(folder / "pages", reference.terms() | settings.terms(), repository)
    made = {"reference/settings.md": settings.settings(), "reference/commands.md": settings.commands()}
    for page, content in {**dict(reference.pages()), **made}.items():
        pages.write(folder / "pages" / page, content)
    shutil.copytree(ROOT / "docs" / "site" / "assets", folder / "pages" / "assets")
    entries, orphans = pages.navigation(yaml.safe_load(nav), folder / "pages")
    (folder / "mkdocs.yml").write_text(f"{head}\n{yaml.safe_dump({'nav': entries}, sort_keys=False)}", encoding="utf-8")
    return faults + [f"{page} is not in the navigation of docs/mkdocs.yml" for page in orphans]


def generate(folder: Path) -> list[str]:
    """Run Zensical; returns what it printed where it failed."""
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(folder / "mkdocs.yml")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # for docs.site.docstrings
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = re.sub(r"\x1b\[[\d;]*m", "", run.stdout)
    if "because --strict flag is set" in said:  # a traceback follows the faults
        said = said.partition("Traceback")[0]
    return said.splitlines() if run.returncode else []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build")))
