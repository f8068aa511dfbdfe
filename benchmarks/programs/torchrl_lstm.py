"""TorchRL: a training step of an LSTMModule on trajectories that end within the sequences, B 32, T 64."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import MLP, LSTMModule, set_recurrent_mode

from benchmarks.programs.program import Built, training

PACKAGE = "torchrl"
BATCH, STEPS, OBSERVED, HIDDEN = 32, 64, 16, 128


def build() -> Built:
    lstm = LSTMModule(input_size=OBSERVED, hidden_size=HIDDEN, in_key="observation", out_key="features")
    value = TensorDictModule(MLP(HIDDEN, 1, num_cells=[64]), in_keys=["features"], out_keys=["value"])
    model = TensorDictSequential(lstm, value)
    starts = torch.rand(BATCH, STEPS, 1) < 0.02
    starts[:, 0] = True
    state = torch.zeros(BATCH, STEPS, 1, HIDDEN)
    batch = TensorDict(
        {
            "observation": torch.randn(BATCH, STEPS, OBSERVED),
            "is_init": starts,
            "recurrent_state_h": state,
            "recurrent_state_c": state.clone(),
        },
        [BATCH, STEPS],
    )
    returns = torch.randn(BATCH, STEPS, 1)

    def loss() -> torch.Tensor:
        with set_recurrent_mode(True):
            return (model(batch.clone())["value"] - returns).square().mean()

    return training(model, torch.optim.Adam(model.parameters(), 1e-3), loss)
