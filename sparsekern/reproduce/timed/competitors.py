"""Who runs a model in a comparison: which convolution and which linear layer, in which layout.

Every competitor is made from the same model with the same weights, has the same layout freedom, a fused ReLU where it
has one, and the same helpers for what is not compared (:mod:`sparsekern.reproduce.timed.helpers`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.models.parts import ConvFactory
from sparsekern.nn import GroupedConv2d
from sparsekern.reproduce.timed.rivals import CsrLinear, FewImages, PrepackedConv2d, is_conv, is_linear, torch_conv, torch_linear
from sparsekern.transform import optimize

NCHW, CHANNELS_LAST = "NCHW", "channels_last"
FEW_IMAGES = 4
FORMATS = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


@dataclass(frozen=True)
class Competitor:
    """A layout, and what takes the place of the model's convolutions and sparse linear layers; ``name`` is for tables.

    ``conv`` is called as ``nn.Conv2d`` is, ``linear`` as ``nn.Linear``; None leaves the model's own layers (ours).
    """

    name: str
    layout: str
    conv: ConvFactory | None = None
    linear: Callable[..., nn.Linear] | None = None
    packs: bool = False  # our convolutions pack their weights at the first forward, as the prepacked rivals do
    optimizes: bool = False  # sparsekern.optimize: a graph of its own, which has a time as a whole but not by layers
    images: int = 0  # that go through the whole model at a time, where a batch is larger; 0: all
    our_pooling: bool = False  # poolings run on our kernel, in torch's models too; else the fastest that torch has

    @property
    def by_layers(self) -> bool:
        """Whether its layers can be run one by one, on what met the model's."""
        return not (self.optimizes or self.images)

    @property
    def trains(self) -> bool:
        """Whether gradients go through it: packed weights are for inference."""
        return self.by_layers and not self.packs and self.conv in (None, nn.Conv2d) and self.linear in (None, nn.Linear)

    def build(
        self,
        model: nn.Module,
        helpers: Mapping[str, nn.Module],
        weights: dict[tuple, nn.Parameter] | None = None,
        example: Tensor | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> nn.Module:
        """``model`` as this competitor runs it, ready for inference; ``model`` stays as it is and shares its parameters.

        Args:
            helpers: module path -> what takes its place in every competitor alike (poolings, dense linear layers).
            weights: keeps the parameters that were brought into another layout, for the next competitor in that layout.
            example: images; what a competitor that ``optimizes`` compares its ways on.
            progress: called with what ``optimize`` is doing.
        """
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        built = copy.deepcopy(model, shared).eval()
        replaced: list[str] = []
        for path, layer in list(built.named_modules()):
            if any(path.startswith(f"{outer}.") for outer in replaced):
                continue  # part of a layer that is gone
            taken = helpers[path] if path in helpers else self._in_place_of(layer)
            if taken is not None:
                put(built, path, taken)
                replaced.append(path)
        if self.layout == CHANNELS_LAST:
            _to_channels_last(built, {} if weights is None else weights)
        if self.packs:
            for layer in built.modules():
                if isinstance(layer, GroupedConv2d):
                    _pack_at_first_forward(layer)
        if self.images:
            return FewImages(built, self.images)
        if not self.optimizes:
            return built
        if example is None:
            raise ValueError("reproduce: example must be given to a competitor that optimizes; got None")
        return optimize(built, self.prepare(example), pool=self.our_pooling, progress=progress)

    def _in_place_of(self, layer: nn.Module) -> nn.Module | None:
        if self.conv is not None and is_conv(layer):
            return torch_conv(layer, self.conv)
        if self.linear is not None and is_linear(layer) and hasattr(layer, "weight_dense"):
            return torch_linear(layer, self.linear)
        return None

    def prepare(self, x: Tensor) -> Tensor:
        """``x [N, C, H, W]`` in this competitor's layout; ``x [N, features]`` as it is."""
        return x.contiguous(memory_format=FORMATS[self.layout]) if x.dim() == 4 else x

    def served(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, str]:
        """Who serves each layer's forward and why, in the words of its ``explain``; empty for layers without."""
        if self.optimizes:
            return {"whole model": f"sparsekern optimize: {model.report.chosen}"}
        found = {}
        for path, x in inputs.items() if self.by_layers else ():
            layer = model.get_submodule(path)
            if hasattr(layer, "explain"):
                found[path] = _served(layer, x, self.layout == CHANNELS_LAST)
        return found


def _pack_at_first_forward(layer: GroupedConv2d) -> None:
    def pack(layer: GroupedConv2d, args: tuple) -> None:
        layer.pack(tuple(args[0].shape))
        hook.remove()

    hook = layer.register_forward_pre_hook(pack)


def put(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Make ``layer`` the submodule of ``model`` at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _to_channels_last(model: nn.Module, weights: dict[tuple, nn.Parameter]) -> None:
    """As ``model.to(memory_format=torch.channels_last)``, without touching the models that share the parameters."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 4:
                key = (parameter.data_ptr(), parameter.shape)
                if key not in weights:
                    moved = parameter.detach().contiguous(memory_format=torch.channels_last)
                    weights[key] = nn.Parameter(moved, requires_grad=False)
                module._parameters[name] = weights[key]


def _served(layer: Any, x: Tensor, channels_last: bool) -> str:
    """``sparsekern own kernel``, ``torch dense 1x1 ...``, ``sparsekern tile``: the server first."""
    if not is_conv(layer):
        lines = layer.explain(rows=x.numel() // x.shape[-1]).splitlines()
    elif "channels_last" in inspect.signature(layer.explain).parameters:
        lines = layer.explain(tuple(x.shape), channels_last=channels_last).splitlines()
    else:
        lines = layer.explain(tuple(x.shape)).splitlines()
    words = next((line.split()[1:] for line in lines if line.split()[0] == "forward"), None)
    packed = next((line.split(maxsplit=1)[1] for line in lines if line.split()[0] == "packed"), None)
    if packed is not None:
        what, _, _ = packed.partition(",")
        return f"sparsekern packed {what}" if what.startswith("blocks") else f"torch {what}"
    if words is None:
        return lines[0].rpartition(", ")[2]
    if words[0] in ("sparsekern", "torch"):
        return " ".join(words)
    return "torch dense weight made of the kept ones" if words[0] == "dense" else f"sparsekern {words[0]} kernel"


def torch_competitors(sparse_linear: bool = False, batch: int = 1) -> list[Competitor]:
    """torch's own: the default first, then channels_last, then prepacked where this torch has oneDNN.

    Args:
        sparse_linear: the model has sparse linear layers: compressed sparse rows are one more way.
        batch: images per call; of large ones a few at a time are one more way, as ``optimize`` has it.
    """
    found = [
        Competitor("nn.Conv2d NCHW", NCHW, nn.Conv2d, nn.Linear),
        Competitor("nn.Conv2d channels_last", CHANNELS_LAST, nn.Conv2d, nn.Linear),
    ]
    if torch.backends.mkldnn.is_available():
        found.append(Competitor("oneDNN prepacked channels_last", CHANNELS_LAST, PrepackedConv2d, nn.Linear))
        if batch >= 4 * FEW_IMAGES:
            few = f"oneDNN prepacked channels_last, {FEW_IMAGES} images at a time"
            found.append(Competitor(few, CHANNELS_LAST, PrepackedConv2d, nn.Linear, images=FEW_IMAGES))
        if sparse_linear:
            found.append(Competitor("oneDNN prepacked channels_last, CSR", CHANNELS_LAST, PrepackedConv2d, CsrLinear))
    return found


def our_competitors() -> list[Competitor]:
    """Our layers with natural (unpacked) weights, in both layouts, with packed convolutions, and what ``optimize`` makes of the model."""
    natural = [Competitor(f"sparsekern {layout}", layout) for layout in FORMATS]
    packed = Competitor("sparsekern packed channels_last", CHANNELS_LAST, packs=True)
    return [*natural, packed, Competitor("sparsekern.optimize", CHANNELS_LAST, optimizes=True, our_pooling=True)]


# ---- poolings: ours are faster than torch's, so that models are also compared with torch's on both sides and with ours on both


def torch_with_our_pooling(batch: int = 1) -> list[Competitor]:
    """torch's ways in channels_last, which is what our pooling is made for, with our poolings."""
    return [
        replace(c, name=f"{c.name}, our pooling", our_pooling=True) for c in torch_competitors(batch=batch) if c.layout == CHANNELS_LAST
    ]


def ours_with_torchs_pooling() -> list[Competitor]:
    """What ``optimize`` makes of the model when it leaves the poolings alone; our other ways have torch's poolings anyway."""
    return [Competitor("sparsekern.optimize, torch's pooling", CHANNELS_LAST, optimizes=True)]
