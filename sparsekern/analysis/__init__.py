"""What a trained network learned to connect: covariance and correlation of recorded activations, whitened, and their block structure."""

from sparsekern.analysis.blocks import BlockScore, block_diagonality
from sparsekern.analysis.covariance import LayerPair, inter_layer, intra_layer, layer_pairs
from sparsekern.analysis.plot import plot_heat_maps
from sparsekern.analysis.record import record
from sparsekern.analysis.whiten import zca

__all__ = ["BlockScore", "LayerPair", "block_diagonality", "inter_layer", "intra_layer", "layer_pairs", "plot_heat_maps", "record", "zca"]
