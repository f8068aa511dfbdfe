"""Images of handwritten digits as pixel sequences: MNIST, other data in its format, and a small embedded set.

N: images, P: pixels of an image, S: its side length, so P = S*S.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prnn.data.corpora import find_file
from prnn.errors import UserError

EMBEDDED = "digits"
CLASSES = 10
DIGITS_TRAIN = 1437  # training images, the first of the 1,797 embedded ones; the other 360 are the test set
DIGITS_WHITE = 16  # the largest pixel value

# The four files, as pairs of images and labels, and the sha256 of MNIST's unpacked ones: mirrors differ in compression.
FILES = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Images:
    """``pixels`` [N, P], row by row, from 0 to ``white``, uint8 or float32; ``labels`` [N] int64, from 0 to 9."""

    pixels: np.ndarray
    labels: np.ndarray
    white: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """S"""
        return math.isqrt(self.pixels.shape[1])

    def part(self, rows: slice) -> Images:
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    def pooled(self, size: int) -> Images:
        """Average pooling over ``size`` x ``size`` pixels; ``size`` divides S."""
        if size == 1:
            return self
        side = self.side // size
        squares = self.pixels.reshape(len(self), side, size, side, size)
        return replace(self, pixels=squares.mean((2, 4), dtype=np.float32).reshape(len(self), side * side))

    def reordered(self, order: np.ndarray) -> Images:
        """The pixels permuted: pixel ``order[t]`` at step t."""
        return replace(self, pixels=self.pixels[:, order])

    def sequences(self, rows: np.ndarray | slice) -> np.ndarray:
        """The images ``rows`` as sequences [P, len(rows)] float32, one pixel a step, from 0 to 1.

        Only divided by the value of white, as in Keras' mnist_irnn.py; the IRNN's paper does not specify it.
        """
        return np.ascontiguousarray(self.pixels[rows].T, dtype=np.float32) / np.float32(self.white)


def pixel_order(count: int, seed: int | None) -> np.ndarray:
    """The order [count] of the pixels: row by row, or a permutation drawn from ``seed``, the same for all images.

    It is drawn from the generator's raw bits, which numpy guarantees to be stable across releases: a trained model is
    valid for one order only.
    """
    if seed is None:
        return np.arange(count)
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def load(name: str, url: str | None) -> tuple[Images, Images]:
    """Training and test images of ``digits``, which comes with the package, or of four IDX files (see ``FILES``).

    The files are looked up in $PRNN_DATA/<name>/ and in the cache, else downloaded from the folder ``url`` into the
    cache. Raises ``UserError`` for a missing, damaged or invalid file.
    """
    if name == EMBEDDED:
        images = embedded()
        return images.part(slice(DIGITS_TRAIN)), images.part(slice(DIGITS_TRAIN, None))
    if url is None:
        raise UserError(f"data.name={name} does not come with prnn: take data=digits or data=mnist, or give data.url.")
    train, test = (_load_pair(name, url, *pair) for pair in FILES)
    if train.side != test.side:
        raise UserError(
            f"the images of data.name={name} are {train.side} pixels wide for training and {test.side} for the test: "
            "both must have the same size."
        )
    return train, test


def embedded() -> Images:
    """The 1,797 images of 8x8 pixels in the package; their origin is documented in DIGITS.md."""
    content = lzma.decompress(Path(__file__).with_name("digits.xz").read_bytes())
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 65)  # 64 pixels and the label
    return Images(rows[:, :64], rows[:, 64].astype(np.int64), DIGITS_WHITE)


def _load_pair(name: str, url: str, images_file: str, labels_file: str) -> Images:
    pixels, where = _load_idx(name, url, images_file, dimensions=3)
    labels, labels_where = _load_idx(name, url, labels_file, dimensions=1)
    count, height, width = pixels.shape
    if not count or height != width or not width:
        raise UserError(f"{where} holds {count:,} images of {height}x{width} pixels: at least one, square, is needed.")
    if len(labels) != count:
        raise UserError(
            f"{where} holds {count:,} images, {labels_where} {len(labels):,} labels: the numbers must be equal."
        )
    if labels.max() >= CLASSES:
        raise UserError(f"{labels_where} holds the label {labels.max()}: labels must be from 0 to {CLASSES - 1}.")
    return Images(pixels.reshape(count, -1), labels.astype(np.int64), white=255)


def _load_idx(name: str, url: str, file_name: str, dimensions: int) -> tuple[np.ndarray, Path]:
    """The array of one file, and the file's path."""
    path = find_file(name, f"{url.rstrip('/')}/{file_name}", None, "take data=digits, which comes with prnn").path
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or not a gzip file ({error}): delete it and start again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from error
    array = parse_idx(content, dimensions, str(path))
    expected = SHA256[file_name] if name == "mnist" else None
    if expected is not None and (actual := hashlib.sha256(content).hexdigest()) != expected:
        raise UserError(
            f"{path} is not MNIST's: the sha256 of its unpacked content is {actual}, it must be {expected}; delete it "
            "and start again, or choose another data.name for data of your own."
        )
    return array, path


def parse_idx(content: bytes, dimensions: int, where: str) -> np.ndarray:
    """The uint8 array of an IDX file: a magic number, the sizes of the dimensions, big-endian, and the values.

    The magic number's third byte is the type (8: uint8), its fourth the number of dimensions. Source:
    http://yann.lecun.com/exdb/mnist. Raises ``UserError`` for any other content.
    """
    magic, expected = int.from_bytes(content[:4], "big"), 0x800 + dimensions
    if len(content) < 4 or magic != expected:
        raise UserError(
            f"{where} is not an IDX file of {'images' if dimensions == 3 else 'labels'}: its magic number is {magic}, "
            f"it must be {expected}."
        )
    header = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(sizes):
        raise UserError(
            f"{where} is damaged: its header says {'x'.join(map(str, sizes))} values, and {len(content) - header:,} "
            "bytes follow; delete it and start again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(sizes)
