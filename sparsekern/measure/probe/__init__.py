"""The integration probe: does a layer do everything that a user of PyTorch expects of a layer?

Each probe is a function of a *subject* (a layer and its float64 reference) that raises where the layer falls short.
They are what trips sparse layers in practice: state_dict into a fresh module, deepcopy and pickle, other dtypes,
autocast, compile, export, vmap, double backward, odd strides and batches, and weights written behind the layer's back.

    sparsekern probe          prints the table: one row per probe, one column per layer
"""

from sparsekern.measure.probe import modules, transforms, values  # noqa: F401  they fill PROBES
from sparsekern.measure.probe.core import PROBES, DoesNotApply, Subject, run_one
from sparsekern.measure.probe.layers import subjects

__all__ = ["PROBES", "DoesNotApply", "Subject", "run_one", "subjects"]
