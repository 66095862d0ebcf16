"""Models of the papers, by name: ``create_model("nin_root_16")``."""

from sparsekern.models.group_plan import group_plan
from sparsekern.models.nin import NiN
from sparsekern.models.registry import create_model, list_models, register_model

__all__ = ["NiN", "create_model", "group_plan", "list_models", "register_model"]
