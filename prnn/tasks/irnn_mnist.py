"""Sequential image classification: an image is read pixel by pixel and classified after the last one.

Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units" (2015),
arXiv:1504.00941, section 4.2: 784 steps between the first pixel and the answer.

T: time steps, one for each pixel; B: batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prnn.config import COUNT, Ranges, one_of, within
from prnn.data.mnist import CLASSES, Images, load, pixel_order
from prnn.errors import UserError
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.tasks.last_state import LastState
from prnn.tasks.losses import summed_cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVAL_PIXELS = 1 << 18  # of one validation batch: its hidden states are H times as many floats (100 MiB for H = 100)
SHOWN = 24  # images in the picture of predictions
SAMPLED = 8  # images in a sample
READOUTS = ("last", "sum")


@dataclass
class Config:
    """The section ``task``."""

    name: str = "irnn_mnist"
    readout: str = "last"  # what is classified: the output of the last step, or the sum of all (the counts of spikes)

    RANGES: ClassVar[Ranges] = {"readout": one_of(*READOUTS)}


@dataclass
class DataConfig:
    """The section ``data``."""

    name: str = "digits"  # digits (8x8 pixels, comes with prnn), mnist (28x28), or four IDX files of yours
    url: str | None = None  # folder the files are downloaded from, if neither PRNN_DATA nor the cache has them
    pool: int = 1  # squares of pool x pool pixels become one, their mean: mnist is 28x28, 14x14 with 2, 7x7 with 4
    permute_seed: int | None = None  # pixels in an order drawn from this, the same for all images; null: row by row
    validation: int = 0  # training images held out, the last ones, to validate on; 0: validate on the test images

    RANGES: ClassVar[Ranges] = {
        "name": (
            lambda name: name.strip() != "" and "/" not in name,
            "digits, mnist or the name of a folder in PRNN_DATA",
        ),
        "pool": within(1, COUNT),
        "permute_seed": within(0, 2**32 - 1),
        "validation": within(0, COUNT),
    }


@dataclass(frozen=True)
class Split:
    """The images [N, T], with the pixels in reading order; ``order`` [T] is the pixel at each step."""

    train: Images
    validation: Images
    test: Images
    order: np.ndarray


class IrnnMnist(Task):
    """Validates on the test images, as the paper and Keras do, unless ``data.validation`` is set.

    Without it the best model is selected on the test images, on which ``test`` then evaluates it.
    """

    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    unit = "images"

    def __init__(self, cfg: Any, state: dict[str, Any] | None) -> None:
        self.cfg = cfg
        if state is None:
            _ = self._split  # reports errors in the data at once
        elif state != self.state_dict():
            trained, requested = (
                ", ".join(f"data.{k}={v}" for k, v in settings.items()) for settings in (state, self.state_dict())
            )
            raise UserError(
                f"the checkpoint was trained with {trained}, not with {requested}: restore these settings, or begin a "
                "new run."
            )

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> IrnnMnist:
        return cls(cfg, state)

    def state_dict(self) -> dict[str, Any]:
        data = self.cfg.data
        return {"name": data.name, "pool": data.pool, "permute_seed": data.permute_seed}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for images in (self._split.train, self._split.validation, self._split.test):
            digest.update(images.pixels.tobytes() + images.labels.tobytes())
        return digest.hexdigest()

    def build_model(self) -> nn.Module:
        return LastState(1, CLASSES, self.cfg.model, counts=self.cfg.task.readout == "sum")

    def example(self) -> Tensor:
        return torch.rand(16, 2, 1, generator=torch.Generator().manual_seed(0))

    def steps_per_epoch(self) -> int:
        return len(self._split.train) // self.cfg.trainer.batch_size

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        """All images, shuffled by (seed, epoch), in full batches; the remainder is dropped in that epoch."""
        train, size = self._split.train, self.cfg.trainer.batch_size
        order = np.random.default_rng([self.cfg.seed, position.epoch]).permutation(len(train))
        for index in range(position.index, self.steps_per_epoch()):
            rows = order[index * size : (index + 1) * size]
            yield shard.batches(size, partial(_batch_of, train, rows))

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        return summed_cross_entropy(model(batch.tensors["pixels"]), batch.tensors["labels"]), None

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        images = self._split.validation
        yield from _pieces(images, np.array(shard.part(len(images))))

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        logits, labels = model(batch.tensors["pixels"]), batch.tensors["labels"]
        return {"loss": summed_cross_entropy(logits, labels), "accuracy": (logits.argmax(-1) == labels).sum()}, None

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        images = self._split.test.part(slice(SAMPLED))
        probabilities, guesses = _top_class(_probabilities(model, images, device))
        lines = [
            f"a {label}: {guess} with {probability:.0%}{'' if guess == label else '  (wrong)'}"
            for label, guess, probability in zip(images.labels, guesses, probabilities, strict=True)
        ]
        return "\n".join(["the first test images and their predicted classes", *lines])

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        """Cross entropy in nats and accuracy on the test images; the confusion matrix, and some predictions."""
        split, labels = self._split, self._split.test.labels
        probabilities = _probabilities(model, split.test, device)
        likelihoods = probabilities[np.arange(len(labels)), labels]
        loss = -np.log(np.maximum(likelihoods, np.finfo(likelihoods.dtype).tiny)).mean()
        return TaskResults(
            {"loss": float(loss), "accuracy": float((probabilities.argmax(-1) == labels).mean())},
            {
                "confusion": partial(_confusion, labels, probabilities),
                "predictions": partial(_predictions, split, probabilities),
            },
        )

    @cached_property
    def _split(self) -> Split:
        return _read(self.cfg)


def _read(cfg: Any) -> Split:
    """Find, pool, reorder and split the images."""
    data, batch_size = cfg.data, cfg.trainer.batch_size
    train, test = load(data.name, data.url)
    if train.side % data.pool:
        raise UserError(
            f"data.pool={data.pool} must divide the images' side: those of data.name={data.name} are "
            f"{train.side}x{train.side} pixels."
        )
    train, test = train.pooled(data.pool), test.pooled(data.pool)
    order = pixel_order(train.pixels.shape[1], data.permute_seed)
    if data.permute_seed is not None:
        train, test = train.reordered(order), test.reordered(order)
    kept = len(train) - data.validation
    if kept < batch_size:
        raise UserError(
            f"trainer.batch_size={batch_size} must not exceed the images to train on: data.name={data.name} has "
            f"{len(train):,}, and data.validation={data.validation} of them are held out."
        )
    held_out = train.part(slice(kept, None)) if data.validation else test
    return Split(train.part(slice(kept)), held_out, test, order)


def _batch(images: Images, rows: np.ndarray) -> Batch:
    pixels = torch.from_numpy(images.sequences(rows))[..., None]  # [T, B, 1]
    return Batch({"pixels": pixels, "labels": torch.from_numpy(images.labels[rows])}, count=len(rows), tokens=len(rows))


def _batch_of(images: Images, rows: np.ndarray, which: slice) -> Batch:
    return _batch(images, rows[which])


def _pieces(images: Images, rows: np.ndarray) -> Iterator[Batch]:
    size = max(1, EVAL_PIXELS // images.pixels.shape[1])
    for start in range(0, len(rows), size):
        yield _batch(images, rows[start : start + size])


def _probabilities(model: nn.Module, images: Images, device: torch.device) -> np.ndarray:
    """The class probabilities of each image, [N, classes]."""
    logits = [model(batch.tensors["pixels"].to(device)) for batch in _pieces(images, np.arange(len(images)))]
    return torch.cat(logits).double().softmax(-1).cpu().numpy()


def _top_class(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each image's most probable class, and the class."""
    return probabilities.max(-1), probabilities.argmax(-1)


