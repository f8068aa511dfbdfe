"""sb3-contrib's RecurrentPPO on CartPole, with its own policy and with prnn's: environment steps per second.

    python -m benchmarks.sb3 [--rounds 5] [--epochs 10] [--threads 1] [--out benchmarks/results/MACHINE]

Interleaved in one process, each from the same seed:

    sb3-contrib     torch.nn.LSTM, one step at a time in a batch in which an episode begins
    whole, torch    torch.nn.LSTM over whole sequences, with the first state zeroed where an episode begins
    prnn            prnn.integrations.sb3.accelerate: prnn.LSTM over whole sequences, with its resets

A round is an update: ``collect``, n_steps of each environment, and ``train``, ``--epochs`` passes over them in batches
of 128 steps. Rates are environment steps per second, ``total`` of the two phases one after the other; ratios are over
sb3-contrib, round by round. The policies learn meanwhile, so episodes become longer, and batches differ between rounds,
but little between contenders: random numbers are seeded anew each round. First two updates of one pass must give all
contenders the same losses and parameters, or nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from prnn.integrations import sb3
from prnn.integrations.sequences import State

STOCK, WHOLE, OURS = "sb3-contrib", "whole, torch", "prnn"
COLLECT, TRAIN, TOTAL = "collect", "train", "total"
BATCH = 128  # RecurrentPPO's default
TOLERANCE = 1e-4  # of the largest element: rounding grows from batch to batch, after 64 of them to 7e-6 on a Zen 3
LOSSES = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss")


def whole_sequences(features: Tensor, lstm_states: State, episode_starts: Tensor, lstm: nn.LSTM) -> tuple[Any, Any]:
    """For sequences in which episodes begin at the first step only, as RecurrentPPO's are: no resets are needed."""
    count = lstm_states[0].shape[1]
    kept = (1.0 - episode_starts.reshape(count, -1)[:, 0]).unsqueeze(-1)
    state = (kept * lstm_states[0], kept * lstm_states[1])
    output, state = lstm(features.reshape(count, -1, lstm.input_size).transpose(0, 1), state)
    return output.transpose(0, 1).flatten(0, 1), state


class Contender:
    """A model that learns update by update, its two phases apart."""

    def __init__(self, name: str, envs: int, steps: int, hidden: int, epochs: int) -> None:
        self.model = RecurrentPPO(
            "MlpLstmPolicy", make_vec_env("CartPole-v1", envs, seed=0), n_steps=steps, batch_size=BATCH,
            n_epochs=epochs, seed=0, device="cpu", policy_kwargs={"lstm_hidden_size": hidden},
        )  # fmt: skip
        if name == OURS:
            sb3.accelerate(self.model)
        elif name == WHOLE:
            self.model.policy._process_sequence = whole_sequences
        _, self._callback = self.model._setup_learn(10**9)

    def update(self, seed: int) -> tuple[float, float]:
        """Seconds of collecting and of training."""
        set_random_seed(seed)
        model = self.model
        collected = stats.once(
            lambda: model.collect_rollouts(model.env, self._callback, model.rollout_buffer, model.n_steps)
        )
        return collected, stats.once(model.train)

    def learned(self) -> dict[str, Tensor]:
        """The losses of the last update, and the parameters."""
        logged = self.model.logger.name_to_value
        # Losses are means of terms of about 1 and may be nearly 0; the 1 beside them is the least they are compared to.
        losses = {name: torch.tensor([float(logged[f"train/{name}"]), 1.0]) for name in LOSSES}
        return losses | self.model.policy.state_dict()


def check(make: Callable[[str, int], Contender]) -> float:
    """The largest difference of losses and parameters after two updates; exits if it is above rounding error."""
    found = {}
    for name in (STOCK, WHOLE, OURS):
        contender = make(name, 1)
        for seed in range(2):
            contender.update(seed)
        found[name] = contender.learned()
    worst, where = max(stats.disagreement(found[name], found[STOCK]) for name in (WHOLE, OURS))
    if not worst < TOLERANCE:
        sys.exit(f"{where} differs by {worst:.2g} from sb3-contrib's: nothing was timed")
    return worst


def measure(make: Callable[[str, int], Contender], rounds: int, epochs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each phase in each round; the order of the contenders rotates by one each round."""
    contenders = {name: make(name, epochs) for name in (STOCK, WHOLE, OURS)}
    seconds: dict[str, dict[str, list[float]]] = {name: {COLLECT: [], TRAIN: [], TOTAL: []} for name in contenders}
    order = list(contenders)
    for number in range(rounds):
        for name in order:
            collected, trained = contenders[name].update(number)
            for phase, took in ((COLLECT, collected), (TRAIN, trained), (TOTAL, collected + trained)):
                seconds[name][phase].append(took)
        order.append(order.pop(0))
    return seconds


def compare(seconds: dict[str, dict[str, list[float]]], steps: int) -> dict[str, Any]:
    """Rates and ratios of updates of ``steps`` environment steps."""
    rates = {
        name: {phase: stats.spread([steps / took for took in values], 1) for phase, values in phases.items()}
        for name, phases in seconds.items()
    }
    ratios = {
        name: {phase: stats.ratios(seconds[STOCK][phase], values) for phase, values in phases.items()}
        for name, phases in seconds.items()
        if name != STOCK
    }
    return {"steps_per_second": rates, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(5), default=5)
    parser.add_argument("--epochs", type=at_least(1), default=10)  # RecurrentPPO's default
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--out", type=folder, help="folder for sb3.json")
    options = parser.parse_args()
    stats.limit_threads(options.threads)
    cases = []
    for hidden, envs, steps in product((64, 256), (1, 8), (128, 512)):

        def make(name: str, epochs: int, sizes: tuple[int, int, int] = (envs, steps, hidden)) -> Contender:
            return Contender(name, *sizes, epochs)

        sizes = {"hidden": hidden, "envs": envs, "steps": steps, "difference": float(f"{check(make):.2g}")}
        found = compare(measure(make, options.rounds, options.epochs), envs * steps)
        cases.append(sizes | found)
        for name, phases in found["ratio"].items():
            text = ", ".join("{} {median:.2f} ({min:.2f}-{max:.2f})".format(phase, **phases[phase]) for phase in phases)
            print(f"H{hidden} {envs} envs of {steps} steps, {name}: {text}", flush=True)
    if options.out:
        packages = {name: machine.version(name) for name in ("sb3-contrib", "stable-baselines3", "gymnasium")}
        record = {"benchmark": "sb3", "machine": machine.describe() | packages, "rounds": options.rounds}
        stats.write(options.out, "sb3", record | {"epochs": options.epochs, "batch": BATCH, "cases": cases})


if __name__ == "__main__":
    main()
