"""The repository's Markdown as the pages of the site: where each goes, its links, and the navigation."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What is made a page, and where: \1 is the part in parentheses of the path in the repository.
_PAGES = {
    r"docs/((?:tutorial/)?\w+\.md)": r"\1",
    r"launchers/README\.md": "launchers.md",
    r"benchmarks/NOTES\.md": "benchmarks/notes.md",
    r"(benchmarks/results/[\w-]+/\w+\.md)": r"\1",
    r"CHANGELOG\.md": "changelog.md",
    r"CONTRIBUTING\.md": "contributing.md",
}
_PICTURES = (".svg", ".png")
# Fenced code, which is left as it is; code in backquotes; or a link: its "!", text and target.
_PART = re.compile(
    r"(?s:^ *```.*?^ *```)|(?P<code>`[^`]+`)|(?P<bang>!?)\[(?P<words>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE,
)


def lay(folder: Path, terms: Mapping[str, str], repository: str | None) -> list[str]:
    """Write all pages and their pictures into ``folder``; returns what is wrong with their links."""
    links = Links(terms, repository)
    for source, page in sources().items():
        write(folder / page, _titled(links.rewritten((ROOT / source).read_text(encoding="utf-8"), source), page))
    for picture in links.pictures:
        (folder / _of_picture(picture)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / picture, folder / _of_picture(picture))
    return links.faults


def write(path: Path, text: str) -> None:
    """Write a page, and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def sources() -> dict[str, str]:
    """File in the repository -> page of the site."""
    files = [path for top in ("docs", "launchers", "benchmarks") for path in (ROOT / top).rglob("*.md")]
    found: dict[str, str] = {}
    for file in sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *files]):
        for pattern, page in _PAGES.items():
            if match := re.fullmatch(pattern, file):
                found[file] = match.expand(page)
    return found


class Links:
    """The links of pages, as the site has them.

    A link to a page leads to its place in the site, one to another file to ``repository``, its address on the web;
    where that is not known, the text stands alone. Code that is one of ``terms`` becomes a link to its page#anchor.
    """

    def __init__(self, terms: Mapping[str, str], repository: str | None) -> None:
        self.faults: list[str] = []
        self.pictures: list[str] = []  # which the pages show, as files of the repository
        self._terms, self._repository, self._places = terms, repository, sources()

    def rewritten(self, text: str, source: str) -> str:
        """The Markdown of the file ``source`` of the repository."""

        def part(match: re.Match[str]) -> str:
            if match["target"]:
                return self._link(match, source)
            heading = text[text.rfind("\n", 0, match.start()) + 1 :].startswith("#")
            place = self._terms.get((match["code"] or "").strip("`"))
            return match[0] if place is None or heading else f"[{match[0]}]({_relative(place, self._places[source])})"

        return _PART.sub(part, text)

    def _link(self, match: re.Match[str], source: str) -> str:
        words, target = match["words"], match["target"]
        if re.match(r"\w+:|#", target):
            return match[0]
        target, hash_, anchor = target.partition("#")
        file, page = os.path.normpath(f"{Path(source).parent}/{target}"), self._places[source]
        if file.startswith("..") or not (ROOT / file).exists():
            self.faults.append(f"{source} links to {target}, which is not there")
        elif Path(file).suffix in _PICTURES:
            self.pictures.append(file)
            return f"{match['bang']}[{words}]({_relative(_of_picture(file), page)})"
        elif file in self._places:
            return f"[{words}]({_relative(self._places[file], page)}{hash_}{anchor})"
        elif self._repository:
            return f"[{words}]({self._repository}/{'tree' if (ROOT / file).is_dir() else 'blob'}/main/{file})"
        return words


def navigation(entries: list[Any], folder: Path) -> tuple[list[Any], list[str]]:
    """The navigation without pages that are not in ``folder``, and the pages in it that the navigation lacks.

    An entry with a * stands for all pages that it matches, in the order of their names.
    """
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    named: set[str] = set()

    def resolved(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            found = (
                [each for part in inside for each in resolved(part)] if isinstance(inside, list) else resolved(inside)
            )
            return [{title: found if isinstance(inside, list) else found[0]}] if found else []
        pages = [page for page in there if fnmatch(page, entry)]
        named.update(pages)
        return pages

    return [each for entry in entries for each in resolved(entry)], [page for page in there if page not in named]


def _of_picture(file: str) -> str:
    return file.removeprefix("docs/")


def _relative(place: str, page: str) -> str:
    return os.path.relpath(place, Path(page).parent)


def _titled(text: str, page: str) -> str:
    """With a title: what benchmarks write begins without one, and is called by its machine and subject."""
    if re.search(r"^# ", text, re.MULTILINE):
        return text
    return f"# {Path(page).parent.name}: {Path(page).stem}\n\n{text}"
