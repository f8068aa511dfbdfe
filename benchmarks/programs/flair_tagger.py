"""Flair, sequence labelling: a training step of SequenceTagger with character features, 32 sentences, packed."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from flair.data import Dictionary, Sentence
from flair.embeddings import CharacterEmbeddings, OneHotEmbeddings, StackedEmbeddings
from flair.models import SequenceTagger
from torch import Tensor

from benchmarks.programs.program import Built, training

PACKAGE = "flair"
LETTERS, TAGS = "abcdefghijklmnopqrstuvwxyz", ("DET", "NOUN", "VERB")


def _dictionary(items: Iterable[str]) -> Dictionary:
    dictionary = Dictionary()
    for item in items:
        dictionary.add_item(item)
    return dictionary


def build() -> Built:
    words = ["".join(random.choices(LETTERS, k=random.randint(2, 10))) for _ in range(500)]
    vocabulary, letters, tags = _dictionary(words), _dictionary(LETTERS), _dictionary(TAGS)
    sentences = [Sentence(random.choices(words, k=random.randint(20, 40)), use_tokenizer=False) for _ in range(32)]
    for sentence in sentences:
        for token in sentence:
            token.add_label("pos", random.choice(TAGS))
    features = [OneHotEmbeddings(vocabulary, embedding_length=100), CharacterEmbeddings(letters)]
    embeddings = StackedEmbeddings(features)
    model = SequenceTagger(embeddings, tags, "pos", tag_format="", dropout=0.0, word_dropout=0.0, locked_dropout=0.0)

    def loss() -> Tensor:
        for sentence in sentences:
            sentence.clear_embeddings()
        return model.forward_loss(sentences)[0]

    return training(model, torch.optim.SGD(model.parameters(), 0.1), loss)
