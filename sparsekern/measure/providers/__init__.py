"""From a case to callables: ours and every rival on the same inputs, checked against float64 before they are timed."""

from collections.abc import Callable

from sparsekern.measure.providers.common import Provider, Setup, relative_error
from sparsekern.measure.providers.conv import conv_setup
from sparsekern.measure.providers.gemm import gemm_setup
from sparsekern.measure.providers.linear import linear_setup

SETUPS: dict[str, Callable[..., Setup]] = {
    "sparse_linear": linear_setup,
    "grouped_conv2d": conv_setup,
    "sparse_conv2d": conv_setup,
    "grouped_mm": gemm_setup,
}

__all__ = ["SETUPS", "Provider", "Setup", "conv_setup", "gemm_setup", "linear_setup", "relative_error"]
