"""Who runs a convolutional model in a comparison: which convolution, in which layout, with which pooling.

Every competitor is built from the same model definition and gets the same weights, the same layout freedom, a fused
ReLU where it has one, and the fastest pooling there is for its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sparsekern.measure.protocol import interleave
from sparsekern.models.parts import ConvFactory, default_conv
from sparsekern.models.registry import create_model
from sparsekern.reproduce.gate import LayerTruth

NCHW, CHANNELS_LAST = "NCHW", "channels_last"
FORMATS = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


class PrepackedConv2d(nn.Conv2d):
    """The strongest dense rival on CPU: oneDNN with weights reordered beforehand and the ReLU fused.

    Takes the arguments of ``nn.Conv2d`` and ``activation``. The weight is packed at the first forward and never again,
    so this is for measuring frozen weights only.
    """

    def __init__(self, *args, activation: str = "none", **options):
        super().__init__(*args, **options)
        self.activation = activation
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *shape, self.activation, [], "")


@dataclass(frozen=True)
class Competitor:
    """A convolution in a layout; ``name`` is what tables and files call it."""

    name: str
    layout: str
    conv: ConvFactory

    def build(self, model_name: str, weights: Mapping[str, Tensor], pools: Mapping[str, nn.Module]) -> nn.Module:
        """The registered model with these weights and poolings, in this competitor's layout, ready for inference."""
        model = create_model(model_name, conv=self.conv)
        model.load_state_dict(weights)
        for name, pool in pools.items():
            model.add_module(name, pool)
        return model.eval().to(memory_format=FORMATS[self.layout])

    def served(self, model: nn.Module, truths: Mapping[str, LayerTruth]) -> dict[str, str]:
        """Who serves each layer's forward and why, in the words of its ``explain``; empty for layers without."""
        found = {}
        for name, truth in truths.items():
            layer = getattr(model, name)
            if hasattr(layer, "explain"):
                lines = layer.explain(tuple(truth.x.shape), channels_last=self.layout == CHANNELS_LAST).splitlines()
                forward = (" ".join(line.split()[1:]) for line in lines if line.split()[0] == "forward")
                found[name] = next(forward, lines[0].rpartition(", ")[2])
        return found

    def prepare(self, x: Tensor) -> Tensor:
        """``x [N, C, H, W]`` in this competitor's layout."""
        return x.contiguous(memory_format=FORMATS[self.layout])


def torch_competitors() -> list[Competitor]:
    """torch's own: the default first, then channels_last, then prepacked where this torch has oneDNN."""
    found = [
        Competitor("nn.Conv2d NCHW", NCHW, nn.Conv2d),
        Competitor("nn.Conv2d channels_last", CHANNELS_LAST, nn.Conv2d),
    ]
    if torch.backends.mkldnn.is_available():
        found.append(Competitor("oneDNN prepacked channels_last", CHANNELS_LAST, PrepackedConv2d))
    return found


def our_competitors() -> list[Competitor]:
    """:class:`sparsekern.nn.GroupedConv2d` with natural (unpacked) weights in both layouts."""
    conv = default_conv()
    return [Competitor(f"GroupedConv2d {layout}", layout, conv) for layout in FORMATS]


# ---- pooling


class _ViaChannelsLast(nn.Module):
    """Pool an NCHW tensor in channels_last and bring it back: two copies, but torch's NCHW max-pool is scalar."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.contiguous(memory_format=torch.channels_last)).contiguous()


class _MaxPoolViaOneDNN(nn.Module):
    """Pool an NCHW tensor as oneDNN's opaque tensor."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        window = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        self.window = [[v, v] if isinstance(v, int) else list(v) for v in window]
        self.ceil_mode = pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_max_pool2d(x.to_mkldnn(), *self.window, self.ceil_mode).to_dense()


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def fastest_pools(model: nn.Module, layout: str, pool_inputs: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """For each pooling of ``model``, the fastest module that gives the same result in ``layout``.

    Args:
        pool_inputs: the tensor that meets each pooling, by the pooling's name.
    """
    chosen = {}
    for name, x in pool_inputs.items():
        x = x.contiguous(memory_format=FORMATS[layout])
        expected = getattr(model, name)(x)
        callables = {}
        candidates = _pool_candidates(getattr(model, name), layout)
        for i, candidate in enumerate(candidates):
            assert torch.allclose(candidate(x), expected, rtol=1e-6, atol=1e-6), f"{name} candidate {i} pools differently"
            callables[str(i)] = partial(candidate, x)
        times = interleave(callables, rounds=5, min_time_ms=1.0) if len(candidates) > 1 else {}
        chosen[name] = candidates[int(min(times, key=lambda i: times[i].median_us, default=0))]
    return chosen


def _pool_candidates(pool: nn.Module, layout: str) -> list[nn.Module]:
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return [pool, _Mean()]
    if layout == CHANNELS_LAST:
        return [pool]
    candidates = [pool, _ViaChannelsLast(pool)]
    # oneDNN's average divides a window that hangs over the edge by another count than torch: only the maximum is equal.
    if isinstance(pool, nn.MaxPool2d) and torch.backends.mkldnn.is_available():
        candidates.append(_MaxPoolViaOneDNN(pool))
    return candidates
