"""Where a model's time, parameters, FLOPs and memory go: ``profile(model, x)`` per layer, ``count(model, shape)`` in all."""

from sparsekern.profile.count import count
from sparsekern.profile.layers import LayerProfile, Profile, profile, profile_together

__all__ = ["LayerProfile", "Profile", "count", "profile", "profile_together"]
