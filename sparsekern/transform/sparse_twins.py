"""Layer by layer: the sparse twin of each that the plan speaks of, what it costs and brings, and why a layer has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekern.topology.draw import named_seed
from sparsekern.transform.carry import as_trained, carry_over, is_pruned, mask_of, plain, torch_type
from sparsekern.transform.convert_report import ConvertReport, LayerReport
from sparsekern.transform.example import Call, layer_pass, race
from sparsekern.transform.rules import Rule

Swaps = dict[nn.Module, tuple[LayerReport, nn.Module]]  # a layer -> its line of the report, its sparse twin


def modules(swaps: Swaps) -> dict[nn.Module, nn.Module]:
    """Layer -> sparse twin."""
    return {layer: made for layer, (_, made) in swaps.items()}


def sparse_twins(
    model: nn.Module,
    chosen: dict[nn.Module, tuple[str, Rule]],
    calls: dict[nn.Module, Call] | None,
    report: ConvertReport,
    seed: int | None,
    rounds: int,
) -> Swaps:
    """The layers that are to be swapped; every layer of ``chosen`` gets its line of the report. ``calls``: None without an example."""
    swaps: Swaps = {}
    surroundings = _Surroundings(model)
    races: dict[tuple, tuple] = {}
    for layer, (name, rule) in chosen.items():
        entry = LayerReport(name, rule, before_bytes=_bytes(layer))
        report.layers.append(entry)
        entry.why_not = surroundings.refuse(layer, rule)
        if entry.why_not:
            continue
        call = (calls or {}).get(layer)
        if call is None and report.policy == "if_faster":
            entry.why_not = "not called on the example"
            continue
        try:
            dense = plain(layer)
            made = _made(layer, dense, rule, named_seed(seed, name), entry)
            if call is not None:
                _measure(dense, made, call, entry, report.training, rounds, races)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            entry.why_not = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        if report.policy == "if_faster" and entry.verdict != "faster":
            entry.why_not = f"{'slower' if entry.verdict == 'slower' else 'not clearly faster'}: {entry.measured:.2f}x"
            continue
        swaps[layer] = entry, carry_over(layer, made)
    return swaps


class _Surroundings:
    """Who else has a hand in a layer or its weights."""

    def __init__(self, model: nn.Module) -> None:
        self.readers = {
            child: parent for parent in model.modules() if isinstance(parent, nn.MultiheadAttention) for child in parent.children()
        }
        self.owners: dict[int, list[tuple[str, nn.Module]]] = {}
        for name, module in model.named_modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), []).append((name, module))

    def refuse(self, layer: Any, rule: Rule) -> str:
        """Why the layer cannot be swapped; empty if it can."""
        kind = torch_type(layer)
        dense = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
        if layer in self.readers:
            return f"{type(self.readers[layer]).__name__} reads its weight without calling it"
        if not isinstance(layer, rule.takes):
            return f"{type(rule).__name__} is for {rule.takes.__name__}"
        own_forward = getattr(kind, "_conv_forward", None) is not getattr(dense, "_conv_forward", None) or kind.forward is not dense.forward
        if own_forward and not kind.__module__.startswith("sparsekern.nn"):
            return f"{kind.__name__} has a forward of its own"
        if "forward" in vars(layer):
            return "its forward was replaced"
        if getattr(layer, "_packed", None) is not None:
            return "it is packed: call unpack() first"
        pruned = [name for name in ("weight", "bias") if is_pruned(layer, name)]
        more = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias", "parametrizations"}
        more -= {f"{name}_{what}" for name in pruned for what in ("orig", "mask")}
        if more:
            return f"it holds more than a weight and a bias ({', '.join(sorted(more))})"
        if "parametrizations" in layer._modules and rule.source != "mask":
            return "its weight is parametrized: source='mask' takes the weight as it is; or remove the parametrization first"
        if "weight" not in layer._parameters and not pruned and "parametrizations" not in layer._modules:
            return "its weight is no parameter"
        weight: Any = layer.weight
        if is_lazy(weight) or weight.is_meta:
            return "its weight has no values yet"
        if type(weight.data) is not Tensor:
            return f"its weight is a {type(weight.data).__name__}"
        for parameter in layer._parameters.values():
            others = [name for name, module in self.owners.get(id(parameter), ()) if module is not layer]
            if others:
                return f"it shares a parameter with {others[0]}"
        if rule.source == "mask" and mask_of(layer) is None:
            return "its weight has no mask and no zeros"
        return ""


def _made(layer: nn.Module, dense: Any, rule: Rule, seed: int | None, entry: LayerReport) -> nn.Module:
    """The layer's sparse twin, ready to take its place; what it is goes into the report."""
    mask = mask_of(layer) if rule.source == "mask" else None
    with torch.random.fork_rng(devices=[], enabled=rule.source != "random"):  # weights that are drawn and overwritten
        made = as_trained(layer, rule.make(dense, mask, seed))
    weights = sum(p.numel() for name, p in made.named_parameters() if name.endswith("weight"))
    entry.kind, entry.density, entry.after_bytes = rule.describe(made), weights / dense.weight.numel(), _bytes(made)
    beside = weights - int(mask.sum()) if mask is not None else 0
    entry.weights_from = rule.source + (f" and {beside} beside it" if beside > 0 else "")
    return made


def _bytes(layer: nn.Module) -> int:
    """Of parameters, masks, index tables and plans."""
    plans = [plan for module in layer.modules() if isinstance(plan := getattr(module, "_plan", None), Tensor)]
    return sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers(), *plans))


def _measure(
    dense: nn.Module, made: nn.Module, call: Call, entry: LayerReport, training: bool, rounds: int, races: dict[tuple, tuple]
) -> None:
    """Error and times on what the example gives the layer; layers alike are timed once."""
    entry.x_shape, entry.calls = tuple(call.x.shape), call.calls
    with torch.no_grad():
        old, new = dense(call.x).double(), made(call.x).double()
    if entry.rule.source != "random":
        entry.error = float((new - old).norm() / old.norm().clamp_min(torch.finfo(torch.float64).tiny))
    sizes = tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in made.named_parameters())
    alike = (repr(dense), entry.rule, sizes, call.x.shape, call.x.stride(), call.x.dtype, call.is_input)
    if alike not in races:
        ways = {"before": layer_pass(dense, call, training), "after": layer_pass(made, call, training)}
        races[alike] = race(ways, call.x.device, rounds)
    times, entry.verdict = races[alike]
    entry.before_us, entry.after_us = times["before"].median_us, times["after"].median_us
