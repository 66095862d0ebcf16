"""What every choice between our kernels and torch's asks on a GPU: the policy, and torch's flags."""

from __future__ import annotations

from typing import Any

import torch

from sparsekern.ops import backends, cuda_cost


def takes_torch(estimate: cuda_cost.Estimate) -> bool:
    """With policy "never" a kernel that does not take the sizes (:mod:`~sparsekern.ops.cuda_fits`) is asked all the same, and says so."""
    policy = backends.dense_policy()
    return policy == "always" or (policy == "auto" and not estimate.ours)


def tf32(of: Any, dtype: torch.dtype) -> bool:
    """Whether torch's flags allow ten bits of fraction. ``of``: torch.backends.cudnn or torch.backends.cuda.matmul."""
    if dtype != torch.float32:
        return False
    try:
        return of.allow_tf32
    except RuntimeError:  # set through the newer name
        return (of.conv if hasattr(of, "conv") else of).fp32_precision == "tf32"
