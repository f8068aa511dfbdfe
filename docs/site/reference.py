"""The pages of the reference that list Python's names: made from what the modules say is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import griffe

from docs.site.docstrings import Markdown
from docs.site.pages import ROOT


class Group(NamedTuple):
    """A page: its title, what stands above, the names, and further options of mkdocstrings."""

    title: str
    text: str
    names: tuple[str, ...]
    options: str = ""


# torch.nn's own, which prnn exports too.
_TORCH = ("prnn.RNNCell", "prnn.GRUCell", "prnn.LSTMCell")


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


def _module(name: str) -> str:
    """The docstring of a module alone."""
    options = "show_root_heading: false", "show_root_toc_entry: false", "members: false"
    return f"::: {name}\n    options:\n" + "".join(f"      {option}\n" for option in options)


def groups() -> dict[str, Group]:
    """Page -> its group, in the order of the navigation."""
    return {
        "layers": Group(
            "Layers",
            "Recurrent layers in the place of torch.nn's ([In the place of torch.nn](../torch_nn.md)), layers of cells "
            "written in Python, and networks with stacks and lists.",
            (*_of("prnn", "RNN GRU LSTM Recurrent"), *_of("prnn.nn", "StackRNN ListRNN"), *_TORCH),
        ),
        "models": Group(
            "Models",
            "What is done with a model: conversion from torch.nn, streams, initial values, and what runs it.",
            (
                *_of("prnn", "convert patch explain Stream"),
                *_of("prnn.nn", "build forget_bias_ identity_ single_bias_"),
            ),
        ),
        "cells": Group(
            "Cells",
            "Cells written in Python, their parts and their check ([Cells in Python](../cells.md)).",
            (*_of("prnn", "cell scalar per_unit spike check"), *_of("prnn.check", "Report Row")),
        ),
        "ready_cells": Group(
            "Ready cells",
            _module("prnn.cells"),
            public("prnn.cells"),
            "show_source: true, show_signature: false, separate_signature: false",
        ),
        "export": Group(
            "Export",
            "A model as a file that runs where prnn is not installed ([Export and streaming](../export.md)).",
            (*_of("prnn", "export"), *_of("prnn.export", "Exported Vocabulary")),
        ),
        "backends": Group(
            "Backends",
            "The choice of kernels, and what a process gives them. `prnn.explain` shows the choice.",
            _of("prnn", "backend cuda_benchmark cuda_reserve_sms keep_freed_memory"),
        ),
        "task": Group(
            "Tasks",
            "The protocol between a task and the training loop ([Your own task](../tasks.md)).",
            (
                *_of("prnn.task", "Task Batch Shard Position TaskResults map_state join_rows"),
                *_of("prnn.config", "above one_of within"),
                "prnn.errors.UserError",
            ),
        ),
        "data": Group(
            "Data",
            "The data that come with prnn, as numpy arrays.",
            (*_of("prnn.data.corpora", "embedded"), *_of("prnn.data.mnist", "embedded Images")),
        ),
        "ops": Group(
            "Operators",
            "The layer operator below the modules, its backends and its cells, for modules of your own. Most programs "
            "need `prnn.RNN` and the other layers alone.",
            tuple(name for name in public("prnn.ops") if name != "prnn.ops.backend" and _is_code(name)),
        ),
        "integrations": Group(
            "Integrations",
            "prnn's layers in other projects' programs ([Reinforcement learning](../reinforcement_learning.md)).",
            _of("prnn.integrations.sb3", "accelerate MlpLstmPolicy CnnLstmPolicy MultiInputLstmPolicy"),
        ),
    }


def terms() -> dict[str, str]:
    """Public name -> its place, page#anchor."""
    return {name: f"reference/{page}.md#{name}" for page, group in groups().items() for name in group.names}


def pages() -> Iterator[tuple[str, str]]:
    """(page, Markdown) of each group, and of the index of the names of ``prnn``. Raises ``LookupError`` for a public
    name that is on no page, or has no docstring.
    """
    for page, group in groups().items():
        parts = [f"# {group.title}\n\n{group.text}\n"]
        parts += [_entry(name, group.options) for name in group.names]
        yield f"reference/{page}.md", "\n".join(parts)
    yield "reference/index.md", _index()


def public(module: str) -> tuple[str, ...]:
    """The names of a module's ``__all__``, dotted."""
    body = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")).body
    values = (each.value for each in body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__")
    return tuple(f"{module}.{name}" for name in ast.literal_eval(next(values)))


def _entry(name: str, options: str) -> str:
    """What mkdocstrings makes the entry of; of one of torch's, the entry."""
    if name in _TORCH:
        reason = "with one step, there are no weights to keep for the next"
        return f"## {name} {{#{name}}}\n\n`torch.nn.{name.rpartition('.')[2]}` itself: {reason}.\n"
    _summary(name)  # for one without a docstring
    path = _path(name)
    heading = f"\n      heading: {name}\n      toc_label: {name}" if path != name else ""
    more = "".join(f"\n      {option}" for option in options.split(", ") if option)
    anchor = f'<span id="{name}"></span>\n\n' if path != name else ""
    text = f"{anchor}::: {path}\n"
    return text + (f"    options:{heading}{more}\n" if heading or more else "")


def _index() -> str:
    """What ``prnn`` exports, in a sentence each."""
    places = terms()
    names = [name for name in public("prnn") if name != "prnn.__version__"]
    if lacking := [name for name in names if name not in places]:
        raise LookupError(f"docs/site/reference.py: no page has {', '.join(lacking)}")
    rows = [
        f"| [`{name}`]({places[name].removeprefix('reference/')}) | {_summary(name)} |"
        for name in sorted(names, key=str.lower)
    ]
    rows.insert(0, '| <span id="prnn.__version__"></span>`prnn.__version__` | the version of prnn, a text |')
    return f"# prnn\n\n{_module('prnn')}\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _summary(name: str) -> str:
    """The first sentence of the docstring."""
    if name in _TORCH:
        return f"`torch.nn.{name.rpartition('.')[2]}`"
    docstring = _found(name).docstring
    if docstring is None:
        raise LookupError(f"{name} is public and has no docstring")
    paragraph = " ".join(docstring.value.split("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


def _is_code(name: str) -> bool:
    """A function or class with a docstring: neither a constant nor a module."""
    return _found(name).kind.value in ("function", "class")


def _found(name: str) -> griffe.Object | griffe.Alias:
    found = _package()[_path(name).removeprefix("prnn.")]
    return found.final_target if isinstance(found, griffe.Alias) else found


def _path(name: str) -> str:
    """As Griffe calls it: a function that has the name of its module is found in that."""
    try:
        last, found = name.rpartition(".")[2], _package()[name.removeprefix("prnn.")]
    except KeyError:
        raise LookupError(f"docs/site/reference.py lists {name}, which is not there") from None
    return f"{name}.{last}" if found.is_module and last in found.members else name


@cache
def _package() -> griffe.Object | griffe.Alias:
    extensions = griffe.load_extensions(Markdown)
    return griffe.load("prnn", search_paths=[ROOT], extensions=extensions, allow_inspection=False)
