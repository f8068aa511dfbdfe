"""Batches of sequences as reinforcement learning has them, through a recurrent layer in one call."""

from __future__ import annotations

from torch import Tensor

from prnn.nn import LSTM

State = tuple[Tensor, Tensor]


def process_sequence(features: Tensor, lstm_states: State, episode_starts: Tensor, lstm: LSTM) -> tuple[Tensor, State]:
    """All steps of N sequences, T steps each, in one call: what sb3-contrib's policies do one step at a time.

    Takes the place of ``RecurrentActorCriticPolicy._process_sequence``, with its arguments, in its order.

    Args:
        features: [N*T,I], the sequences one after the other. T is 1 while experience is collected.
        lstm_states: h0 and c0, each [L,N,H].
        episode_starts: [N*T], 1 (or True) where an episode begins and the state is zeroed before the step, else 0.
        lstm: with input size I, not ``batch_first``.

    Returns:
        output [N*T,H] in the order of the features, and the final state, h_n and c_n.

    Example::

        starts = torch.tensor([1.0, 0, 0, 0, 0, 1])  # two sequences of three steps
        state = (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
        output, state = process_sequence(torch.randn(6, 4), state, starts, prnn.LSTM(4, 8))
    """
    count = lstm_states[0].shape[1]
    x = features.reshape(count, -1, lstm.input_size).transpose(0, 1)
    resets = episode_starts.reshape(count, -1).transpose(0, 1).bool() if episode_starts.any() else None
    output, state = lstm(x, lstm_states, resets=resets)
    return output.transpose(0, 1).flatten(0, 1), state
