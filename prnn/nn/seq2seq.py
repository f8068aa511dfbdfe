"""Sequence to sequence: an encoder, attention and a decoder.

S: source steps, T: target steps, B: batch, E: embedding size, H: hidden size, M: width of the memory (H, or 2*H for a
bidirectional encoder), A: width of the keys, V: target vocabulary.

Sequences of one batch differ in length. The encoder takes ``lengths``: nothing is sorted or packed, and padding has no
effect. The decoder takes none: padding follows a target's end, where the loss is masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from prnn.nn.build import build

if TYPE_CHECKING:  # as in build.py
    from prnn.config import ModelConfig

ATTENTIONS = ("luong", "dot", "bahdanau", "none")


class Memory(NamedTuple):
    """The encoded form of B sources that the decoder attends to."""

    values: Tensor  # [B,S,M]: the encoder's outputs
    keys: Tensor  # [B,S,A]
    padding: Tensor  # [B,S] bool: true past a source's end

    def rows(self, index: Tensor) -> Memory:
        """The memory of the sources ``index`` [N]."""
        return Memory(*(part.index_select(0, index) for part in self))


class Attention(nn.Module):
    """Attention: softmax weights of each query over the source's steps.

    - ``luong``: q W m (the "general" score), ``dot``: q m, where H = M. Luong, Pham, Manning (2015), arXiv:1508.04025.
    - ``bahdanau``: v tanh(W q + U m). Bahdanau, Cho, Bengio (2015), arXiv:1409.0473, appendix A.1.2.

    The products with m are computed once per source (``keys``), not once per step.
    """

    def __init__(self, kind: str, hidden_size: int, memory_size: int) -> None:
        super().__init__()
        if kind == "dot" and hidden_size != memory_size:
            raise ValueError(
                f"dot attention needs queries and memory of the same width, not {hidden_size}, {memory_size}"
            )
        self.kind = kind
        if kind != "dot":
            self.key = nn.Linear(memory_size, hidden_size, bias=False)
        if kind == "bahdanau":
            self.query = nn.Linear(hidden_size, hidden_size)
            self.energy = nn.Linear(hidden_size, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """[B,S,M] -> [B,S,A]."""
        return values if self.kind == "dot" else self.key(values)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Queries [B,T,H] -> contexts [B,T,M] and weights [B,T,S]."""
        if self.kind == "bahdanau":
            scores = self.energy(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None])).squeeze(-1)
        else:
            scores = query @ memory.keys.transpose(1, 2)
        weights = scores.masked_fill(memory.padding[:, None], -torch.inf).softmax(-1)
        return weights @ memory.values, weights


class Seq2Seq(nn.Module):
    """An encoder and a decoder of ``model.num_layers`` layers each, with or without attention.

    The decoder's initial state is the encoder's final one (of both directions, through a linear layer) or, without
    ``bridge``, zeros: attention is then its only access to the source. Its output h_t and the context c_t give the
    attentional vector tanh(W [c_t, h_t]), and that the logits; without attention h_t does.

    With ``luong`` and ``dot`` the query is h_t and no context is fed back ("input feeding" in the paper): under
    teacher forcing the recurrence runs over the whole target in one call, and attention over all steps at once. With
    ``bahdanau`` the query is h_{t-1} and the context is an input of step t, which requires a Python loop over steps.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        model: ModelConfig,
        attention: str = "luong",
        bidirectional: bool = True,
        bridge: bool = True,
    ) -> None:
        super().__init__()
        if attention == "none" and not bridge:
            raise ValueError("without attention and without a bridge the decoder has no access to the source")
        H, M, E = model.hidden_size, model.hidden_size * (2 if bidirectional else 1), model.embedding_size
        self.feeds_context = attention == "bahdanau"
        self.num_layers, self.cell, self.hidden_size = model.num_layers, model.cell, H
        self.dropout = nn.Dropout(model.dropout)
        self.source_embedding = nn.Embedding(source_size, E)
        self.target_embedding = nn.Embedding(target_size, E)
        self.encoder: nn.Module = build(model, E, bidirectional)
        self.decoder: nn.Module = build(model, E + M if self.feeds_context else E)
        parts = 2 if model.cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(M, H) for _ in range(parts if bridge and bidirectional else 0))
        self.bridge = bridge
        self.attention = None if attention == "none" else Attention(attention, H, M)
        self.combine = None if attention == "none" else nn.Linear(M + H, H, bias=False)
        self.output = nn.Linear(H, target_size)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Memory, Any]:
        """Source tokens [S,B] and their lengths [B] -> the memory and the decoder's initial state."""
        outputs, state = self.encoder(self.dropout(self.source_embedding(source)), lengths=lengths)
        values = outputs.transpose(0, 1)
        padding = torch.arange(len(source), device=source.device) >= lengths[:, None]
        keys = values if self.attention is None else self.attention.keys(values)
        return Memory(values, keys, padding), self._initial_state(state)

    def _initial_state(self, state: Any) -> Any:
        """The encoder's final state [L*D,B,H] -> the decoder's initial state [L,B,H]."""
        parts = state if self.cell == "lstm" else (state,)
        if not self.bridge:
            parts = tuple(part.new_zeros(self.num_layers, part.shape[1], self.hidden_size) for part in parts)
        elif len(self.bridges):
            # Rows of h_n: layer 0 forward, layer 0 backward, layer 1 forward ...
            both = (torch.cat([part[::2], part[1::2]], dim=-1) for part in parts)
            parts = tuple(torch.tanh(bridge(part)) for bridge, part in zip(self.bridges, both, strict=True))
        return tuple(parts) if self.cell == "lstm" else parts[0]

    def decode(self, tokens: Tensor, state: Any, memory: Memory) -> tuple[Tensor, Any, Tensor | None]:
        """Target tokens [T,B] after ``state`` -> logits [T,B,V] of the next tokens, the state, weights [B,T,S]."""
        embedded = self.dropout(self.target_embedding(tokens))
        if self.attention is None:
            hidden, state = self.decoder(embedded, state)
            return self.output(self.dropout(hidden)), state, None
        if self.feeds_context:
            hidden, context, weights, state = self._step_by_step(embedded, state, memory)
        else:
            outputs, state = self.decoder(embedded, state)
            hidden = outputs.transpose(0, 1)
            context, weights = self.attention(hidden, memory)
        assert self.combine is not None
        vector = torch.tanh(self.combine(torch.cat([context, hidden], dim=-1)))
        return self.output(self.dropout(vector)).transpose(0, 1), state, weights

    def _step_by_step(self, embedded: Tensor, state: Any, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Embedded tokens [T,B,E] -> hidden [B,T,H], contexts [B,T,M], weights [B,T,S] and the state."""
        assert self.attention is not None
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in embedded.split(1):
            top = (state[0] if self.cell == "lstm" else state)[-1]  # h_{t-1} of the last layer
            context, weights = self.attention(top[:, None], memory)
            hidden, state = self.decoder(torch.cat([step, context.transpose(0, 1)], dim=-1), state)
            steps.append((hidden.transpose(0, 1), context, weights))
        hidden, context, weights = (torch.cat(parts, dim=1) for parts in zip(*steps, strict=True))
        return hidden, context, weights, state

    def forward(self, source: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Teacher forcing: source [S,B], lengths [B], decoder inputs [T,B] -> logits [T,B,V] of the next tokens."""
        memory, state = self.encode(source, lengths)
        logits, _, _ = self.decode(targets, state, memory)
        return logits
