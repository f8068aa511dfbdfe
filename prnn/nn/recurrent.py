"""RNN, GRU and LSTM: drop-in replacements for ``torch.nn``'s modules, with ``lengths`` and ``resets``.

A model written for ``torch.nn`` needs only another import; state_dicts are compatible in both directions.

Letters: T steps, B batch, I input size, H hidden size, P output size (``proj_size`` or H), D directions, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prnn.nn import stepping
from prnn.nn.layers import Lengths, RecurrentLayers

Device = torch.device | str | int | None


class RNN(RecurrentLayers, nn.RNN):
    """Elman network: h_t = tanh(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), or ReLU with ``nonlinearity="relu"``.

    A ``torch.nn.RNN`` with the same parameters and state_dict, faster, and with ``lengths`` and ``resets``.
    ``prnn.explain(module, x)`` says which kernels run it.

    Example::

        rnn = prnn.RNN(64, 128, num_layers=2, nonlinearity="relu", batch_first=True)
        output, h_n = rnn(torch.randn(8, 100, 64), lengths=[100, 90, 70, 70, 50, 20, 9, 1])
    """

    _prnn_has_c, _prnn_plain_call = False, stepping.plain_call

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """As ``torch.nn.RNN``.

        Args:
            input_size: I, the features of a step of the input.
            hidden_size: H, the units of each layer and direction.
            num_layers: layers one above the other.
            nonlinearity: "tanh" or "relu".
            bias: whether the layers have b_ih and b_hh.
            batch_first: input and output are [B,T,*] instead of [T,B,*].
            dropout: the probability with which an output of any layer but the last is zeroed in training mode.
            bidirectional: a second direction in each layer, from the last step to the first.
            proj_size: must be 0; its position is torch.nn's.
            device, dtype: of the parameters.

        Raises:
            TypeError, ValueError: an argument that is not valid, with torch.nn's message.
        """
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype),
        )
        self.nonlinearity = nonlinearity

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Any, Any]:
        """All time steps of all layers.

        Args:
            input: [T,B,I], [B,T,I] with ``batch_first``, [T,I] of one sample, or a PackedSequence.
            hx: h0 [L*D,B,H], [L*D,H] of one sample; zeros if left out.
            lengths: [B] integers, a tensor or a list: the steps of each sample in a padded batch, unsorted. Later steps
                give zero output; h_n is each sample's last state.
            resets: [T,B] booleans, [B,T] with ``batch_first``: where true, an episode begins and the state is zeroed
                before the step.

        Returns:
            output in the layout of the input, [T,B,D*H], and h_n [L*D,B,H].

        Raises:
            ValueError, RuntimeError: sizes or dtypes that do not fit, with torch.nn's message; lengths or resets that
                do not match the input.
        """
        return self._prnn_forward(input, hx, lengths, resets)


class GRU(RecurrentLayers, nn.GRU):
    """Gated recurrent unit, torch's variant: the reset gate acts after the matrix product (Cho et al., 2014, v1).

    A ``torch.nn.GRU`` with the same parameters and state_dict, faster, and with ``lengths`` and ``resets``.
    ``prnn.explain(module, x)`` says which kernels run it.

    Example::

        gru = prnn.GRU(64, 128, bidirectional=True)
        output, h_n = gru(torch.randn(100, 8, 64))  # [100,8,256], [2,8,128]
    """

    _prnn_cell, _prnn_has_c, _prnn_plain_call = "gru", False, stepping.plain_call

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """As ``torch.nn.GRU``; ``RNN.__init__`` lists the arguments."""
        super().__init__(
            "GRU",
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype),
        )

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Any, Any]:
        """All time steps of all layers: input [T,B,I] and h0 [L*D,B,H] to output [T,B,D*H] and h_n [L*D,B,H].

        ``lengths`` [B] are the steps of each sample in a padded batch, ``resets`` [T,B] is true where an episode
        begins. Other layouts, and what is raised: ``RNN.forward``.
        """
        return self._prnn_forward(input, hx, lengths, resets)


class LSTM(RecurrentLayers, nn.LSTM):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), with projection if ``proj_size`` (Sak et al., 2014).

    A ``torch.nn.LSTM`` with the same parameters and state_dict, faster, and with ``lengths`` and ``resets``.
    ``prnn.explain(module, x)`` says which kernels run it.

    Example::

        lstm = prnn.LSTM(64, 128, num_layers=2, batch_first=True)
        output, (h_n, c_n) = lstm(torch.randn(8, 100, 64))  # [8,100,128], ([2,8,128], [2,8,128])
    """

    _prnn_cell, _prnn_has_c, _prnn_plain_call = "lstm", True, stepping.plain_call

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """As ``torch.nn.LSTM``: with ``proj_size`` P > 0, h is [B,P]. ``RNN.__init__`` lists the other arguments."""
        super().__init__(
            "LSTM",
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype),
        )

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Lengths | None = None, resets: Tensor | None = None
    ) -> tuple[Any, Any]:
        """All time steps of all layers: input [T,B,I] and (h0 [L*D,B,P], c0 [L*D,B,H]) to output [T,B,D*P] and
        (h_n, c_n), in the shapes of h0 and c0; P is H without ``proj_size``.

        ``lengths`` [B] are the steps of each sample in a padded batch, ``resets`` [T,B] is true where an episode
        begins. Other layouts, and what is raised: ``RNN.forward``.
        """
        return self._prnn_forward(input, hx, lengths, resets)
