"""The feed-forward layers of a vision transformer with a fixed fan-in: which of them gain, and what the whole model gains.

    python examples/vit_feed_forward.py        a few seconds

Sizes are those of ViT-S/16 (384 wide, feed-forward 1536, 197 tokens), three of its twelve layers, with random weights: the times are
real, the errors are those of pruning noise.
"""

import torch
from torch import Tensor, nn

from sparsekern import FanIn, convert, to_dense


class VisionTransformer(nn.Module):
    """``[N, 3, 224, 224]`` to ``[N, 1000]``: patches, a class token, encoder layers of torch, a head."""

    def __init__(self, width: int = 384, layers: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 197, width))
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [N, 196, width]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


def main() -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(1, 3, 224, 224)
    plan = {"encoder.*.linear[12]": FanIn(density=0.1), "encoder.*.out_proj": FanIn(density=0.1)}
    sparse = convert(model, plan, example_input=x)
    print(sparse.report)  # attention reads the weights of its projection by itself: it says so, and stays

    blocks = convert(model, {"encoder.*.linear[12]": FanIn(density=0.1, block_size=16)}, example_input=x)
    print(blocks.report)

    with torch.no_grad():
        for name, made in (("fan-in", sparse), ("blocks", blocks)):
            print(f"{name}: differs from its dense twin by {float((to_dense(made)(x) - made(x)).abs().max()):.1e}")


if __name__ == "__main__":
    main()
