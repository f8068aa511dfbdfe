"""RecurrentPPO with prnn's LSTM and whole sequences learns what sb3-contrib's own policies learn."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import prnn

sb3_contrib = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib: pip install 'prnn[sb3]'")

import gymnasium  # noqa: E402
from gymnasium import spaces  # noqa: E402
from sb3_contrib import RecurrentPPO  # noqa: E402
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy  # noqa: E402
from stable_baselines3.common.envs import FakeImageEnv  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from prnn.errors import UserError  # noqa: E402
from prnn.integrations import sb3  # noqa: E402

BOUND = 1e-5  # of the largest element; the largest difference found was 1.2e-6


class WithoutVelocities(gymnasium.ObservationWrapper):
    """CartPole, whose state is to be remembered; ``named``: as a dictionary of observations."""

    def __init__(self, named=False):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.named, box = named, spaces.Box(-np.inf, np.inf, (1,))
        self.observation_space = spaces.Dict(cart=box, pole=box) if named else spaces.Box(-np.inf, np.inf, (2,))

    def observation(self, observation):
        cart, pole = observation[[0]], observation[[2]]
        return {"cart": cart, "pole": pole} if self.named else np.concatenate([cart, pole])


def pendulum():
    return gymnasium.make("Pendulum-v1", max_episode_steps=25)


def images():
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)
    env.observation_space.seed(0)  # where its images come from
    return env


SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
LINEAR = {"enable_critic_lstm": False}
# Environment, how many, policy, its arguments.
CASES = {
    "cart pole": (lambda: gymnasium.make("CartPole-v1"), 3, "MlpLstmPolicy", {}),
    "one cart pole, two layers": (WithoutVelocities, 1, "MlpLstmPolicy", {"n_lstm_layers": 2}),
    "shared LSTM": (WithoutVelocities, 2, "MlpLstmPolicy", SHARED | {"n_lstm_layers": 2}),
    "critic without LSTM": (pendulum, 2, "MlpLstmPolicy", LINEAR),
    "pendulum": (pendulum, 2, "MlpLstmPolicy", {"share_features_extractor": False}),
    "dictionary": (lambda: WithoutVelocities(named=True), 2, "MultiInputLstmPolicy", {}),
    "images": (images, 1, "CnnLstmPolicy", {}),
}


def make(case, policy=None):
    """A model of the case, with sb3-contrib's policy if none is given."""
    make_env, count, name, options = CASES[case]
    env = DummyVecEnv([make_env] * count)
    options = {"lstm_hidden_size": 16, **options}
    return RecurrentPPO(
        policy or name, env, n_steps=64, batch_size=48, n_epochs=2, seed=5, device="cpu", policy_kwargs=options
    )


def learn(model, updates=3):
    """What each update logs: losses, clip fraction, KL divergence."""
    model.set_random_seed(5)  # of torch, NumPy and the environments, which are reset at first
    logged = []
    for _ in range(updates):
        model.learn(model.n_steps * model.n_envs, log_interval=None, reset_num_timesteps=False)
        assert model.rollout_buffer.episode_starts.reshape(-1)[1:].any(), "no episode begins inside"
        values = model.logger.name_to_value
        logged.append({name: float(value) for name, value in values.items() if name.startswith("train/")})
    return logged


def parameters(model):
    return model.policy.state_dict()


def assert_same(found, expected, least=1e-2):
    """Tensors or numbers by name, within rounding of the largest element, taken for ``least`` if it is smaller."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        right = torch.as_tensor(value)
        difference = (torch.as_tensor(found[name]) - right).abs().max().item()
        assert difference / max(right.abs().max().item(), least) < BOUND, name


def runs_prnn(model):
    layers = [layer for layer in model.policy.modules() if isinstance(layer, torch.nn.LSTM)]
    assert layers
    return all(isinstance(layer, prnn.LSTM) for layer in layers)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_parameters_are_those_of_sb3_contrib(case):
    theirs, ours = make(case), make(case, getattr(sb3, CASES[case][2]))
    assert runs_prnn(ours) and not runs_prnn(theirs)
    assert all(torch.equal(a, b) for a, b in zip(parameters(ours).values(), parameters(theirs).values(), strict=True))
    expected = learn(theirs)
    for found, right in zip(learn(ours), expected, strict=True):
        assert_same(found, right, least=1)  # losses are means of terms of about 1, and may be nearly 0
    assert_same(parameters(ours), parameters(theirs))


def test_episodes_that_start_inside_a_sequence():
    """RecurrentPPO's buffer cuts sequences where episodes start; the policies take them uncut too."""
    theirs = make("cart pole").policy
    ours = sb3.accelerate(make("cart pole")).policy
    N, T = 4, 9
    starts = (torch.rand(N, T) < 0.3).float().flatten()
    states = sb3_contrib.common.recurrent.type_aliases.RNNStates(
        tuple(torch.randn(2, 1, N, 16)), tuple(torch.randn(2, 1, N, 16))
    )
    observations, actions = torch.randn(N * T, 4), torch.randint(2, (N * T,))
    found = []
    for policy in (ours, theirs):
        values, log_prob, entropy = policy.evaluate_actions(observations, actions, states, starts)
        (values.square().mean() + (log_prob + entropy).sum()).backward()
        gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
        found.append({"values": values.detach(), "log_prob": log_prob.detach(), **gradients})
    assert_same(*found)


