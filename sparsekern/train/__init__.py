"""Training: the papers' recipes as data, one loop, and checkpoints that survive anything."""

from sparsekern.train import recipes
from sparsekern.train.checkpoint import load_checkpoint, save_checkpoint
from sparsekern.train.data import DATA, TrainingData, load_data
from sparsekern.train.dynamic import DrawnAnew, MovingConnections
from sparsekern.train.folders import ImageFolders
from sparsekern.train.loop import Trained, train
from sparsekern.train.model import build_model
from sparsekern.train.recipe import Optimiser, Recipe, Schedule, get_recipe, list_recipes, register_recipe

__all__ = [
    "DATA",
    "DrawnAnew",
    "ImageFolders",
    "MovingConnections",
    "Optimiser",
    "Recipe",
    "Schedule",
    "Trained",
    "TrainingData",
    "build_model",
    "get_recipe",
    "list_recipes",
    "load_checkpoint",
    "load_data",
    "recipes",
    "register_recipe",
    "save_checkpoint",
    "train",
]
