"""What a probe is: a function of a subject, found by name in ``PROBES``; and how it compares with float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.measure.providers.common import ERROR_MULTIPLE, relative_error


class DoesNotApply(Exception):
    """Raised by a probe that has nothing to ask of this layer."""


@dataclass(frozen=True)
class Subject:
    """A layer to probe.

    ``make(seed=0, bias=True, **more)`` builds it; ``x(batch)`` is an input; ``densify(layer, weight)`` gives the dense
    weight of its dense twin ``dense(x, weight, bias)``; ``flops`` counts one image or row, forward.
    """

    name: str
    make: Callable[..., Any]
    x: Callable[[int], Tensor]
    densify: Callable[[Any, Tensor], Tensor]
    dense: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    flops: Callable[[Any], int]
    wide: Callable[[], tuple[nn.Module, Tensor]] | None = None  # a layer whose indices pass the int16 limits
    ragged: Callable[[], nn.Module] | None = None  # a layer some of whose outputs keep nothing

    def reference(self, layer: Any, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """What the layer should compute, by torch's dense op in ``dtype``; differentiable."""
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return self.dense(x.to(dtype), self.densify(layer, layer.weight).to(dtype), bias)


PROBES: dict[str, Callable[[Subject], None]] = {}


def probe(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    PROBES[function.__name__] = function
    return function


def agree(what: str, value: Tensor, truth: Tensor, dense: Tensor) -> None:
    """``value`` is as close to the float64 ``truth`` as a small multiple of what torch's dense op of that dtype is."""
    eps = torch.finfo(value.dtype).eps
    bound = ERROR_MULTIPLE[value.dtype] * max(relative_error(dense, truth), eps)
    error = relative_error(value, truth)
    assert error <= bound, f"{what} must be within {bound:.1e} of float64; got {error:.1e}"


def same(what: str, value: Tensor, expected: Tensor) -> None:
    assert value.dtype == expected.dtype, f"{what} must be {expected.dtype}; got {value.dtype}"
    assert torch.equal(value, expected), f"{what} must be the same bits; differs by {relative_error(value, expected):.1e}"


def compare(subject: Subject, layer: Any, x: Tensor, grad_out: Tensor | None = None) -> None:
    """Output and the gradients of x, weight and bias against float64."""
    parameters = [layer.weight] + ([] if layer.bias is None else [layer.bias])
    leaf = x.detach().requires_grad_()  # keeps the strides
    results = []
    for run in (layer, lambda t: subject.reference(layer, t), lambda t: subject.reference(layer, t, x.dtype)):
        out = run(leaf)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) if grad_out is None else grad_out
        results.append([out.detach(), *torch.autograd.grad(out, [leaf, *parameters], grad.to(out.dtype))])
    assert results[0][0].dtype == x.dtype, f"out must be {x.dtype} as x is; got {results[0][0].dtype}"
    for what, ours, truth, dense in zip(("out", "grad_x", "grad_weight", "grad_bias"), *results, strict=False):
        assert ours.shape == truth.shape, f"{what} must be {list(truth.shape)}; got {list(ours.shape)}"
        agree(what, ours, truth.double(), dense)


def run_one(function: Callable[[Subject], None], subject: Subject) -> str:
    """Run one probe: ``"ok"``, ``"-"`` where it does not apply, else ``"FAIL: <first line of the message>"``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(subject)
    except DoesNotApply:
        return "-"
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"FAIL: {lines[0][:200] if lines else type(error).__name__}"
    return "ok"
