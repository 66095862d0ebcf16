"""Models in, models out: the same function, computed faster."""

from sparsekern.transform.optimize import optimize
from sparsekern.transform.report import OptimizeReport

__all__ = ["OptimizeReport", "optimize"]
