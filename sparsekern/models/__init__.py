"""Models of the papers, by name: ``create_model("nin_root_16")``."""

from .group_plan import group_plan
from .nin import NiN
from .registry import create_model, list_models, register_model

__all__ = ["NiN", "create_model", "group_plan", "list_models", "register_model"]
