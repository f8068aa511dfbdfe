"""English-Spanish verses: quality and speed of prnn's translation model against the same model on torch.nn.

    python -m benchmarks.translation [--seeds 1 2 3] [--epochs 20] [--threads 1] [--out benchmarks/results/MACHINE]

Both are the preset ``experiment=verses``: the same class (prnn/nn/seq2seq.py), initial weights, batches, optimizer,
steps and beam search; the peer uses torch.nn's recurrent layers, and a packed sequence in the encoder
(``pack_padded_sequence``) for the lengths. They alternate, an epoch each, in one process. Their losses and gradients on
one batch must first agree, or nothing is timed. Needs $PRNN_DATA/bible-en-es/verses.tsv.gz and sacrebleu.

    --experiment reversal --epochs 2    the same for another preset
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from benchmarks.training.loops import loss_and_gradients
from prnn import config, tasks
from prnn.config import CONF, TrainConfig
from prnn.nn.base import RecurrentBase
from prnn.nn.seq2seq import Seq2Seq
from prnn.task import Batch, Position, Shard
from prnn.tasks.translation import Translation
from prnn.training import optim
from prnn.training.malloc import keep_freed_memory

SHOWN = 10  # translations kept in the record


class Packed(nn.Module):
    """A recurrent module of torch.nn with prnn's interface: ``lengths`` become a packed sequence."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if lengths is None:
            return self.module(x, state)
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        output, state = self.module(packed, state)
        return pad_packed_sequence(output, total_length=len(x))[0], state


def on_torch(model: Seq2Seq) -> Seq2Seq:
    """A copy of the model and its weights, with torch.nn's recurrent modules."""
    peer = copy.deepcopy(model)
    for name in ("encoder", "decoder"):
        ours = getattr(model, name)
        assert isinstance(ours, RecurrentBase)
        options = {"nonlinearity": ours.nonlinearity} if hasattr(ours, "nonlinearity") else {}
        theirs = getattr(nn, type(ours).__name__)(
            ours.input_size, ours.hidden_size, ours.num_layers,
            dropout=ours.dropout, bidirectional=ours.bidirectional, **options,
        )  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        setattr(peer, name, Packed(theirs))
    return peer


@dataclass
class Run:
    """A model in training, and its epoch times."""

    model: Seq2Seq
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)  # of each epoch
    best_loss: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)


