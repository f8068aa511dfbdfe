import os
from pathlib import Path

import pytest

from prnn.data.paths import user_files
from prnn.errors import UserError


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``corpus`` in the current one, with files, subfolders, hidden ones and links."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.txt",
        "a/2.txt",
        "a/10.txt",
        "a.txt",
        "é.txt",
        "B.md",
        "a/deep/er/x.txt",
        ".hidden.txt",
        ".git/x.txt",
    ):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return tmp_path / "corpus"


def named(data_path: str) -> list[str]:
    return [str(file.path).removeprefix("corpus/") for file in user_files(data_path)]


ALL = ["B.md", "a.txt", "a/10.txt", "a/2.txt", "a/deep/er/x.txt", "b.txt", "é.txt"]


def test_a_folder_is_all_its_files_in_the_order_of_their_paths_whatever_the_file_system_lists(
    monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    assert named("corpus") == named("corpus/") == named("corpus/**") == named("corpus/**/*") == ALL
    assert [str(file.path) for file in user_files(str(corpus))] == [f"{corpus}/{name}" for name in ALL]
    forward = os.scandir

    class Backward:
        def __init__(self, folder: Path) -> None:
            self.entries = sorted(forward(folder), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backward)
    assert named("corpus") == ALL


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("corpus/*.txt", ["a.txt", "b.txt", "é.txt"]),
        ("corpus/**/*.txt", [name for name in ALL if name != "B.md"]),
        ("corpus/**/**/x.txt", ["a/deep/er/x.txt"]),
        ("corpus/*/*.txt", ["a/10.txt", "a/2.txt"]),
        ("corpus/a/?.txt", ["a/2.txt"]),
        ("c?rpus/[!a].[tm]*", ["B.md", "b.txt", "é.txt"]),
        ("corpus/a*/deep/**", ["a/deep/er/x.txt"]),
        ("corpus/.*", [".hidden.txt"]),
        ("corpus/.*/x.txt", [".git/x.txt"]),
        ("corpus/a/../b.tx[t]", ["a/../b.txt"]),
    ],
)
def test_patterns(pattern: str, expected: list[str], corpus: Path) -> None:
    assert named(pattern) == expected
    assert [str(file.path) for file in user_files(str(corpus.parent / pattern))] == [
        f"{corpus}/{name}" for name in expected
    ]


def test_a_file_of_that_name_comes_before_the_pattern(corpus: Path) -> None:
    for name in ("*.txt", "[ab].txt", "?"):
        (corpus / name).write_text("itself")
        assert named(f"corpus/{name}") == [name]
    (corpus / "[x]").mkdir()
    (corpus / "[x]" / "y.txt").write_text("y")
    assert named("corpus/[x]") == ["[x]/y.txt"]


def test_links_are_followed_but_not_round_in_circles(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.txt").write_text("y")
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    (corpus / "link.txt").symlink_to("a.txt")
    for number in range(3):
        (corpus / "a" / "deep" / f"up{number}").symlink_to(corpus)
        (corpus / f"self{number}").symlink_to(".")
    (corpus / "x").symlink_to("x")
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        named("corpus")
    (corpus / "x").unlink()
    assert named("corpus") == sorted([*ALL, "folder/y.txt"])  # link.txt is a.txt
    assert named("corpus/**/y.txt") == ["folder/y.txt"]


def test_where_there_is_no_file(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / "empty" / ".hidden").mkdir(parents=True)
    nothing = "no file matches this pattern (hidden ones are left out)."
    for data_path, sentence in (
        ("", "data.path is an empty text: give a file, a folder, a pattern, or null."),
        ("corpus/empty", "data.path=corpus/empty is a folder without files (hidden ones are left out)."),
        ("corpus/*.tzt", f"data.path=corpus/*.tzt: {nothing}"),
        ("corpus/a.txt/*", f"data.path=corpus/a.txt/*: {nothing}"),
        ("corpus/empt?", f"data.path=corpus/empt?: {nothing}"),
        ("nowhere/**", f"data.path=nowhere/**: {nothing}"),
        ("corpus/c.txt", "data.path=corpus/c.txt: there is no such file."),
        ("\0*", "data.path=\0*: no file matches this pattern (hidden ones are left out)."),
    ):
        with pytest.raises(UserError) as caught:
            user_files(data_path)
        assert str(caught.value) == sentence
    (corpus / "empty" / "dangling").symlink_to("nothing")
    with pytest.raises(UserError, match="^corpus/empty/dangling is a link to a file that is not there.$"):
        user_files("corpus")


def test_what_cannot_be_read_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def forbidden(folder: Path) -> object:
        if folder.name == "deep":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert named("corpus/*.txt")
    for data_path in ("corpus", "corpus/**/x.txt"):
        with pytest.raises(UserError, match="^corpus/a/deep cannot be read .Permission denied..$"):
            user_files(data_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "2.txt")
    with pytest.raises(UserError, match="^corpus/a/2.txt cannot be read: check its permissions.$"):
        user_files("corpus/a/*.txt")
    (corpus / "a" / "2.txt").unlink()
    os.mkfifo(corpus / "a" / "2.txt")
    with pytest.raises(UserError, match="^corpus/a/2.txt is a pipe, but data are read more than once"):
        user_files("corpus/a/*")


def test_a_file_of_several_names_is_taken_once_by_the_first(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "2024").mkdir(parents=True)
    (own / "2024/b.txt").write_text("x")
    (own / "2024/a.txt").symlink_to("b.txt")
    (own / "latest").symlink_to("2024")
    for pattern in (str(own), str(own / "**/*.txt"), str(own / "*/*.txt")):
        assert [file.name for file in user_files(pattern)] == [str(own / "2024/a.txt")]
