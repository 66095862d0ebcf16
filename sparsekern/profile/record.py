"""What one image makes a model do: the layers with weights that run, and the steps between them.

Layers are found by forward hooks: any module with a ``weight`` of its own of two or more dimensions counts, whatever its type. What
happens between them (ReLU, pooling, additions, ...) is seen as torch functions, called by modules or not.

A layer uses each of its weights once per output position. Positions are the output's elements over its channels, which are
``out_features``, ``out_channels``, or else the weight's first size: so condensed weights count as dense ones do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sparsekern.profile.conventions import LayerCount, Record, Step
from sparsekern.profile.meter import counting, kept_buffers


def record(model: nn.Module, input_shape: tuple[int, ...]) -> Record:
    """Run ``model`` once on an image of zeros, in eval mode, without gradients; it is left as it was found."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    recorder = Recorder()
    with _undisturbed(model, x.device), recorder.attached(model), counting() as counter, recorder, torch.no_grad():
        out = model(x)
    outputs = next((leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), 0)
    parameters = sum(p.numel() for p in model.parameters())
    return Record(list(recorder.layers.values()), recorder.steps, x.numel(), outputs, parameters, counter.get_total_flops())


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, and everything back as it was afterwards: modes, buffers, random state."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with kept_buffers(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---- what runs between the layers: the kind of step behind the name of a torch function

