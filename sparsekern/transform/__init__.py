"""Models in, models out: the same function, computed faster, or one of fewer connections, and back."""

from sparsekern.transform.convert import convert
from sparsekern.transform.convert_report import ConvertReport, LayerReport
from sparsekern.transform.optimize import optimize
from sparsekern.transform.report import OptimizeReport
from sparsekern.transform.rules import FanIn, Groups, Root, Stochastic
from sparsekern.transform.to_dense import to_dense

__all__ = [
    "ConvertReport",
    "FanIn",
    "Groups",
    "LayerReport",
    "OptimizeReport",
    "Root",
    "Stochastic",
    "convert",
    "optimize",
    "to_dense",
]
