"""Load the trained weights of a dense network into one of ours, as far as the structure allows.

Deep Roots' networks have the layers of their dense twins with fewer weights in the grouped ones. A checkpoint of torchvision's
or timm's ResNet-50, GoogLeNet or AlexNet, or of any dense model of this package, is a start for fine-tuning the grouped one:

    same shape      kept
    grouped here    sliced: the weights inside the groups stay, those between groups are dropped
    batch-norm      kept; folded into the convolution that stands before it where the model has none (``batch_norm=False``):
                    weight * gamma/sqrt(var + eps), bias = beta + (bias - mean) * gamma/sqrt(var + eps)
    anything else   left, with the reason
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekern.arguments import check_real
from sparsekern.nn.group_weights import has_fewer_groups, inside_groups

WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and torch.compile, before each name
NO_ENTRY = "the model's layer has no such entry"
Layers = dict[str, dict[str, Tensor]]  # {"layer1.0.bn1": {"weight": ..., "running_mean": ...}}


@dataclass
class LoadReport:
    """What :func:`load_dense` did. Every name is an entry of a ``state_dict``; ``str(report)`` is for reading.

    Attributes:
        model: type of the model that was loaded into.
        kept: entries of the model that now hold the checkpoint's at full size.
        sliced: entries of the model that hold a part, and which.
        folded: batch-norms of the checkpoint, and the convolution each went into.
        left: entries of the checkpoint, under its own names, without a place, and why.
        missing: entries of the model without a source, and what they hold now.
    """

    model: str
    kept: list[str] = field(default_factory=list)
    sliced: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {len(self.kept)} kept, {len(self.sliced)} sliced, {len(self.missing)} missing; "
            f"of the checkpoint {len(self.folded)} batch-norms folded, {len(self.left)} entries left"
        ]
        for title in ("sliced", "left", "missing"):
            entries: dict[tuple[str, str], list[str]] = {}
            for name, note in getattr(self, title).items():
                layer, _, entry = name.rpartition(".")
                entries.setdefault((layer, note), []).append(entry)
            layers: dict[tuple[str, str], list[str]] = {}
            for (layer, note), names in entries.items():
                layers.setdefault((", ".join(names), note), []).append(layer or "the model itself")
            for (held, note), same in layers.items():
                more = f" and {len(same) - 3} more" if len(same) > 3 else ""
                lines.append(f"  {title:7s} {held} of {', '.join(same[:3])}{more}: {note}")
        return "\n".join(lines)


def load_dense(model: nn.Module, state_dict: Mapping, *, eps: float | None = None) -> LoadReport:
    """Fill ``model`` from the ``state_dict`` of its dense twin and say what was kept, sliced, folded, left and missing.

    Args:
        model: any model with torchvision's names or, in a ``checkpoint_names`` attribute, the names that theirs map to.
            Changed in place, and only if at least one entry fits.
        state_dict: names to tensors, also under ``"state_dict"`` or ``"model"`` or one in the other, also with ``module.`` or
            ``_orig_mod.`` before each name, unless the model has a child called so.
        eps: of the checkpoint's batch-norms, needed to fold them; default the model's ``bn_eps``, else 1e-5.

    A layer whose weight does not fit is left with its bias and its batch-norm. A bias of ours that the checkpoint lacks is set to
    zero if the layer's weight was loaded; all else that is missing keeps its value. An entry under several names (a shared layer, tied
    weights) is filled by any of them.

    Raises:
        TypeError: ``load_dense: model must be an nn.Module; got OrderedDict``
        ValueError: ``load_dense: model must be run once before, for all of its layers to have a shape; got '0.weight' without``;
            ``load_dense: state_dict must be a mapping of names to tensors; got list``;
            ``load_dense: state_dict must be of tensors with values; got 'conv1.weight' on meta``;
            ``load_dense: eps must be in [0, 1]; got -1``;
            ``load_dense: state_dict must hold layers of ResNet; got 2 entries of which none fits (first 'encoder.weight')``

    Cost:
        One copy of the weights; with folding, one float64 pass over the convolutions.

    Example:
        >>> from sparsekern.models import create_model
        >>> dense, root = (create_model(name, conv=nn.Conv2d) for name in ("nin", "nin_root_16"))
        >>> print(load_dense(root, dense.state_dict()))
        NiN: 16 kept, 2 sliced, 0 missing; of the checkpoint 0 batch-norms folded, 0 entries left
          sliced  weight of conv2a: [192, 96, 5, 5] inside 16 groups, [192, 6, 5, 5]
          sliced  weight of conv3a: [192, 192, 3, 3] inside 8 groups, [192, 24, 3, 3]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_dense: model must be an nn.Module; got {type(model).__name__}")
    if eps is not None:
        check_real("load_dense", "in [0, 1]", lambda e: 0 <= e <= 1, eps=eps)
    report = LoadReport(type(model).__name__)
    ours = _state_of(model)
    layers, theirs = _layers_of(state_dict, model, report)
    eps = getattr(model, "bn_eps", 1e-5) if eps is None else eps
    norms = {name: _convolution_before(name, layers, model) for name, entries in layers.items() if "running_mean" in entries}
    to_fold = {c: name for name, c in norms.items() if c and _join(name, "running_mean") not in ours and _has_bias(model, c)}
    filled: dict[str, Tensor] = {}
    placed = set()  # layers of the checkpoint that found a place
    for name in [name for name in layers if name not in norms] + list(norms):  # a batch-norm goes where its convolution goes
        entries = layers[name]
        if name in to_fold.values():
            continue
        if norms.get(name) and norms[name] not in placed:
            _leave(report, name, entries, "its convolution was left")
            continue
        norm = to_fold.get(name)
        damaged = norm is not None and not _foldable(entries, layers[norm])
        if norm is not None and not damaged:
            entries = entries | _folded(entries, layers[norm], eps)
        fitting, reason = ({}, "it and its batch-norm do not fit together") if damaged else _fit(model, ours, name, entries, report)
        if reason:
            _leave(report, name, layers[name], reason)
            if norm is not None:
                _leave(report, norm, layers[norm], "its convolution was left")
            continue
        if norm is not None:
            report.folded[norm] = name
        filled |= fitting
        placed.add(name)
    if not filled:
        held = [_join(theirs[name], entry) for name, layer in layers.items() for entry in layer]
        first = f" (first {held[0]!r})" if held else ""
        raise ValueError(f"load_dense: state_dict must hold layers of {report.model}; got {len(held)} entries of which none fits{first}")
    loaded = {id(ours[name]): value for name, value in filled.items()}
    filled |= {name: loaded[id(value)] for name, value in ours.items() if name not in filled and id(value) in loaded}
    for name, value in ours.items():
        layer, _, entry = name.rpartition(".")
        if name in filled or entry == "num_batches_tracked":
            continue
        zero = entry == "bias" and _join(layer, "weight") in filled
        report.missing[name] = "set to zero" if zero else "keeps its value"
        if zero:
            filled[name] = torch.zeros_like(value)
    report.left = {_under(theirs, name): reason for name, reason in report.left.items()}
    model.load_state_dict({**ours, **filled})
    return report


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's entries, the very tensors: one that stands under several names is the same under each."""
    ours = model.state_dict(keep_vars=True)
    for name, value in ours.items():
        if is_lazy(value):
            rule = "run once before, for all of its layers to have a shape"
            raise ValueError(f"load_dense: model must be {rule}; got {name!r} without")
    return ours


