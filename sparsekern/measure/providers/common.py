"""What every builder of providers shares: the provider, the setup of a case, the gate before timing, the training step.

A *provider* is a named way to compute a case. A *setup* holds all providers of one case on identical inputs, and the
float64 result that each must reach before it is timed: a fast wrong kernel has no speed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

# How much further from float64 than torch's dense op of the same dtype a provider may be. Sums of the same numbers in
# another order differ by a few times; 16-bit results are summed in float32 and rounded once, so they differ less.
ERROR_MULTIPLE = {torch.float64: 16, torch.float32: 16, torch.float16: 4, torch.bfloat16: 4}


@dataclass(frozen=True)
class Provider:
    """A named way to compute a case; ``call`` is None where it cannot run, and ``reason`` says why."""

    name: str
    call: Callable[[], Any] | None
    outputs: Callable[[Any], dict[str, Tensor]] = lambda result: {"out": result}
    reason: str = ""
    ours: bool = False
    packed: bool = False  # works on frozen weights, rearranged beforehand
    layout: str = ""  # of the input it takes; rivals in another layout than the case's are printed, not gated
    served_by: str = "torch"
    dtype: torch.dtype | None = None  # where it is not the case's: printed, not gated, and held to that dtype's error
    outside: bool = False  # of another package: printed, not gated, and not available where it is wrong
    memory: dict[str, int] = field(default_factory=dict)  # bytes held between calls, by part: weight, index, bias, plan, pack


@dataclass
class Setup:
    """Everything needed to time one case: providers, the truth, and the sizes as drawn."""

    case: Any
    mode: str
    reference: dict[str, Tensor]  # float64: "out", or "grad_x", "grad_weight" (dense, masked), "grad_bias"
    baseline: str  # the provider whose error sets the bound
    density: float
    flops: int
    dense_flops: int
    bytes_moved: int
    dtype: torch.dtype
    layout: str
    providers: list[Provider] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, build: Callable[[], Callable[[], Any]], **about: Any) -> None:
        """Add a provider; if building it or its first call fails, it is kept as *not available* with the reason.

        A call may know more than its builder: its attributes ``served_by`` and ``memory`` replace those given here.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # beta notices of sparse layouts
                call = build()
                call()
        except Exception as error:  # whatever stops a rival is its reason, shown in the table
            if about.get("ours"):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            self.missing(name, reason, **about)
        else:
            own = {name: getattr(call, name) for name in ("served_by", "memory") if hasattr(call, name)}
            self.providers.append(Provider(name, call, **about | own))

    def missing(self, name: str, reason: str, **about: Any) -> None:
        """A provider that cannot run, and why."""
        self.providers.append(Provider(name, None, reason=reason, **about | {"memory": {}}))

    @property
    def available(self) -> dict[str, Provider]:
        return {p.name: p for p in self.providers if p.call is not None}

    def gated(self, ours: Provider) -> list[str]:
        """The rivals that ``ours`` must not lose to: torch's, of the same dtype and layout, prepacked ones only if ours is packed too."""
        rivals = [p for p in self.available.values() if not (p.ours or p.outside or p.dtype) and p.layout == ours.layout]
        return [p.name for p in rivals if ours.packed or not p.packed]

    def check(self) -> dict[str, float]:
        """Run every provider once and compare it with float64. Another package's that is wrong is dropped, and says so.

        Returns:
            name → largest error over all outputs, relative to the largest magnitude of that output.

        Raises:
            ArithmeticError: ``<case>: <provider> must be within <bound> of float64 in <output>; got <error>``
        """
        results = {p.name: p.outputs(p.call()) for p in self.providers if p.call is not None}
        for name, outputs in results.items():
            worst, dtype = 0.0, self.available[name].dtype or self.dtype
            for output, truth in self.reference.items():
                bound = ERROR_MULTIPLE[dtype] * max(relative_error(results[self.baseline][output], truth), torch.finfo(dtype).eps)
                error = relative_error(outputs[output], truth)
                if not error <= bound:
                    said = f"{name} must be within {bound:.2g} of float64 in {output}; got {error:.2g}"
                    if not self.available[name].outside:
                        raise ArithmeticError(f"{self.case.id}: {said}")
                    self._drop(name, f"wrong: {said}")
                    break
                worst = max(error, worst)
            else:
                self.errors[name] = worst
        return self.errors

    def _drop(self, name: str, reason: str) -> None:
        self.providers = [replace(p, call=None, reason=reason, memory={}) if p.name == name else p for p in self.providers]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """max |value - truth| / max |truth|, in float64; nan if shapes differ or a value is not a number."""
    if value.shape != truth.shape:
        return float("nan")
    if truth.numel() == 0:
        return 0.0
    scale = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((value.detach().double() - truth).abs().max() / scale)


def gradients_of(forward: Callable[..., Tensor], leaves: list[Tensor], grad_out: Tensor) -> Callable[[], Any]:
    """A training step without optimiser: forward and the gradients of all ``leaves``."""
    return lambda: torch.autograd.grad(forward(*leaves), leaves, grad_out)


def leaf(tensor: Tensor) -> Tensor:
    """The same memory and strides as a fresh leaf that wants a gradient."""
    return tensor.detach().requires_grad_()


def to_csr(weight: Tensor) -> Tensor:
    """``weight`` as a CSR tensor, without the notice that this layout is beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight.to_sparse_csr()


def to_bsr(weight: Tensor, block: int) -> Tensor:
    """``weight`` as a BSR tensor of square blocks, without the notice that this layout is beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight.to_sparse_bsr((block, block))


def layer_of(name: str) -> type:
    """``sparsekern.nn.<name>``, imported when first needed."""
    import sparsekern.nn

    return getattr(sparsekern.nn, name)


def served_by(op: str, layer: Any, x: Tensor, mode: str) -> str:
    """Who serves ``op`` on x's device, and, in the layer's own words, which kernels it chooses for this input."""
    from sparsekern.ops import backends

    words = [str(backends.serves(op, x.device.type))]
    if hasattr(layer, "explain"):
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        known = {"rows": x.size(0), "x_shape": tuple(x.shape), "channels_last": channels_last}
        asked = inspect.signature(layer.explain).parameters
        lines = layer.explain(**{name: known[name] for name in asked if name in known}).splitlines()
        lines = [" ".join(line.split()) for line in lines[1:]]  # the first one says what the layer is
        forward = [line for line in lines if line.startswith("forward")]
        words += forward if mode == "fwd" and forward else lines
    return "; ".join(words)
