import hashlib
import os
from pathlib import Path

import pytest

from prnn.data.corpora import embedded, find_text
from prnn.data.encoding import encode
from prnn.data.source import Text
from prnn.errors import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NOWHERE = "http://127.0.0.1:9/input.txt"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for $PRNN_DATA and $PRNN_CACHE."""
    given = os.environ.get("PRNN_DATA")
    monkeypatch.setenv("REAL_PRNN_DATA", given or "")
    monkeypatch.setenv("PRNN_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def put(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def path_of(text: Text) -> Path:
    (file,) = text.files
    return file.path


def test_the_embedded_corpus_is_plays() -> None:
    content = embedded()
    note = (Path(__file__).parents[2] / "prnn" / "data" / "SHAKESPEARE.md").read_text()
    assert hashlib.sha256(content).hexdigest() in note
    text = content.decode("ascii")
    assert f"{len(text):,} characters, {len(set(text))} symbols" in note
    assert "\n\nROMEO:\n" in text and "[Exeunt" in text
    assert text.count("\n\n\n") == 8  # between the nine plays, nowhere else
    assert find_text("shakespeare").content == content


def test_prnn_data_comes_before_the_cache_and_the_cache_before_the_network(places: Path) -> None:
    sha256 = put(places / "cache" / "corpus" / "input.txt", b"same")
    assert path_of(find_text("corpus", url=NOWHERE, sha256=sha256)) == places / "cache" / "corpus" / "input.txt"
    put(places / "given" / "corpus" / "input.txt", b"same")
    assert path_of(find_text("corpus", url=NOWHERE, sha256=sha256)) == places / "given" / "corpus" / "input.txt"


def test_a_download_is_checked_and_kept(places: Path) -> None:
    sha256 = put(places / "server" / "input.txt", b"downloaded")
    url = (places / "server" / "input.txt").as_uri()
    text = find_text("corpus", url=url, sha256=sha256)
    path = places / "cache" / "corpus" / "input.txt"
    assert path_of(text) == path and path.read_bytes() == b"downloaded"
    assert path_of(find_text("corpus", url=NOWHERE + "/input.txt", sha256=sha256)) == path


def test_a_wrong_download_leaves_nothing_behind(places: Path) -> None:
    put(places / "server" / "input.txt", b"downloaded")
    with pytest.raises(UserError, match="not the right one: its sha256 is .*, data.sha256 is 00"):
        find_text("corpus", url=(places / "server" / "input.txt").as_uri(), sha256="00")
    assert list((places / "cache" / "corpus").iterdir()) == []


def test_without_network_the_places_are_named(places: Path) -> None:
    with pytest.raises(UserError) as error:
        find_text("corpus", url=NOWHERE, sha256=SHA256)
    for place in (places / "given" / "corpus" / "input.txt", places / "cache" / "corpus" / "input.txt", NOWHERE):
        assert str(place) in str(error.value)


@pytest.mark.parametrize("url", ["input.txt", "http://a b/input.txt", "nonesuch://host/input.txt"])
def test_what_is_no_address_is_told_like_one_that_does_not_answer(url: str) -> None:
    with pytest.raises(UserError, match=f"cannot be downloaded from {url} .*: put the file in one of the two places"):
        find_text("corpus", url=url)


def test_without_a_home_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PRNN_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(UserError, match="there is no home folder .*: set PRNN_CACHE"):
        find_text("corpus", url=NOWHERE)


def test_without_prnn_data_it_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRNN_DATA")
    with pytest.raises(UserError, match=r"\$PRNN_DATA/corpus/input.txt \(PRNN_DATA is not set\)"):
        find_text("corpus", url=NOWHERE)


@pytest.mark.parametrize("place", ["given", "cache"])
def test_a_damaged_copy_is_refused(places: Path, place: str) -> None:
    put(places / place / "corpus" / "input.txt", b"damaged")
    with pytest.raises(UserError, match=r"input.txt is damaged: its sha256 is"):
        find_text("corpus", url=NOWHERE, sha256=SHA256)


def test_paths_that_are_no_text_file(places: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        find_text("shakespeare", path=str(places / "missing.txt"))
    put(places / "file.txt", b"a text")
    for path in (places / "file.txt" / "x.txt", Path("~no-such-user/x.txt")):
        with pytest.raises(UserError, match=f"^data.path={path}: there is no such file.$"):
            find_text("shakespeare", path=str(path))
    with pytest.raises(UserError, match="data.name=nonesuch is not a corpus that comes with prnn"):
        find_text("nonesuch")


def test_tinyshakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    given = os.environ["REAL_PRNN_DATA"]
    if not given:
        pytest.skip("PRNN_DATA is not set")
    monkeypatch.setenv("PRNN_DATA", given)
    tokens, vocabulary = encode(find_text("tinyshakespeare", url=NOWHERE, sha256=SHA256), "char", 0)
    assert (len(tokens), len(vocabulary)) == (1_115_394, 65)
