"""Stable-Baselines3 contrib, RecurrentPPO: 512 steps of four environments (CartPole) and one epoch of updates."""

from __future__ import annotations

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

from benchmarks.programs.program import Built

PACKAGE = "sb3-contrib"


def build() -> Built:
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    learner = RecurrentPPO("MlpLstmPolicy", environments, n_steps=128, batch_size=128, n_epochs=1, seed=0, device="cpu")

    def step() -> Tensor:
        learner.learn(total_timesteps=512)
        return torch.cat([each.flatten() for each in learner.policy.parameters()])

    return Built(step, learner.policy)
