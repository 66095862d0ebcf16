"""Whitening: the linear map after which variables have variance 1 and no covariance, staying as near as it can to what they were."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-10  # of the largest variance: a direction with less is taken to be constant


def zca(covariance: Tensor, *, smallest: float = SMALLEST) -> Tensor:
    """``W = P D^(-1/2) P'`` of ``covariance = P D P'``, so that ``W covariance W'`` is the identity.

    Directions without variance (a filter that is always 0, one that repeats others, fewer samples than filters) are left out: there
    ``W`` is 0 and the result a projection instead of the identity.

    Args:
        covariance: ``[c, c]``, symmetric.
        smallest: of the largest eigenvalue; directions below it count as without variance.

    Returns:
        ``[c, c]`` float64, symmetric.

    Raises:
        TypeError: ``zca: covariance must be a tensor; got ndarray``
        ValueError: ``zca: covariance must be square; got [2, 3]``, or real, or of at least one variable.

    Source:
        Ioannou et al., "Deep Roots", A.2, equations 4 to 8: ``W = sqrt(N-1) (X X')^(-1/2)``, the same map from the sum of products.

    Example:
        >>> covariance = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> w = zca(covariance)
        >>> torch.allclose(w @ covariance.double() @ w, torch.eye(2).double())
        True
    """
    if not isinstance(covariance, Tensor):
        raise TypeError(f"zca: covariance must be a tensor; got {type(covariance).__name__}")
    if covariance.is_complex():
        raise ValueError(f"zca: covariance must be real; got {covariance.dtype}")
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"zca: covariance must be square; got {list(covariance.shape)}")
    if covariance.numel() == 0:
        raise ValueError("zca: covariance must be of at least one variable; got none")
    values, vectors = torch.linalg.eigh(covariance.double())
    varies = values > smallest * values.max().clamp_min(0)
    scale = torch.where(varies, values, 1.0).rsqrt() * varies
    return (vectors * scale) @ vectors.T
