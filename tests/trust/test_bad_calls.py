"""A table of calls with something wrong in them, and the exact sentence that each is answered with, whoever serves.

``bad_calls.txt`` holds a call per line and, indented below it, the exception and its sentence. What can be wrong with the arguments of
an op is in its card (``bad_samples``), what with a file in the tests of its reader, what with a command line in test_cli.py.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from trust.tally import tally

import sparsekern
from sparsekern import data, topology
from sparsekern import nn as layers
from sparsekern.models import create_model, load_dense
from sparsekern.ops import backends

LINES = (Path(__file__).parent / "bad_calls.txt").read_text().splitlines()
CALLS = {call: answer.strip() for call, answer in zip(LINES[::2], LINES[1::2])}


def load(layer: nn.Module, **entries):
    """Run a copy of the layer with a state_dict of which these entries are others."""
    layer = copy.deepcopy(layer)
    layer.load_state_dict({**layer.state_dict(), **entries})
    return layer(torch.ones(1, 8) if hasattr(layer, "fan_in") else torch.ones(1, 4, 5, 5))


def write(layer: nn.Module, table: str, at, value: int):
    """Run a copy of the layer after writing into one of its tables."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(layer, table)[at] = value
    return layer(torch.ones(1, 8) if hasattr(layer, "fan_in") else torch.ones(1, 4, 5, 5))


def packed(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).pack()


def integers(*values: int):
    return torch.tensor(values, dtype=torch.int32)


def names() -> dict:
    """What a call of the table may use."""
    known = {name: getattr(layers, name) for name in layers.__all__} | {name: getattr(topology, name) for name in topology.__all__}
    known |= dict(torch=torch, nn=nn, np=np, data=data, sparsekern=sparsekern, create_model=create_model, load_dense=load_dense)
    known |= dict(load=load, write=write, packed=packed, integers=integers)
    known["layer"] = layers.SparseLinear(8, 4, fan_in=2, seed=0)
    known["masked"] = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    known["grouped"] = layers.GroupedConv2d(4, 8, 3, groups=2)
    return known


def answer(call: str, known: dict) -> str:
    """The exception and its sentence; the layers of the table must be as they were."""
    layers = {name: known[name] for name in ("layer", "masked", "grouped")}
    before = {name: copy.deepcopy(layer.state_dict()) for name, layer in layers.items()}
    try:
        eval(call, known)
    except Exception as error:
        for name, state in before.items():
            now = layers[name].state_dict()
            assert now.keys() == state.keys() and all(map(torch.equal, now.values(), state.values())), f"{call} changed {name}"
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "none"


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_every_bad_call_is_answered_with_its_sentence(provider):
    with backends.use(provider):
        known = names()
        others = {call: given for call, sentence in CALLS.items() if (given := answer(call, known)) != sentence}
    tally("bad calls", len(CALLS))
    assert not others, "\n".join(f"{call}\n  gave {given}\n  not  {CALLS[call]}" for call, given in others.items())


def test_nothing_is_asked_twice():
    assert len(CALLS) == len(LINES) // 2 and len(LINES) % 2 == 0
