"""What is not compared is the fastest there is, for all competitors alike: poolings, and the dense linear layers.

A model's whole time in NCHW is decided by torch's scalar max-pool; a classifier of many weights by how they are read.
The same module (or the same kind, in each layout) serves torch's models and ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsekern.reproduce.timed.competitors import CHANNELS_LAST, FORMATS
from sparsekern.reproduce.timed.rivals import PrepackedLinear, torch_linear

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
MOST_IMAGES = 4  # more do not change which pooling is fastest
TRIES = 5


def is_helper(module: nn.Module) -> bool:
    """Whether ``module`` is a pooling, or a linear layer without structure."""
    return isinstance(module, POOLS) or type(module) is nn.Linear


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
        kernel_size, stride, padding, dilation = self.window
        return torch.mkldnn_max_pool2d(x.to_mkldnn(), kernel_size, stride, padding, dilation, self.ceil_mode).to_dense()


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class FastestHelpers:
    """Chooses, and remembers by kind and input shape: the layers of all variants of a table meet much the same shapes."""

    def __init__(self) -> None:
        self._chosen: dict[tuple, int] = {}

    def choose(self, model: nn.Module, layout: str, inputs: Mapping[str, Tensor]) -> dict[str, nn.Module]:
        """For each helper of ``model``, the fastest module that gives the same result in ``layout``.

        Args:
            inputs: the tensor that meets each helper, by module path.
        """
        return {path: self._fastest(path, model.get_submodule(path), layout, x) for path, x in inputs.items()}

    def _fastest(self, path: str, module: nn.Module, layout: str, x: Tensor) -> nn.Module:
        key = (repr(module), tuple(x.shape), layout)
        candidates = _candidates(module, layout)
        if key not in self._chosen:
            if x.dim() == 4:
                x = x[:MOST_IMAGES].contiguous(memory_format=FORMATS[layout])
            expected = module(x)
            # A pooling is compared with its own float32 result; a linear layer stands before the gate like any other.
            same = [torch.allclose(c(x), expected, rtol=1e-6, atol=1e-6) for c in candidates] if x.dim() == 4 else [True]
            assert all(same), f"{path}: candidate {same.index(False)} pools differently"
            self._chosen[key] = _fastest_of(candidates, x) if len(candidates) > 1 else 0
        return candidates[self._chosen[key]]


def _candidates(module: nn.Module, layout: str) -> list[nn.Module]:
    if isinstance(module, nn.Linear):
        plain = torch_linear(module)
        has_mkl = torch.backends.mkl.is_available() and module.weight.dtype == torch.float32
        return [plain, torch_linear(module, PrepackedLinear)] if has_mkl else [plain]
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return [module, _Mean()] if module.output_size in (1, (1, 1)) else [module]
    if layout == CHANNELS_LAST:
        return [module]
    candidates = [module, _ViaChannelsLast(module)]
    # oneDNN's average divides a window that hangs over the edge by another count than torch: only the maximum is equal.
    if isinstance(module, nn.MaxPool2d) and torch.backends.mkldnn.is_available():
        candidates.append(_MaxPoolViaOneDNN(module))
    return candidates


def _fastest_of(candidates: list[nn.Module], x: Tensor) -> int:
    """Position of the candidate with the shortest of a few interleaved calls."""
    best_s = [float("inf")] * len(candidates)
    for _ in range(TRIES):
        for i, candidate in enumerate(candidates):
            candidate(x)
            start = time.perf_counter()
            candidate(x)
            best_s[i] = min(best_s[i], time.perf_counter() - start)
    return best_s.index(min(best_s))
