"""Where a model's time, parameters and FLOPs go: ``profile(model, x)`` per layer, ``count(model, shape)`` in all."""

from sparsekern.profile.count import count
from sparsekern.profile.layers import LayerProfile, Profile, profile

__all__ = ["LayerProfile", "Profile", "count", "profile"]
