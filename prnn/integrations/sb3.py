"""sb3-contrib's RecurrentPPO with prnn's LSTM, which takes whole sequences of experience in one call.

sb3-contrib loops over the steps of a batch in which an episode begins, and of a PPO update's batches nearly all are
such. ``accelerate`` changes a model that exists, also one that was loaded; the policy classes are for new ones. The
parameters, their names and their initial values are sb3-contrib's, and so are the losses, up to rounding.
"""

from __future__ import annotations

from typing import Any, TypeVar

from prnn.errors import UserError
from prnn.integrations.sequences import process_sequence
from prnn.nn import convert

try:
    from sb3_contrib.common.recurrent import policies
except ImportError as error:
    raise UserError(f"prnn.integrations.sb3 needs sb3-contrib: pip install 'prnn[sb3]' ({error})") from error

Model = TypeVar("Model")


def accelerate(model: Model) -> Model:
    """Have a RecurrentPPO model run prnn's LSTM over whole sequences, in place.

    The policy, its parameters and the optimizer remain the same objects. What ``model.save`` writes is sb3-contrib's
    file, which loads where prnn is not installed.

    Args:
        model: a model with a recurrent policy of sb3-contrib's, or of a class derived from one.

    Returns:
        ``model``.

    Raises:
        UserError: ``model`` has no such policy, or one that processes sequences in a way of its own.

    Example::

        model = prnn.integrations.sb3.accelerate(RecurrentPPO.load("cartpole", env))
        model.learn(100_000)
    """
    policy: Any = getattr(model, "policy", None)
    if not isinstance(policy, policies.RecurrentActorCriticPolicy):
        kind = type(model if policy is None else policy).__name__
        raise UserError(f"accelerate takes a model with a recurrent policy of sb3-contrib, got {kind}")
    if policy._process_sequence not in (policies.RecurrentActorCriticPolicy._process_sequence, process_sequence):
        raise UserError(f"accelerate replaces sb3-contrib's _process_sequence, and {type(policy).__name__} has its own")
    convert(policy, verbose=False)
    policy._process_sequence = process_sequence
    return model


class _WholeSequences:
    """What a policy class of sb3-contrib is derived with."""

    _process_sequence = staticmethod(process_sequence)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        convert(self, verbose=False)  # type: ignore[type-var]


class MlpLstmPolicy(_WholeSequences, policies.RecurrentActorCriticPolicy):
    """sb3-contrib's ``MlpLstmPolicy``, with its arguments.

    Example::

        model = RecurrentPPO(prnn.integrations.sb3.MlpLstmPolicy, "CartPole-v1")
        model.learn(100_000)
    """


class CnnLstmPolicy(_WholeSequences, policies.RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``CnnLstmPolicy``, for images."""


class MultiInputLstmPolicy(_WholeSequences, policies.RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``MultiInputLstmPolicy``, for dictionaries of observations."""