def _confusion(labels: np.ndarray, probabilities: np.ndarray) -> Figure:
    """The confusion matrix."""
    from matplotlib.figure import Figure

    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(-1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(
                j,
                i,
                f"{count:,}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    axes.set_xlabel("predicted")
    axes.set_ylabel("digit")
    axes.set_title(
        f"{np.trace(counts):,} of {counts.sum():,} test images are correct ({np.trace(counts) / counts.sum():.2%})"
    )
    return figure


def _predictions(split: Split, probabilities: np.ndarray) -> Figure:
    """Some test images: the most confident errors, followed by the first correct ones."""
    from matplotlib.figure import Figure

    test = split.test
    confidence, guesses = _top_class(probabilities)
    wrong = np.flatnonzero(guesses != test.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: SHOWN // 2]
    right = np.flatnonzero(guesses == test.labels)[: SHOWN - len(wrong)]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    for axes in (grid := figure.subplots(3, SHOWN // 3)).flat:
        axes.axis("off")
    for axes, row in zip(grid.flat, [*wrong, *right], strict=False):
        image = np.empty(test.pixels.shape[1])
        image[split.order] = test.pixels[row]
        axes.imshow(image.reshape(test.side, test.side), cmap="gray_r", vmin=0, vmax=test.white)
        mistaken = guesses[row] != test.labels[row]
        text = f"{guesses[row]}, {confidence[row]:.0%}" + (f"\nis a {test.labels[row]}" if mistaken else "\ncorrect")
        axes.set_title(text, fontsize=9, color="firebrick" if mistaken else "black")
    figure.suptitle(
        "predictions with their probability: the most confident errors, followed by the first correct images",
        fontsize=10,
    )
    return figure


TASK = IrnnMnist
