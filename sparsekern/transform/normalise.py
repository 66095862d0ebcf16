"""Local response normalisation in channels_last: torch's goes through a pooling in three dimensions and a power, half of AlexNet's time."""

from __future__ import annotations

from torch import Tensor, fx, nn

from sparsekern.transform.graph import layers, only_call, replace_module, seen_dim


class LocalResponseNorm(nn.Module):
    """What ``nn.LocalResponseNorm`` with ``beta=0.75`` computes: ``x / (k + alpha/size * sum of squares near by)^0.75``.

    The channels near by are side by side in memory, so the sum is ``size`` additions of the whole image against itself, and
    ``d^-0.75`` is ``d^-0.5`` times its own root.
    """

    def __init__(self, norm: nn.LocalResponseNorm):
        super().__init__()
        self.size, self.alpha, self.k = norm.size, norm.alpha, norm.k

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 2, 3, 1)  # [N, H, W, C]
        channels = image.shape[3]
        square = nn.functional.pad(image * image, (self.size // 2, (self.size - 1) // 2))
        total = square[..., :channels].clone()
        for first in range(1, self.size):
            total += square[..., first : first + channels]
        root = total.mul_(self.alpha / self.size).add_(self.k).rsqrt_()
        return root.sqrt().mul_(root).mul_(image).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta=0.75, k={self.k}"


def swap_local_response_norms(graph: fx.GraphModule) -> list[str]:
    """Every normalisation of images that :class:`LocalResponseNorm` can do, by name. For graphs whose images are channels_last and
    that :func:`record` ran: torch's normalises rows ``[N, C, L]`` too."""
    swapped = []
    for node, norm in layers(graph, nn.LocalResponseNorm):
        if type(norm) is nn.LocalResponseNorm and norm.beta == 0.75 and norm.size > 0 and only_call(graph, node) and seen_dim(node) == 4:
            replace_module(graph, node, LocalResponseNorm(norm))
            swapped.append(str(node.target))
    return swapped
