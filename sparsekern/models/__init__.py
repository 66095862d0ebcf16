"""Models of the papers, by name: ``create_model("nin_root_16")``."""

from sparsekern.models.alexnet import AlexNet
from sparsekern.models.checkpoint import LoadReport, load_dense
from sparsekern.models.form import form_stochastic
from sparsekern.models.googlenet import GoogLeNet
from sparsekern.models.group_plan import group_plan
from sparsekern.models.nin import NiN
from sparsekern.models.patterns import PatternNet
from sparsekern.models.registry import ModelCard, create_model, list_models, model_card, register_model
from sparsekern.models.resnet import ResNet
from sparsekern.models.simplenet import SimpleNet
from sparsekern.models.sis import sis_nin

__all__ = [
    "AlexNet",
    "GoogLeNet",
    "LoadReport",
    "ModelCard",
    "NiN",
    "PatternNet",
    "ResNet",
    "SimpleNet",
    "create_model",
    "form_stochastic",
    "group_plan",
    "list_models",
    "load_dense",
    "model_card",
    "register_model",
    "sis_nin",
]
