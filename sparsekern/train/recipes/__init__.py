"""The papers' recipes, one file per family; importing registers them."""

from sparsekern.train.recipes import deep_roots, digits, patterns, simplenet, sis

__all__ = ["deep_roots", "digits", "patterns", "simplenet", "sis"]