@pytest.mark.parametrize("case", ["cart pole", "one cart pole, two layers", "pendulum"])
def test_predict_with_states_and_episode_starts(case):
    theirs, ours = make(case), sb3.accelerate(make(case))
    observation, count = theirs.env.reset(), theirs.n_envs
    state = expected_state = None
    starts = np.ones(count, bool)
    for step in range(6):
        action, state = ours.predict(observation, state, starts, deterministic=True)
        expected, expected_state = theirs.predict(observation, expected_state, starts, deterministic=True)
        np.testing.assert_allclose(action, expected, atol=BOUND)
        np.testing.assert_allclose(state, expected_state, atol=BOUND)
        observation, *_ = theirs.env.step(expected)
        starts = np.arange(count) == step % count  # one begins anew
    alone, _ = ours.predict(observation[0], deterministic=True)  # without a batch, a state, or starts
    np.testing.assert_allclose(alone, theirs.predict(observation[0], deterministic=True)[0], atol=BOUND)


def test_sb3_contribs_files_load_and_ours_load_there(tmp_path):
    theirs, ours = make("shared LSTM"), make("shared LSTM", sb3.MlpLstmPolicy)
    learn(theirs, 1)
    theirs.save(tmp_path / "theirs")
    learn(ours, 1)
    ours.save(tmp_path / "ours")

    def load(name, policy_class=None):
        custom = {} if policy_class is None else {"policy_class": policy_class}
        return RecurrentPPO.load(tmp_path / name, env=theirs.env, device="cpu", custom_objects=custom)

    assert type(load("ours").policy) is sb3.MlpLstmPolicy and runs_prnn(load("ours"))
    for name, model in (("theirs", theirs), ("ours", ours)):
        loaded = [load(name, sb3.MlpLstmPolicy), load(name, RecurrentActorCriticPolicy)]
        loaded.append(sb3.accelerate(load(name, RecurrentActorCriticPolicy)))
        assert [runs_prnn(each) for each in loaded] == [True, False, True]
        for each in loaded:
            assert list(parameters(each)) == list(parameters(model))
            assert all(torch.equal(parameters(each)[key], value) for key, value in parameters(model).items())
    first, second = load("theirs"), sb3.accelerate(load("theirs"))
    for model in (first, second):
        learn(model, 1)
    assert_same(parameters(second), parameters(first))  # the optimizer's state came along
    second.save(tmp_path / "accelerated")
    assert type(load("accelerated").policy) is RecurrentActorCriticPolicy


def test_the_documentations_examples_run(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[2] / "docs" / "reinforcement_learning.md"
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "sb3" in block]
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(blocks), names)
    assert runs_prnn(names["model"]) and (tmp_path / "cartpole.zip").exists()


def test_policies_can_be_copied_and_pickled():
    for model in (make("cart pole", sb3.MlpLstmPolicy), sb3.accelerate(make("cart pole"))):
        assert sb3.accelerate(model) is model  # a second time, too
        for twin in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
            assert twin._process_sequence is sb3.process_sequence and isinstance(twin.lstm_actor, prnn.LSTM)


def test_other_models_are_refused():
    plain = sb3_contrib.TRPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(UserError, match="a recurrent policy of sb3-contrib, got ActorCriticPolicy"):
        sb3.accelerate(plain)
    with pytest.raises(UserError, match="got int"):
        sb3.accelerate(3)

    class Mine(RecurrentActorCriticPolicy):
        @staticmethod
        def _process_sequence(features, lstm_states, episode_starts, lstm):
            raise NotImplementedError

    with pytest.raises(UserError, match="and Mine has its own"):
        sb3.accelerate(make("cart pole", Mine))
