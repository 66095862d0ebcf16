"""What a graph takes for granted of its arguments: it was traced with those of the example, ``if mask is None`` went one way."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from sparsekern.arguments import said


def arguments_of(model: nn.Module, example: tuple) -> dict[str, Any]:
    """What each argument of ``forward`` is when it is called with the example, by name; ``*`` and ``**`` as the graph calls them."""
    signature = inspect.signature(model.forward)
    bound = signature.bind(*example)
    bound.apply_defaults()
    stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {stars.get(signature.parameters[name].kind, "") + name: value for name, value in bound.arguments.items()}


def held(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are constants of the graph: nothing, a truth, a word, no more keywords."""
    return {name: value for name, value in arguments.items() if value is None or isinstance(value, bool | str) or name.startswith("**")}


def hold(graph: fx.GraphModule, arguments: Mapping[str, Any]) -> None:
    """Let the graph refuse calls for which it was not made."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) == 1 and not inputs[0].args and isinstance(arguments[str(inputs[0].target)], Tensor):
        return  # nothing can be left out
    constants = held(arguments)
    for node in inputs:
        name = str(node.target)
        with graph.graph.inserting_after(inputs[-1]):
            if name in constants:
                graph.graph.call_function(must_be, (node, name, constants[name]))
            else:
                graph.graph.call_function(must_be_given, (node, name, _missing(arguments[name])))
    graph.recompile()


def must_be(value: Any, name: str, example: Any) -> Any:
    """Raise unless an argument is what the example had."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", must_be, (value, name, example), {})
    if value is not example and (type(value) is not type(example) or value != example):
        raise ValueError(f"optimize: {name} must be {said(example)}, as in the example; got {said(value)}")


def must_be_given(value: Any, name: str, missing: tuple[int, ...]) -> Any:
    """Raise where something is None that was not None in the example, or the other way round."""
    if type(value) is Tensor:
        return None
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", must_be_given, (value, name, missing), {})
    if _missing(value) != missing:
        raise ValueError(f"optimize: {name} must be given where the example has it; got {said(value)}")
    return None


def _missing(value: Any) -> tuple[int, ...]:
    """Which parts of a value are None."""
    return tuple(place for place, leaf in enumerate(_pytree.tree_leaves(value)) if leaf is None)