def _layers_of(state_dict: Mapping, model: nn.Module, report: LoadReport) -> tuple[Layers, dict[str, str]]:
    """The checkpoint's tensors by layer, without the wrappers of training scripts, and its own name of each layer."""
    while isinstance(state_dict, Mapping):
        inside = [state_dict[key] for key in ("state_dict", "model") if isinstance(state_dict.get(key), Mapping)]
        if not inside:
            break
        state_dict = inside[0]
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"load_dense: state_dict must be a mapping of names to tensors; got {type(state_dict).__name__}")
    names = getattr(model, "checkpoint_names", {})
    wrappers = "|".join(name for name in WRAPPERS if name not in model._modules) or "$"
    layers: Layers = {}
    theirs: dict[str, str] = {}
    counters_last = sorted(state_dict.items(), key=lambda item: isinstance(item[1], Tensor) and not item[1].is_floating_point())
    for full_name, value in counters_last:  # formats that order by type put those of batch-norms before all layers
        name = re.sub(rf"^(({wrappers})\.)+", "", str(full_name))
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = f"dense but {value.layout}" if isinstance(value, Tensor) else f"a tensor but {type(value).__name__}"
            report.left[name] = f"not {kind}"
            continue
        if value.is_meta:
            raise ValueError(f"load_dense: state_dict must be of tensors with values; got {str(full_name)!r} on meta")
        their_layer, _, entry = name.rpartition(".")
        layer = names.get(their_layer, their_layer)
        theirs[layer] = their_layer
        layers.setdefault(layer, {})[entry] = value.detach()
    return layers, theirs


def _join(layer: str, entry: str) -> str:
    """An entry's full name; that of the model itself has no layer before it."""
    return f"{layer}.{entry}" if layer else entry


def _under(theirs: Mapping[str, str], name: str) -> str:
    """An entry's name in the checkpoint: conv1.weight is features.0.weight there."""
    layer, _, entry = name.rpartition(".")
    return _join(theirs.get(layer, layer), entry)


def _convolution_before(norm: str, layers: Layers, model: nn.Module) -> str | None:
    """Name of the convolution whose output a batch-norm reads: bn2a after conv2a, downsample.1 after downsample.0."""
    parent, _, leaf = norm.rpartition(".")
    block: Any = _submodule(model, parent)
    if hasattr(block, "folds"):  # a block that does not follow that order says its own
        leaf = block.folds.get(leaf, "")
    elif leaf.isdigit():
        leaf = str(int(leaf) - 1)
    else:
        leaf = leaf.replace("bn", "conv", 1)
        if not _stands_behind(norm, _join(parent, leaf), layers, model):
            return None
    conv = _join(parent, leaf)
    weight = layers.get(conv, {}).get("weight")
    return conv if weight is not None and weight.dim() == 4 else None


