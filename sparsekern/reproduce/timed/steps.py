"""One model in a comparison of training steps: forward, cross-entropy, backward and an update, with batch-norm where the model has any.

The weights are trained by a step of size zero, so that every step computes the same. Auxiliary classifiers and dropout are left out, of
all alike. Filter groups are torch's too; masks are not, since torch has no step that keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn import SparseLinear, StochasticConv2d
from sparsekern.ops.sparse_conv2d import dense_weight as dense_filters
from sparsekern.ops.sparse_linear import dense_weight
from sparsekern.reproduce.counted import recount
from sparsekern.reproduce.timed.bench import Call, Counted, Key
from sparsekern.reproduce.timed.competitors import FORMATS, NCHW, Competitor
from sparsekern.reproduce.timed.gate import UNIT_ROUNDOFF, WrongResult, terms
from sparsekern.reproduce.timed.rivals import ConvReLU, is_conv, is_linear
from sparsekern.reproduce.timed.variants import Variant

# Gradients jump where rounding carries a value over a ReLU's corner or another one to the maximum: torch's own two layouts differ by up to
# 0.01. Each layer's gradients are held to a proved bound elsewhere; here a layer that is missing or takes another's place must show.
GROSS = 0.1


class StepBench:
    """A variant on its images, in training; the same face as :class:`~sparsekern.reproduce.timed.bench.Bench`.

    Args:
        variant: which model.
        images: ``[N, *variant.input_shape]`` float32, N at least 2 where the model has batch-norm over single pixels.
        convention: of the counts, which are of the forward pass.
    """

    has_sparse_linear = False

    def __init__(self, variant: Variant, images: Tensor, *, convention: str = "deep_roots"):
        self.variant, self.images = variant, images
        self.models: dict[str, nn.Module] = {}
        self.served: dict[str, dict[str, str]] = {}
        self.layers: dict[str, nn.Module] = {}  # none is timed by itself
        self.model = variant.build(training=True)
        counted = recount.counted(variant.model, convention, **dict(variant.options))
        self.counted = Counted(counted.flops, counted.params, sum(layer.macs for layer in counted.layers))
        layers = {path: m for path, m in self.model.named_modules() if is_conv(m) or is_linear(m)}
        self._weights = [path for path, layer in layers.items() if layer._parameters.get("weight") is not None]
        self._kept = {path: layers[path].weight_dense() != 0 for path in self._weights if hasattr(layers[path], "index")}
        # of the loss: both runs of a comparison round, once for each term of each sum, to first order
        self._bound = 2 * sum(terms(layer) for layer in layers.values()) * UNIT_ROUNDOFF
        with torch.no_grad():
            classes = self.model.eval()(images[:1]).shape[1]
        self.labels = torch.arange(len(images)) % classes
        self._expected = self._loss_and_gradients(_trained(self.model, Competitor("plain", NCHW, nn.Conv2d, nn.Linear)), images)

    def callables(self, role: str, competitors: Sequence[Competitor]) -> dict[Key, Call]:
        """``("model", role, competitor)`` -> a step, after its loss and gradients agreed with torch's own.

        Raises:
            WrongResult: ``reproduce: gradients of nin by ... must be within 0.1 of torch's; got 0.2``
        """
        return {("model", role, competitor.name): self._step(competitor) for competitor in competitors if competitor.trains}

    def _step(self, competitor: Competitor) -> Callable[[], object]:
        model, x = _trained(self.model, competitor), competitor.prepare(self.images)
        found = self._loss_and_gradients(model, x)
        loss, *gradients = [((e - f).norm() / e.norm()).item() for e, f in zip(self._expected, found, strict=True)]
        for what, error, bound in (("loss", loss, self._bound), ("gradients", max(gradients), GROSS)):
            if not error <= bound:
                who = f"{self.variant.name} by {competitor.name}"
                raise WrongResult(f"reproduce: {what} of {who} must be within {bound:.2g} of torch's; got {error:.3g}")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        self.models[competitor.name] = model

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), self.labels).backward()
            optimizer.step()

        return step

    def _loss_and_gradients(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """The loss, and the gradients of the images and of each layer's weight: of the kept weights, at their places in the dense one."""
        model = copy.deepcopy(model)  # a step changes the batch-norms' statistics
        x = x.clone().requires_grad_(True)
        loss = F.cross_entropy(model(x), self.labels)
        loss.backward()
        found = [loss.detach(), _gradient(x)]
        for path in self._weights:
            layer: Any = model.get_submodule(path)
            layer = layer.conv if isinstance(layer, ConvReLU) else layer
            gradient = _in_place(layer, _gradient(layer.weight))
            found.append(gradient * self._kept[path] if path in self._kept else gradient)
        return [t.double() for t in found]


def _trained(model: nn.Module, competitor: Competitor) -> nn.Module:
    """A copy of ``model`` as ``competitor`` trains it: parameters of its own, in its layout."""
    built = copy.deepcopy(competitor.build(model, {})).requires_grad_(True).train()
    for module in built.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if competitor.layout != NCHW:
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=FORMATS[competitor.layout])
    return built


def _in_place(layer: nn.Module, gradient: Tensor) -> Tensor:
    """Kept weights' gradients at their places in the dense weight; a dense layer's as they are."""
    if isinstance(layer, StochasticConv2d):
        return dense_filters(gradient, layer.indptr, layer.index, layer.in_channels, layer.kernel_size)
    if isinstance(layer, SparseLinear):
        return dense_weight(gradient, layer.index, layer.in_features)
    return gradient


def _gradient(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan) if x.grad is None else x.grad
