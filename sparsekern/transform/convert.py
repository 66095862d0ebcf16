"""convert: layers of any model become sparse ones, by rule, where that is measured to be faster."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sparsekern.arguments import check_flag, check_seed
from sparsekern.transform.carry import Holder, check_model, duplicate
from sparsekern.transform.convert_report import ConvertReport
from sparsekern.transform.example import Example, calls_of
from sparsekern.transform.places import Places
from sparsekern.transform.rules import Rule
from sparsekern.transform.sparse_twins import modules, sparse_twins
from sparsekern.transform.whole_model import leave_misfits, time_whole

POLICIES = ("if_faster", "always")
LAYERS = (nn.Linear, nn.Conv2d)

Plan = Rule | Mapping[str | Callable[[str, nn.Module], bool], Rule | None]


def convert(
    model: nn.Module,
    plan: Plan,
    *,
    policy: str = "if_faster",
    example_input: Any = None,
    training: bool | None = None,
    rounds: int = 5,
    seed: int | None = 0,
    inplace: bool = False,
) -> nn.Module:
    """A copy of ``model`` whose layers are sparse where ``plan`` says so and a measurement agrees; ``.report`` says what came of each.

    Every ``nn.Linear`` and ``nn.Conv2d`` that the plan speaks of is made sparse, timed against itself on what the example gives it, and
    put in the dense layer's place under the same name. It keeps mode, frozen parameters, hooks, dtype and device; a layer that stands
    in several places is swapped once and stays shared. Then the model is run: each output must be that of the model with dense layers
    that hold zeros where nothing is kept. A layer that somebody reads in a way of its own is found there and left, with the reason.

    Args:
        model: any module; not yet under ``torch.compile`` or ``DistributedDataParallel``. Optimisers made before do not follow.
        plan: a rule for every layer that it can be used for, or a mapping of rules: keys are shell patterns of module names
            (``"encoder.*.fc?"``) or functions ``(name, module) -> bool``; None leaves a layer as it is; of several that match, the last
            counts. Rules are :class:`FanIn`, :class:`Groups`, :class:`Root` and :class:`Stochastic`.
        policy: ``"if_faster"``: a layer stays dense unless its sparse twin is measured faster, and all do if the whole model is slower
            with them; ``"always"``: swap whatever can be swapped.
        example_input: a tensor, a tuple of positional arguments or a mapping of keyword arguments; the batch and the memory format
            that you will run. Needed to measure; without one nothing is checked by running the model.
        training: time a training step (forward and all gradients) in place of inference; default: as the model's mode is.
        rounds: of interleaved timing.
        seed: of drawn connections, together with each layer's name; None draws them from torch's generator.
        inplace: change ``model`` itself, which saves the memory of a copy.

    Returns:
        The model, with ``report``, a :class:`ConvertReport`. :func:`to_dense` is the way back.

    Raises:
        ValueError: ``convert: plan must match layers of the model (fc1, fc2); got 'fc9*'``;
            ``convert: example_input must be given with policy 'if_faster'; got None``

    Cost:
        Some tenths of a second for every kind of layer that is timed, two runs of the model to compare, a few dozen to time it. What the
        layers are given in the example is held in memory meanwhile.

    Source:
        What "if faster" means is SparseProp's rule (Nikdan et al., 2023) without its threshold: the clock decides.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(3072, 768), nn.ReLU(), nn.Linear(768, 10)).eval()
        >>> sparse = convert(mlp, {"0": sparsekern.FanIn(density=0.1)}, example_input=torch.randn(1, 3072))
        >>> print(sparse.report)  # doctest: +ELLIPSIS
        convert: ... of 1 layers swapped (if_faster; inference, ...
    """
    _check_arguments(model, plan, policy, example_input, rounds)
    check_flag("convert", inplace=inplace, training=training)
    check_seed("convert", seed)
    holder = Holder(model if inplace else duplicate(model))
    training = model.training if training is None else training
    report = ConvertReport(policy, training, torch.get_num_threads())
    chosen = _chosen(holder.model, plan)
    example = None if example_input is None else Example(example_input)
    calls = None if example is None else calls_of(holder, list(chosen), example)
    swaps = sparse_twins(holder.model, chosen, calls, report, seed, rounds)
    if example is not None:
        leave_misfits(holder, swaps, calls or {}, example, report)
        time_whole(holder, swaps, example, report, rounds)
    Places(holder, modules(swaps)).keep()
    for entry, made in swaps.values():
        entry.swapped, entry.made_by = True, entry.rule.as_made(made)
    converted: Any = holder.model
    converted.report = report
    return converted


# ---- arguments


def _check(condition: bool, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"convert: {arg} must be {rule}; got {got}")


def _check_arguments(model: Any, plan: Any, policy: Any, example_input: Any, rounds: Any) -> None:
    check_model("convert", model)
    taken = "report" in {*model._modules, *model._parameters, *model._buffers}
    _check(not taken, "model", "without a layer or tensor of its own called report", type(model).__name__)
    _check(isinstance(plan, (Rule, Mapping)), "plan", "a rule or a mapping of patterns or functions to rules", repr(plan))
    for key, rule in plan.items() if isinstance(plan, Mapping) else ():
        _check(isinstance(key, str) or callable(key), "plan", "a mapping of patterns or functions to rules", f"the key {key!r}")
        _check(rule is None or isinstance(rule, Rule), f"plan[{key!r}]", "FanIn, Groups, Root, Stochastic or None", repr(rule))
    _check(policy in POLICIES, "policy", f"one of {POLICIES}", repr(policy))
    given = example_input is not None or policy == "always"
    _check(given, "example_input", "given with policy 'if_faster'", example_input)
    _check(isinstance(rounds, int) and rounds > 0, "rounds", "at least 1", rounds)


def _chosen(model: nn.Module, plan: Plan) -> dict[nn.Module, tuple[str, Rule]]:
    """Layer -> its first name, and the rule that counts."""
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    found = {name: layer for name, layer in names.items() if isinstance(layer, LAYERS)}
    if isinstance(plan, Rule):
        takes = plan.takes
        plan = {lambda name, layer: isinstance(layer, takes): plan}
    rules: dict[nn.Module, Rule | None] = {}
    for key, rule in plan.items():
        matched = fnmatch.filter(found, key) if isinstance(key, str) else [name for name, layer in found.items() if key(name, layer)]
        known = ", ".join(found) or "of which there are none"
        got = repr(key) if isinstance(key, str) else f"{getattr(key, '__name__', key)!r}, which matches none"
        if not matched:
            raise ValueError(f"convert: plan must match layers of the model ({known}); got {got}")
        rules |= {found[name]: rule for name in matched}
    first = {layer: name for name, layer in reversed(found.items())}
    return {layer: (first[layer], rule) for layer in found.values() if (rule := rules.get(layer)) is not None}
