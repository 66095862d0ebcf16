"""Activations of any layers of a model, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

INPUT = ":in"


def record(model: nn.Module, names: Sequence[str], batches: Iterable[Tensor | Sequence]) -> Iterator[dict[str, Tensor]]:
    """Run ``model`` and yield what the named layers compute, one batch at a time.

    The model runs as for inference, without gradients; afterwards each of its modules trains or not as before, and no hook is left,
    even where the loop is left early or the model fails.

    Args:
        model: any module.
        names: of layers, as in ``model.named_modules()``: ``"conv3a"`` is a layer's output, ``"conv3a:in"`` its (first) input.
        batches: inputs, or tuples whose first entry is the input, as of a ``DataLoader``.

    Yields:
        ``{name: [N, C, H, W] or [N, C]}``, copies: a ReLU that works in place behind a layer changes nothing here.

    Raises:
        ValueError: ``record: names must be of layers of the model; got 'conv9'``;
            ``record: names must be of layers that run once per batch; got 'relu', which ran 3 times``

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True))
        >>> [{name: list(x.shape) for name, x in batch.items()} for batch in record(net, ["0", "1:in"], [torch.randn(5, 4)])]
        [{'0': [5, 8], '1:in': [5, 8]}]
    """
    layers = dict(model.named_modules())
    for name in names:
        if name.removesuffix(INPUT) not in layers:
            raise ValueError(f"record: names must be of layers of the model; got {name!r}")
    found: dict[str, Tensor] = {}
    runs = dict.fromkeys(names, 0)

    def keep(name: str, value: object) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"record: names must be of layers with a tensor; got {name!r}, whose is a {type(value).__name__}")
        runs[name] += 1
        found[name] = value.detach().clone()

    def hook(name: str) -> RemovableHandle:
        layer = layers[name.removesuffix(INPUT)]
        if name.endswith(INPUT):
            return layer.register_forward_pre_hook(lambda _, inputs: keep(name, inputs[0] if inputs else None))
        return layer.register_forward_hook(lambda _, __, output: keep(name, output))

    trains = {module: module.training for module in model.modules()}
    hooks = [hook(name) for name in runs]
    try:
        model.eval()
        for batch in batches:
            found, runs = {}, dict.fromkeys(names, 0)
            with torch.no_grad():
                model(batch if isinstance(batch, Tensor) else batch[0])
            for name, times in runs.items():
                if times != 1:
                    ran = "did not run" if times == 0 else f"ran {times} times"
                    raise ValueError(f"record: names must be of layers that run once per batch; got {name!r}, which {ran}")
            yield found
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in trains.items():
            module.training = training
