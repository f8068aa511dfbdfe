"""The documentation site: it builds, and its links, names and settings are there."""

from __future__ import annotations

from pathlib import Path

import pytest

import prnn
from prnn import config, tasks
from tests.test_config import ROOT

pytest.importorskip("zensical", reason="zensical is not installed: make docs, or pip install 'prnn[docs]'")
pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed: pip install 'prnn[docs]'")

from docs.site import links, pages, settings
from docs.site.__main__ import main
from docs.site.docstrings import markdown

TERMS = {"prnn.RNN": "reference/layers.md#prnn.RNN", "seed": "reference/settings.md#seed"}


@pytest.mark.slow(seconds=15)
def test_the_site_is_built_without_a_fault_and_has_every_public_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(tmp_path)
    assert (status, capsys.readouterr().err) == (0, "")
    assert links.faults(tmp_path / "site") == []
    reference = "".join(path.read_text() for path in (tmp_path / "site" / "reference").glob("*.html"))
    names = [f"prnn.{name}" for name in prnn.__all__] + [f"prnn.nn.{name}" for name in ("StackRNN", "ListRNN", "build")]
    names += [f"prnn.cells.{name}" for name in prnn.cells.__all__] + ["prnn.task.Task.loss", "prnn.ops.layer"]
    assert [name for name in names if f'id="{name}"' not in reference] == []
    assert (tmp_path / "site" / "tiling.svg").is_file() and not (tmp_path / "site" / "own_task").exists()
    assert 'href="reference/layers.html#prnn.RNN"' in (tmp_path / "site" / "torch_nn.html").read_text()


def test_every_setting_is_in_the_reference() -> None:
    text, places = settings.settings(), settings.terms()
    for task in ("char_lm", "translation"):
        for key in config.known_keys(tasks.schemas(task)):
            of_task = key.partition(".")[0] in ("task", "data")
            anchor = f"{task}.{key}" if of_task else key
            assert key == "task.name" or f'id="{anchor}"' in text, key
            assert of_task or places[key] == f"reference/settings.md#{key}"
    row = next(line for line in text.splitlines() if 'id="trainer.accumulate"' in line)
    assert "`1` | gradient accumulation" in row and row.endswith("an integer of at least 1 |")
    assert "`[0.9,0.999]`" in text and "## task=stack_rnn" in text and "`experiment=char_rnn` |" in text


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("docs/cells.md", "[a](kernels.md#b)", "[a](kernels.md#b)"),
        ("docs/cells.md", "[`a`](../benchmarks/NOTES.md)", "[`a`](benchmarks/notes.md)"),
        ("docs/launching.md", "[a](../launchers/README.md)", "[a](launchers.md)"),
        ("CONTRIBUTING.md", "[a](docs/tasks.md)", "[a](tasks.md)"),
        ("benchmarks/NOTES.md", "[a](../docs/tasks.md)", "[a](../tasks.md)"),
        ("docs/kernels.md", "![a](tiling.svg)", "![a](tiling.svg)"),
        ("docs/kernels.md", "[a](../conf/train.yaml)", "a"),  # no page
        ("docs/kernels.md", "[a](own_task)", "a"),
        ("docs/kernels.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
        ("docs/kernels.md", "`[a](tasks.md)`\n```\n[a](own_task)\n```\n", "`[a](tasks.md)`\n```\n[a](own_task)\n```\n"),
        ("docs/kernels.md", "a `prnn.RNN`", "a [`prnn.RNN`](reference/layers.md#prnn.RNN)"),
        ("benchmarks/NOTES.md", "`seed`", "[`seed`](../reference/settings.md#seed)"),
        ("docs/kernels.md", "# `prnn.RNN`\n", "# `prnn.RNN`\n"),
        ("docs/kernels.md", "[`prnn.RNN`](tasks.md)", "[`prnn.RNN`](tasks.md)"),
    ],
)
def test_links_lead_to_the_pages_of_the_site(source: str, text: str, expected: str) -> None:
    found = pages.Links(TERMS, None)
    assert (found.rewritten(text, source), found.faults) == (expected, [])


def test_links_to_files_lead_to_the_repository_where_it_has_an_address() -> None:
    found = pages.Links({}, "https://example.org/prnn")
    assert found.rewritten("[a](own_task)", "docs/tasks.md") == "[a](https://example.org/prnn/tree/main/docs/own_task)"
    assert found.rewritten("[a](../conf/train.yaml)", "docs/tasks.md").endswith("prnn/blob/main/conf/train.yaml)")
    found.rewritten("[a](no.md) [b](../../outside)", "docs/tasks.md")
    assert found.faults == [f"docs/tasks.md links to {name}, which is not there" for name in ("no.md", "../../outside")]


def test_the_navigation_leaves_out_what_is_not_there_and_names_what_it_lacks(tmp_path: Path) -> None:
    for name in ("index.md", "a/x.md", "a/y.md", "b.md"):
        pages.write(tmp_path / name, "")
    wanted = [{"Start": "index.md"}, {"A": ["a/*.md", "a/later.md"]}, {"Later": ["later.md"]}, {"Gone": "gone.md"}]
    assert pages.navigation(wanted, tmp_path) == ([{"Start": "index.md"}, {"A": ["a/x.md", "a/y.md"]}], ["b.md"])


def test_all_pages_of_the_repository_have_a_place() -> None:
    found = pages.sources()
    written = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/tutorial/*.md"), *ROOT.glob("benchmarks/results/*/*.md")]
    assert {path.relative_to(ROOT).as_posix() for path in written} < set(found)
    assert len(set(found.values())) == len(found)


def test_a_docstring_as_markdown() -> None:
    docstring = """First, of [T,B,*] and [B,T,*] <x>.

    Args:
        a: ``a*b``; docs/cells.md.

    ``one``   words
    ``other``  words

    Example::

        x = a * b

        y = x
    """
    assert markdown(docstring) == (
        "First, of [T,B,\\*] and [B,T,\\*] &lt;x>.\n\n    Args:\n"
        "        a: ``a*b``; [docs/cells.md](../cells.md).\n\n    - ``one`` words\n    - ``other`` words\n\n"
        "    Example:\n\n    ```python\n    x = a * b\n\n    y = x\n    ```"
    )


def test_faults_of_a_built_site_are_found(tmp_path: Path) -> None:
    pages.write(tmp_path / "sub" / "b.html", '<h1 id="there">b</h1><a href="../a.html">a</a><a href="#gone">c</a>')
    loaded = '<script src="https://cdn.example.org/x.js"></script><link rel="canonical" href="https://example.org">'
    followed = ["sub/b.html#there", "sub/b.html#nowhere", "sub", "c.html", "https://example.org", "mailto:a@b.c"]
    pages.write(tmp_path / "a.html", loaded + "".join(f'<a href="{each}">x</a>' for each in followed))
    assert links.faults(tmp_path) == [
        "a.html loads https://cdn.example.org/x.js",
        "a.html links to sub/b.html#nowhere, whose anchor is not there",
        "a.html links to sub, which is not there",
        "a.html links to c.html, which is not there",
        "sub/b.html links to #gone, whose anchor is not there",
    ]
