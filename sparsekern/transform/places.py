"""Where layers stand in a model, and how they change places there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

FAST_PATH = "_fast_path_before"  # what an encoder of torch's was told before it was told to call its layers


class Entry(NamedTuple):
    """A place in a dictionary of a module, and what stands there before and after."""

    room: dict[str, Any]
    key: str
    before: Any
    after: Any


class Places:
    """Every place in which a layer of ``swaps`` stands, under all its names, and what else must know."""

    def __init__(self, holder: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> None:
        modules = list(holder.modules())
        self.entries = [
            Entry(parent._modules, name, child, swaps[child])
            for parent in modules
            for name, child in parent._modules.items()
            if child is not None and child in swaps
        ]
        for module in modules:
            if isinstance(module, nn.TransformerEncoderLayer) and {module.linear1, module.linear2} & swaps.keys():
                self._tell(module, "activation_relu_or_gelu", 0)
            elif any({layer.linear1, layer.linear2} & swaps.keys() for layer in _fused(module)):
                self._tell(module, "use_nested_tensor", False)

    def _tell(self, encoder: nn.Module, name: str, told: Any) -> None:
        """The fused encoder layers of torch read the weights of their linear layers; told so, they call the layers."""
        self.entries.append(Entry(vars(encoder), name, getattr(encoder, name), told))

    def put(self, *, after: bool) -> None:
        """Everything in its place, as it is before or after."""
        for room, key, before, there in self.entries:
            room[key] = there if after else before

    def keep(self) -> None:
        """The places as they are after, for good: encoders remember what they were told before."""
        self.put(after=True)
        for room, key, before, _ in self.entries:
            if key in ("activation_relu_or_gelu", "use_nested_tensor"):
                room.setdefault(FAST_PATH, (key, before))


def restore_fast_paths(model: nn.Module) -> None:
    """Let the encoders whose linear layers are torch's again do what they did before."""
    for module in model.modules():
        if FAST_PATH in vars(module):
            layers: list[Any] = _fused(module) or [module]
            if all(isinstance(linear, nn.Linear) for layer in layers for linear in (layer.linear1, layer.linear2)):
                key, before = vars(module).pop(FAST_PATH)
                setattr(module, key, before)


def _fused(encoder: nn.Module) -> list[nn.TransformerEncoderLayer]:
    """The layers of an ``nn.TransformerEncoder`` that torch may fuse; none of any other module."""
    if not isinstance(encoder, nn.TransformerEncoder):
        return []
    return [layer for layer in encoder.layers if isinstance(layer, nn.TransformerEncoderLayer)]