def configured(experiment: str, seed: int, epochs: int) -> TrainConfig:
    """The preset with this benchmark's overrides; exits unless it is of task=translation."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = [f"experiment={experiment}", f"seed={seed}", f"trainer.max_epochs={epochs}", "trainer.max_steps=null"]
        try:
            composed = compose("train", overrides=options)
        except HydraException as error:
            sys.exit(f"--experiment {experiment}: {str(error).splitlines()[0]}")
    if composed.task.name != "translation":
        sys.exit(f"--experiment {experiment} must be a preset of task=translation, not of task={composed.task.name}")
    return config.check(OmegaConf.create(OmegaConf.to_container(composed)), tasks.schemas("translation"))


def train_epoch(cfg: TrainConfig, task: Translation, run: Run, epoch: int, total: int) -> None:
    """Train one epoch in a plain loop; records its seconds, without the validation after it."""
    batches = [micro[0] for micro in task.train_batches(Shard(), Position(epoch))]
    torch.manual_seed(cfg.seed * 1000 + epoch)  # the same dropout masks, if the modules draw them alike
    began = time.perf_counter()
    for index, batch in enumerate(batches):
        factor = optim.lr_factor(cfg.optimizer.schedule, epoch * len(batches) + index, epoch, total)
        optim.set_lr(run.optimizer, cfg.optimizer.lr * factor)
        loss = task.loss(run.model, batch, None)[0] / batch.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), cfg.trainer.clip_norm or float("inf"))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    run.seconds.append(time.perf_counter() - began)
    loss = validation_loss(task, run.model)
    if loss < run.best_loss:
        run.best_loss, run.best = loss, copy.deepcopy(run.model.state_dict())


@torch.no_grad()
def validation_loss(task: Translation, model: Seq2Seq) -> float:
    model.eval()
    batches = list(task.eval_batches(Shard()))
    total = sum(float(task.eval_step(model, batch, None)[0]["loss"]) for batch in batches)
    model.train()
    return total / sum(batch.count for batch in batches)


def check(task: Translation, model: Seq2Seq, peer: Seq2Seq, batch: Batch) -> float:
    """The largest relative difference of loss and gradients between the two; exits if above rounding error."""

    def mean_loss(net: nn.Module, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        return task.loss(net, batch, state)[0] / batch.count, None

    results = []
    for net in (model, peer):
        net.eval()  # no dropout
        gradients = loss_and_gradients(net, mean_loss, batch)
        results.append({name.replace(".module.", "."): value for name, value in gradients.items()})
        net.train()
    worst, tensor = stats.disagreement(results[0], results[1])
    if worst > 1e-4:
        sys.exit(f"the two models disagree by {worst:.2g} in {tensor}: nothing was timed")
    return worst


def measure(experiment: str, seed: int, epochs: int) -> tuple[dict[str, Any], float]:
    """Results of both contenders after training with ``seed``, and their initial difference."""
    cfg = configured(experiment, seed, epochs)
    task = tasks.build(cfg)
    assert isinstance(task, Translation)
    torch.manual_seed(seed)
    ours = task.build_model()
    assert isinstance(ours, Seq2Seq)
    models = {"prnn": ours, "torch.nn": on_torch(ours)}
    difference = check(task, *models.values(), next(iter(task.train_batches(Shard(), Position())))[0])
    runs = {name: Run(net, optim.build(cfg.optimizer, list(net.parameters()))) for name, net in models.items()}
    steps = task.steps_per_epoch()
    for epoch in range(epochs):
        for run in runs.values():
            train_epoch(cfg, task, run, epoch, epochs * steps)
    figures: dict[str, Any] = {}
    for name, run in runs.items():
        run.model.load_state_dict(run.best)
        run.model.eval()
        with torch.no_grad():
            figures[name] = {
                key: round(value, 4) for key, value in task.test(run.model, torch.device("cpu")).figures.items()
            }
        rates = [steps * cfg.trainer.batch_size / seconds for seconds in run.seconds]
        figures[name] |= {
            "sentences_per_second": stats.spread(rates, 1),
            "training_seconds": round(sum(run.seconds), 1),
        }
        figures[name]["translations"] = translations(task, run.model)
        print(f"seed {seed}, {name}: " + "  ".join(f"{k} {v}" for k, v in figures[name].items() if k != "translations"))
    return figures, difference


def translations(task: Translation, model: Seq2Seq) -> list[dict[str, str]]:
    """Translations of the first few test pairs."""
    pairs = task._open().parts.test[:SHOWN]
    translations = task.translate(model, torch.device("cpu"), [source for source, _ in pairs])
    return [
        {"source": source, "reference": target, "translation": ours}
        for (source, target), ours in zip(pairs, translations, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="verses")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[1])
    parser.add_argument("--epochs", type=at_least(1), default=20)
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--out", type=folder, help="folder for translation.json")
    arguments = parser.parse_args()

    stats.limit_threads(arguments.threads)
    keep_freed_memory()
    measured = {seed: measure(arguments.experiment, seed, arguments.epochs) for seed in arguments.seeds}
    for pair in next(iter(measured.values()))[0]["prnn"]["translations"]:
        print("", *(f"{key:<12} {text}" for key, text in pair.items()), sep="\n")
    if arguments.out:
        record = {
            "benchmark": "translation",
            "machine": machine.describe(),
            "experiment": arguments.experiment,
            "epochs": arguments.epochs,
            "relative_difference": max(difference for _, difference in measured.values()),
            "seeds": {str(seed): figures for seed, (figures, _) in measured.items()},
        }
        stats.write(arguments.out, "translation", record)


if __name__ == "__main__":
    main()