KINDS = {
    "relu": ("relu", "relu_"),
    "max_pool": ("max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices"),
    "avg_pool": ("avg_pool2d", "adaptive_avg_pool2d", "mean"),
    "add": ("add", "add_"),
    "softmax": ("softmax", "log_softmax"),
    "batch_norm": ("batch_norm",),
    "lrn": ("local_response_norm",),
    "dropout": ("dropout", "dropout_", "dropout2d"),
    "cat": ("cat", "concat", "concatenate"),
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


def _step(name: str, args: tuple, kwargs: dict, out: Any) -> Step | None:
    """The step that a call of the torch function ``name`` was; None for those that count nowhere."""
    kind = KIND_OF.get(name)
    out = out[0] if isinstance(out, tuple) else out  # pooling may return indices too
    if kind is None or not isinstance(out, Tensor):
        return None
    x: Any = args[0] if args else kwargs.get("input")
    if kind == "add":
        other = args[1] if len(args) > 1 else kwargs.get("other")
        two_maps = isinstance(x, Tensor) and isinstance(other, Tensor) and x.shape == other.shape
        return Step(kind, out.numel()) if two_maps else None  # a number or a bias that is added is no layer
    if name == "mean" and not _over_maps(x, args[1] if len(args) > 1 else kwargs.get("dim")):
        return None
    if name == "mean" or "adaptive" in name:
        return Step(kind, out.numel(), x.numel() // out.numel())
    if "pool" in kind:
        window = args[1] if len(args) > 1 else kwargs["kernel_size"]
        return Step(kind, out.numel(), math.prod(window) if isinstance(window, tuple | list) else window * window)
    if kind == "lrn":
        return Step(kind, out.numel(), args[1] if len(args) > 1 else kwargs["size"])
    return Step(kind, out.numel())


def _over_maps(x: Tensor, dims: int | tuple[int, ...] | None) -> bool:
    """Whether a mean over ``dims`` averages whole maps ``[N, C, ...]``: a global pooling."""
    dims = (dims,) if isinstance(dims, int) else dims or ()
    return x.dim() > 2 and sorted(dim % x.dim() for dim in dims) == list(range(2, x.dim()))


class Recorder(TorchFunctionMode):
    """Notes the layers that run (by hooks) and the steps between them (by torch function), of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, LayerCount] = {}
        self.steps: list[Step] = []
        self._seen: dict[int, Tensor] = {}  # what was counted, by id; kept alive, so that no id is given twice
        self._inside: list[tuple[str, ...]] = []  # kinds that a layer now running counts itself, fused or not

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        step = _step(getattr(func, "__name__", ""), args, kwargs or {}, out)
        if step is not None and step.kind == "batch_norm":
            held = [t for t in (*args[1:], *(kwargs or {}).values()) if isinstance(t, Tensor)]  # statistics, scale and shift
            scaled = any(isinstance(t, nn.Parameter) for t in held)
            new = not held or max([self._once(t) for t in held])
            step = replace(step, size=2 if scaled else 1, params=2 * out.shape[1] if new else 0)
        if step is not None:
            self._note(step)
        return out

    def _note(self, step: Step) -> None:
        if not any(step.kind in kinds for kinds in self._inside):
            self.steps.append(step)

    def _once(self, parameter: Tensor | None) -> int:
        """The elements of a tensor that is stored; 0 when asked again."""
        if not isinstance(parameter, Tensor) or id(parameter) in self._seen:
            return 0
        self._seen[id(parameter)] = parameter
        return parameter.numel()

    def layer(self, name: str, module: Any, x: Tensor, out: Tensor) -> None:
        """Note one run of a layer with weights."""
        weight = module.weight
        before = self.layers.get(name)
        channels = getattr(module, "out_features", None) or getattr(module, "out_channels", None) or weight.shape[0]
        positions = out.numel() // channels
        if getattr(module, "transposed", False):  # a transposed convolution uses each weight once per input position
            positions = x.numel() // module.in_channels
        self.layers[name] = LayerCount(
            name=name,
            kind=type(module).__name__,
            weight_shape=tuple(weight.shape),
            in_shape=tuple(x.shape[1:]),
            out_shape=tuple(out.shape[1:]),
            weights=before.weights if before else self._once(weight),
            biases=before.biases if before else self._once(getattr(module, "bias", None)),
            macs=weight.numel() * positions + (before.macs if before else 0),
            outputs=out.numel() + (before.outputs if before else 0),
            groups=getattr(module, "groups", 1),
            is_conv=weight.dim() > 2 and not hasattr(module, "out_features"),
        )

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        handles, wrapped = [], []
        for name, module in model.named_modules():
            if not _has_weights(module):
                continue
            handles += [
                module.register_forward_pre_hook(self._before),
                module.register_forward_hook(self._after(name), with_kwargs=True, always_call=True),
            ]
            if hasattr(module, "add_relu"):  # a fused end of a residual block need not pass the hooks
                wrapped.append((module, vars(module).get("add_relu")))
                module.add_relu = self._add_relu(name, module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, own in wrapped:
                del module.add_relu
                if own is not None:
                    module.add_relu = own

    def _before(self, module: nn.Module, args: tuple) -> None:
        self._inside.append(("relu",) if getattr(module, "activation", None) == "relu" else ())

    def _after(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            kinds = self._inside.pop()
            x = next((a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)), None)
            # an embedding reads its weight, it does not multiply by it
            if x is not None and x.is_floating_point() and isinstance(out, Tensor):
                self.layer(name, module, x, out)
                for kind in kinds:
                    self._note(Step(kind, out.numel()))

        return hook

    def _add_relu(self, name: str, module: Any) -> Callable:
        compute = module.add_relu

        def add_relu(x: Tensor, shortcut: Tensor) -> Tensor:
            before = self.layers.get(name)
            self._inside.append(("add", "relu"))
            try:
                out = compute(x, shortcut)
            finally:
                self._inside.pop()
            if self.layers.get(name) is before:
                self.layer(name, module, x, out)
            self._note(Step("add", out.numel()))
            self._note(Step("relu", out.numel()))
            return out

        return add_relu


def _has_weights(module: nn.Module) -> bool:
    """Whether a module computes with a weight of its own; norms over several dimensions scale, they do not mix."""
    own = {*module._parameters, *module._buffers, *getattr(module, "parametrizations", ())}
    weight = getattr(module, "weight", None) if "weight" in own else None
    return isinstance(weight, Tensor) and weight.dim() >= 2 and not hasattr(module, "normalized_shape")
