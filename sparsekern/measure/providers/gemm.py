"""Providers of many small matrix products: ``grouped_mm`` against one batched product, a loop and torch's own.

equal    a [P, m, k]   b [P, k, n]                          →   out [P, m, n]
ragged   a [P*m, k]    b [P, k, n]   offsets [P] int32      →   out [P*m, n]    (the same rows, ends given)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.measure.cases import GemmCase
from sparsekern.measure.providers.common import Setup


def gemm_setup(case: GemmCase, mode: str = "fwd", layer: object = None, seed: int = 0) -> Setup:
    """All providers of ``case``; forward only, and ``layer`` is unused."""
    from sparsekern.ops import backends, grouped_mm

    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(case.batch, case.m, case.k, generator=generator).to(dtype)
    b = torch.randn(case.batch, case.k, case.n, generator=generator).to(dtype)
    rows, offsets = a.flatten(0, 1), torch.arange(1, case.batch + 1, dtype=torch.int32) * case.m
    setup = Setup(
        case,
        "fwd",
        reference={"out": torch.bmm(a.double(), b.double())},
        baseline="bmm",
        density=1.0,
        flops=case.flops,
        dense_flops=case.flops,
        dtype=dtype,
        layout="equal",
        bytes_moved=a.nbytes + b.nbytes + case.batch * case.m * case.n * a.element_size(),
    )

    def ragged(out: Tensor) -> dict[str, Tensor]:
        return {"out": out.view(case.batch, case.m, case.n)}

    serves = str(backends.serves("grouped_mm", "cpu"))
    setup.add("ours", lambda: lambda: grouped_mm(a, b), ours=True, layout="equal", served_by=serves)
    setup.add("ours_ragged", lambda: lambda: grouped_mm(rows, b, offsets), outputs=ragged, ours=True, layout="ragged", served_by=serves)
    setup.add("bmm", lambda: lambda: torch.bmm(a, b), layout="equal")
    setup.add("loop", lambda: lambda: torch.stack([torch.mm(x, w) for x, w in zip(a, b)]), layout="equal")
    setup.add("torch_grouped_mm", lambda: lambda: torch._grouped_mm(rows, b, offsets), outputs=ragged, layout="ragged")
    return setup
