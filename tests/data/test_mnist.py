import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest

from prnn.data import corpora, mnist
from prnn.data.mnist import DIGITS_TRAIN, FILES, Images, embedded, load, parse_idx, pixel_order
from prnn.errors import UserError

FIRST_OF_SEED_0 = [269, 11, 403, 600, 196, 608, 657, 150]
URL = "http://localhost:9/digits"  # nobody listens there


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (
        (0x800 + array.ndim if magic is None else magic).to_bytes(4, "big") + sizes + array.astype(np.uint8).tobytes()
    )


def write(folder: Path, **changes: bytes) -> None:
    """Four small files in MNIST's format, 6 + 4 images of 4x4 pixels; ``changes``: other contents, not yet packed."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (names, count) in zip(("train", "test"), zip(FILES, (6, 4), strict=True), strict=True):
        pixels = np.arange(count * 16).reshape(count, 4, 4)
        contents = {"images": idx(pixels), "labels": idx(np.arange(count))}
        for (kind, content), name in zip(contents.items(), names, strict=True):
            (folder / name).write_bytes(gzip.compress(changes.get(f"{part}_{kind}", content)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRNN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data" / "mine"


def test_the_embedded_digits_are_those_of_their_description() -> None:
    content = lzma.decompress(Path(mnist.__file__).with_name("digits.xz").read_bytes())
    text = Path(mnist.__file__).with_name("DIGITS.md").read_text()
    assert hashlib.sha256(content).hexdigest() in text and "1,437" in text
    images = embedded()
    assert images.pixels.shape == (1797, 64) and images.side == 8 and images.pixels.max() == images.white == 16
    assert np.bincount(images.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    train, test = load("digits", None)
    assert (len(train), len(test)) == (DIGITS_TRAIN, 360)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), images.labels)
    assert np.array_equal(test.pixels, images.pixels[1437:])


def test_an_embedded_zero_looks_like_one() -> None:
    """Rows and columns are where they belong: a ring, dark inside."""
    image = embedded().pixels[0].reshape(8, 8)
    assert embedded().labels[0] == 0
    assert image[3:5, 3:5].sum() == 0 and (image[3:5].max(1) >= 8).all() and (image[:, 3:5].max(0) >= 8).all()


def test_four_files_are_read(folder) -> None:
    write(folder)
    train, test = load("mine", URL)
    assert train.pixels.shape == (6, 16) and train.pixels.dtype == np.uint8 and train.white == 255
    assert train.pixels.ravel().tolist() == list(range(96)) and train.labels.tolist() == list(range(6))
    assert test.labels.tolist() == [0, 1, 2, 3] and test.labels.dtype == np.int64


def test_the_cache_is_looked_into_after_prnn_data_and_filled_by_a_download(folder, tmp_path, monkeypatch) -> None:
    write(tmp_path / "mirror")
    train, _ = load("mine", f"{(tmp_path / 'mirror').as_uri()}/")
    assert len(train) == 6 and len(list((tmp_path / "cache" / "mine").iterdir())) == 4 and not folder.exists()
    assert len(load("mine", URL)[1]) == 4  # from the cache


def test_a_missing_file_says_where_it_was_looked_for(folder) -> None:
    write(folder)
    (folder / FILES[1][0]).unlink()
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz .*cache.*cannot be downloaded.*data=digits"):
        load("mine", URL)
    with pytest.raises(UserError, match="data.name=mine does not come with prnn"):
        load("mine", None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images": idx(np.zeros((6, 4, 4)), magic=2049)}, "its magic number is 2049, it must be 2051"),
        (
            {"train_labels": idx(np.zeros((6, 4, 4)))},
            "not an IDX file of labels: its magic number is 2051, it must be 2049",
        ),
        ({"test_labels": b"\0\0"}, "its magic number is 0"),
        ({"test_images": idx(np.zeros((4, 4, 4)))[:-1]}, "4x4x4 values, and 63 bytes follow"),
        ({"test_labels": idx(np.zeros(4)) + b"x"}, "4 values, and 5 bytes follow"),
        ({"train_images": b"\0\0\x08\x03\0"}, "is damaged"),
        ({"train_labels": idx(np.zeros(5))}, "holds 6 images, .* 5 labels"),
        ({"train_labels": idx(np.full(6, 10))}, "holds the label 10"),
        ({"train_images": idx(np.zeros((6, 4, 5)))}, "at least one, square"),
        ({"train_images": idx(np.zeros((0, 4, 4))), "train_labels": idx(np.zeros(0))}, "at least one, square"),
        ({"test_images": idx(np.zeros((4, 2, 2)))}, "4 pixels wide for training and 2 for the test"),
    ],
)
def test_files_that_are_not_what_they_should_be(folder, changes, sentence) -> None:
    write(folder, **changes)
    with pytest.raises(UserError, match=sentence):
        load("mine", URL)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"not gzip", lambda b: b[:20] + b"\xff" + b[21:]]
)
def test_a_damaged_archive(folder, damage) -> None:
    write(folder)
    path = folder / FILES[0][0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is damaged or not a gzip file .*: delete it"):
        load("mine", URL)


def test_what_calls_itself_mnist_must_be(folder) -> None:
    write(folder.with_name("mnist"))
    with pytest.raises(UserError, match="is not MNIST's: the sha256 of its unpacked content is"):
        load("mnist", URL)


def test_an_idx_file_of_nothing() -> None:
    with pytest.raises(UserError, match="nothing.gz is not an IDX file of labels"):
        parse_idx(b"", 1, "nothing.gz")


def test_pooling_takes_means_of_squares() -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 16)  # two images of 4x4
    pooled = Images(pixels, np.zeros(2, dtype=np.int64), white=255).pooled(2)
    # [[0 1 2 3] [4 5 6 7] [8 9 10 11] [12 13 14 15]] -> means of its four corners
    assert pooled.pixels[0].tolist() == [2.5, 4.5, 10.5, 12.5] and pooled.pixels[1].tolist() == [18.5, 20.5, 26.5, 28.5]
    assert pooled.side == 2 and pooled.pixels.dtype == np.float32
    bright = Images(np.full((1, 16), 255, dtype=np.uint8), np.zeros(1, dtype=np.int64), white=255)
    assert bright.pooled(4).pixels.tolist() == [[255.0]]  # no sum has wrapped around


def test_sequences_have_a_pixel_a_step_from_0_to_1() -> None:
    images = Images(np.array([[0, 51], [255, 102], [1, 2]], dtype=np.uint8), np.zeros(3, dtype=np.int64), white=255)
    sequences = images.sequences(np.array([1, 0]))
    assert sequences.dtype == np.float32 and sequences.flags.c_contiguous
    np.testing.assert_allclose(sequences, [[1.0, 0.0], [0.4, 0.2]], rtol=1e-6)


def test_an_order_of_pixels_is_known_by_its_seed() -> None:
    assert pixel_order(5, None).tolist() == [0, 1, 2, 3, 4]
    first, second = pixel_order(784, 0), pixel_order(784, 1)
    assert sorted(first) == sorted(second) == list(range(784)) and (first != second).any()
    assert first[:8].tolist() == FIRST_OF_SEED_0, "a model trained with permute_seed=0 would not know its images"
    images = Images(np.array([[10, 20, 30]], dtype=np.uint8), np.zeros(1, dtype=np.int64), white=255)
    assert images.reordered(np.array([2, 0, 1])).pixels.tolist() == [[30, 10, 20]]


def test_mnist_itself(data_dir, monkeypatch, tmp_path) -> None:
    if not (data_dir / "mnist").is_dir():
        pytest.skip("needs mnist/ in PRNN_DATA")
    monkeypatch.setattr(corpora, "_download", None)
    train, test = load("mnist", URL)
    assert (len(train), len(test), train.side, test.side) == (60_000, 10_000, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9] and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.pixels.mean() / 255 == pytest.approx(0.1307, abs=1e-4)  # the mean that torchvision's users subtract
    assert test.pooled(2).pixels.mean() == pytest.approx(test.pixels.mean(), rel=1e-4)