def _stands_behind(norm: str, conv: str, layers: Layers, model: nn.Module) -> bool:
    """Whether the batch-norm was registered after the convolution: in the model or, where that has only one of them, in the checkpoint.

    A checkpoint in alphabetical order, as some formats store it, says nothing of that: then the names alone count.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if norm in modules and conv in modules:
        return modules.index(conv) < modules.index(norm)
    stored = list(layers)
    return stored == sorted(stored) or conv not in stored or stored.index(conv) < stored.index(norm)


def _foldable(conv: dict[str, Tensor], norm: dict[str, Tensor]) -> bool:
    """Whether there is one number for each filter in all that :func:`_folded` reads."""
    read = [conv.get("bias"), *(norm.get(entry) for entry in ("weight", "bias", "running_mean", "running_var"))]
    return "running_var" in norm and all(value.shape == conv["weight"].shape[:1] for value in read if value is not None)


def _folded(conv: dict[str, Tensor], norm: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    """Weight ``[K, C/G, KH, KW]`` and bias ``[K]`` of the convolution that includes the batch-norm behind it."""
    mean, var = norm["running_mean"].double(), norm["running_var"].double()
    scale = norm.get("weight", torch.ones_like(mean)).double() / torch.sqrt(var + eps)
    bias = conv.get("bias", torch.zeros_like(mean)).double()
    shift = norm.get("bias", torch.zeros_like(mean)).double()
    weight = conv["weight"]
    folded = {"weight": weight.double() * scale[:, None, None, None], "bias": shift + (bias - mean) * scale}
    return {entry: value.to(weight.dtype) for entry, value in folded.items()}


def _fit(
    model: nn.Module, ours: Mapping[str, Tensor], name: str, entries: dict[str, Tensor], report: LoadReport
) -> tuple[dict[str, Tensor], str]:
    """What one layer of the checkpoint gives to ours, noted in the report, or the reason why it gives nothing."""
    module = _submodule(model, name)
    if module is not None and hasattr(module, "parts") and hasattr(module, "weight_dense"):
        fitting, reason = _fit_parts(module, name, entries)
        shape = list(entries["weight"].shape) if fitting else None
        report.sliced |= {part: f"the part of {shape} that is {list(value.shape)}" for part, value in fitting.items()}
        found = {part.rpartition(".")[2] for part in fitting}
        if fitting:
            _leave(report, name, {entry: value for entry, value in entries.items() if entry not in found}, NO_ENTRY)
        return fitting, reason
    if not any(_join(name, entry) in ours for entry in entries):
        return {}, "the model has no such layer"
    fitting = {}
    sliced: dict[str, str] = {}
    without: dict[str, Tensor] = {}
    for entry, value in entries.items():
        full_name = _join(name, entry)
        if full_name not in ours:
            without[entry] = value
            continue
        wanted = tuple(ours[full_name].shape)
        if tuple(value.shape) == wanted:
            fitting[full_name] = value
        elif entry == "weight" and isinstance(module, nn.Conv2d) and has_fewer_groups(tuple(value.shape), wanted, module.in_channels):
            fitting[full_name] = inside_groups(value, module.in_channels, module.groups)
            sliced[full_name] = f"{list(value.shape)} inside {module.groups} groups, {list(wanted)}"
        else:
            return {}, f"{entry} is {list(value.shape)}, the model's {list(wanted)}"
    report.sliced |= sliced
    report.kept += [full_name for full_name in fitting if full_name not in sliced]
    _leave(report, name, without, NO_ENTRY)
    return fitting, ""


def _fit_parts(module: Any, name: str, entries: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A dense layer cut up into the ``parts`` of ours, which knows itself how to load one; or why it cannot."""
    dense = [module.out_channels, module.in_channels, *module.kernel_size]
    if "weight" not in entries or list(entries["weight"].shape) != dense:
        return {}, f"weight is {list(entries['weight'].shape) if 'weight' in entries else 'not there'}, the dense twin's {dense}"
    twin = copy.deepcopy(module)
    twin.load_state_dict({entry: entries[entry] for entry in ("weight", "bias") if entry in entries}, strict=False)
    loaded = [f"{part}.{entry}" for part in dict(twin.named_modules()) if part for entry in ("weight", "bias") if entry in entries]
    return {_join(name, entry): value for entry, value in twin.state_dict().items() if entry in loaded}, ""


def _has_bias(model: nn.Module, name: str) -> bool:
    layer = _submodule(model, name)
    return layer is not None and any(entry.rpartition(".")[2] == "bias" for entry, _ in layer.named_parameters())


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _leave(report: LoadReport, name: str, entries: dict[str, Tensor], reason: str) -> None:
    report.left |= {_join(name, entry): reason for entry in entries if entry != "num_batches_tracked"}
