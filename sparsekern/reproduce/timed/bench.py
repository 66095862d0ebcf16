"""One model in a comparison: fixed weights, what met each of its layers, and the callables of all that pass the gate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsekern.reproduce.counted import recount
from sparsekern.reproduce.timed.competitors import CHANNELS_LAST, FORMATS, NCHW, Competitor
from sparsekern.reproduce.timed.gate import check_layers, check_output, some_images, terms
from sparsekern.reproduce.timed.helpers import FastestHelpers, is_helper
from sparsekern.reproduce.timed.rivals import is_conv, is_linear, is_sparse
from sparsekern.reproduce.timed.variants import Variant
from sparsekern.transform.pool import Pool2d, can_pool

PARTS = ("stack", "model")
Key = tuple[str, str, str]  # part, role, competitor
Call = Callable[[], object]


@dataclass(frozen=True)
class Counted:
    """A model's exact counts for one image, as the paper defines it, by a convention of :func:`sparsekern.profile.count`."""

    flops: int
    params: int
    stack_macs: int  # multiply-adds of the stack's layers


class Bench:
    """A variant on its images.

    Args:
        variant: which model.
        images: ``[N, *variant.input_shape]`` float32.
        helpers: remembers across the variants of a table what is fastest for poolings and dense linear layers.
        convention: of the counts.
        stack_of: ``"convolutions"``, or ``"connected layers"`` where the linear layers are what a table is about.
        device: where the model runs; only the CPU has kernels so far.
        progress: called with what takes its time while competitors are made.
    """

    def __init__(
        self,
        variant: Variant,
        images: Tensor,
        helpers: FastestHelpers | None = None,
        *,
        convention: str = "deep_roots",
        stack_of: str = "convolutions",
        device: str = "cpu",
        progress: Callable[[str], object] | None = None,
    ):
        if torch.device(device).type != "cpu":
            raise ValueError(f"reproduce: device must be cpu, where the kernels are; got {device}")
        self.variant, self.images, self.images_compared = variant, images, some_images(len(images))
        self.model, self._progress = variant.build(), progress
        self.models: dict[str, nn.Module] = {}  # competitor -> its model, gated
        self.served: dict[str, dict[str, str]] = {}
        self._weights: dict[str, dict] = {layout: {} for layout in FORMATS}
        self._prepared: dict[tuple[str, int], Tensor] = {}
        with torch.no_grad():
            plain = Competitor("plain", NCHW, nn.Conv2d, nn.Linear).build(self.model, {})
            # module path -> what met the layer, in the order of the calls
            self.inputs, helper_inputs = _record(self.model, plain, images)
            self.layers = {path: self.model.get_submodule(path) for path in self.inputs}
            self.sparse = [path for path, layer in self.layers.items() if is_sparse(layer)]
            in_stack = is_conv if stack_of == "convolutions" else is_linear
            self.stack = [path for path, layer in self.layers.items() if in_stack(layer)]
            counted = recount.counted(variant.model, convention, **dict(variant.options))
            stack_macs = sum(layer.macs for layer in counted.layers if layer.name in self.stack)
            self.counted = Counted(counted.flops, counted.params, stack_macs)
            # A linear layer has no layout, and one packed copy of its weight is enough.
            helpers = helpers or FastestHelpers()
            pools = {path: x for path, x in helper_inputs.items() if path not in self.layers}
            fixed = helpers.choose(plain, NCHW, {path: x for path, x in helper_inputs.items() if path in self.layers})
            self.helpers = {layout: fixed | helpers.choose(plain, layout, pools) for layout in FORMATS}
            self.our_pools = {path: Pool2d(pool) for path in pools if can_pool(pool := cast(Any, plain.get_submodule(path)))}
            self._num_sums = sum(terms(layer) for layer in self.layers.values())
            self._expected = copy.deepcopy(plain).double()(images[self.images_compared].double())

    @property
    def has_sparse_linear(self) -> bool:
        return any(is_linear(self.layers[path]) for path in self.sparse)

    def callables(self, role: str, competitors: Sequence[Competitor], parts: Sequence[str] = PARTS) -> dict[Key, Call]:
        """``(part, role, competitor)`` -> a call without arguments, after all of them agreed with float64."""
        calls: dict[Key, Call] = {}
        for competitor, (stack, model) in zip(competitors, self.checked(competitors), strict=True):
            calls["model", role, competitor.name] = model
            if stack is not None and "stack" in parts:
                calls["stack", role, competitor.name] = stack
        return calls

    def checked(self, competitors: Sequence[Competitor]) -> list[tuple[Call | None, Call]]:
        """(stack, model) of each competitor; layers that read the same input read the same tensor. No stack where a graph has no layers.

        Raises:
            WrongResult: a layer or the output is not within the float32 bound of float64.
        """
        built = {f"{self.variant.name} by {c.name}": (self._build(c), c) for c in competitors}
        with torch.inference_mode():
            layered = {who: (model, c.prepare) for who, (model, c) in built.items() if c.by_layers}
            check_layers(layered, self.layers, self.inputs)
            for who, (model, competitor) in built.items():
                out = model(competitor.prepare(self.images))
                check_output(out, self._expected, self.images_compared, self._num_sums, who)
                self.models[competitor.name] = model
                self.served |= {competitor.name: served} if (served := competitor.served(model, self.inputs)) else {}
        return [self._calls(model, competitor) for model, competitor in built.values()]

    def _build(self, competitor: Competitor) -> nn.Module:
        ours = self.our_pools if competitor.our_pooling and not competitor.optimizes else {}
        helpers = self.helpers[competitor.layout] | ours
        return competitor.build(self.model, helpers, self._weights[competitor.layout], self.images, self._progress)

    def _calls(self, model: nn.Module, competitor: Competitor) -> tuple[Call | None, Call]:
        x = self.prepared(competitor, self.images)
        if not competitor.by_layers:
            return None, lambda: model(x)
        steps = [(model.get_submodule(path), self.prepared(competitor, self.inputs[path])) for path in self.stack]

        def stack() -> None:
            for layer, layer_input in steps:
                layer(layer_input)

        return stack, lambda: model(x)

    def prepared(self, competitor: Competitor, x: Tensor) -> Tensor:
        """``x`` in the competitor's layout, the same tensor for all competitors of that layout."""
        key = (competitor.layout if x.dim() == 4 else NCHW, id(x))
        if key not in self._prepared:
            self._prepared[key] = competitor.prepare(x) if key[0] == CHANNELS_LAST else x
        return self._prepared[key]


def _record(model: nn.Module, plain: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(layer inputs, helper inputs) by the paths of ``model``, of one pass through ``plain``, its twin of torch's layers."""
    inputs: dict[str, Tensor] = {}
    helper_inputs: dict[str, Tensor] = {}

    def into(found: dict[str, Tensor], path: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            found.setdefault(path, args[0])

        return hook

    handles = []
    layers: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{layer}.") for layer in layers):
            continue  # part of a layer
        for found, belongs in ((inputs, is_conv(module) or is_linear(module)), (helper_inputs, is_helper(module))):
            if belongs:
                handles.append(plain.get_submodule(path).register_forward_pre_hook(into(found, path)))
        if is_conv(module) or is_linear(module):
            layers.append(path)
    try:
        plain(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, helper_inputs
