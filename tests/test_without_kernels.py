"""A build without a compiler: no library beside the package, every op and layer served by its reference, and it says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "sparsekern"

CODE = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, sparsekern as sk
from sparsekern.ops import OPS, backends
assert sk.__file__.startswith(sys.argv[1]), sk.__file__
assert "without a C++ compiler" in backends.missing and backends.providers() == ["reference"]
layers = {
    sk.SparseLinear(24, 12, density=0.5): (3, 24),
    sk.StochasticConv2d(6, 12, 3, padding=1, density=0.4): (2, 6, 5, 5),
    sk.GroupedConv2d(6, 12, 3, groups=3): (2, 6, 5, 5),
}
for layer, shape in layers.items():
    x = torch.randn(shape, requires_grad=True)
    out = layer(x)
    assert torch.allclose(out, layer.to_dense()(x), atol=1e-5)
    out.sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    assert layer.explain().endswith("served by reference")
for op in OPS.values():
    for sample in op.samples(torch.device("cpu"), torch.float32):
        op.function(**sample.inputs)
print("served by", *{backends.serves(op) for op in OPS})
"""


def test_references_serve_everything(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "sparsekern", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "served by" in done.stdout and "avx" not in done.stdout
