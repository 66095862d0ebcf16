"""What a profile or a count leaves behind: buffers, arguments and caught errors; and the work that torch's counter does not know."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsekern.nn import SparseLinear
from sparsekern.profile import profile
from sparsekern.profile.count import count

BARE = {"rounds": 1, "twins": False, "memory": False}


def flops(model, x, **options):
    return {layer.name: layer.flops for layer in profile(model, x, **BARE, **options).layers}


class Restless(nn.Module):
    """Writes into one buffer, puts another tensor into the place of the second, and reads a third."""

    def __init__(self):
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("read", torch.tensor([float("nan"), 1.0]))
        self.linear = SparseLinear(4, 4, fan_in=2, seed=0)

    def forward(self, x):
        self.written.add_(1)
        self.replaced = self.replaced + 1
        return self.linear(x)


@pytest.mark.parametrize("run", [profile, lambda *a, **_: count(a[0], (4,)), lambda *a, **k: profile(*a, backward=True, **k)])
def test_buffers_are_left_as_they_were(run):
    model = Restless()
    before = dict(model.named_buffers())
    versions = model.read._version, model.linear.index._version
    run(model, torch.randn(2, 4), **BARE)
    assert all(buffer is before[name] for name, buffer in model.named_buffers())
    assert not model.written.any() and not model.replaced.any()
    assert (model.read._version, model.linear.index._version) == versions  # writing into an index table drops its plan


def test_arguments_are_left_as_they_were():
    x = torch.full((2, 4), -1.0)
    found = []
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    model[0].register_forward_pre_hook(lambda module, args: found.append(args[0].clone()))
    profile(model, x, rounds=1)
    assert bool((x == -1).all()) and all(torch.equal(seen, x) for seen in found)
    x.requires_grad_().grad = (grad := torch.ones(2, 4))
    assert flops(nn.Linear(4, 3), x, backward=True) == {"(model)": 3 * 2 * 2 * 12}
    assert x.grad is grad and bool((grad == 1).all())


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        self.linear(x)
        raise RuntimeError


class Catches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fails, self.linear = Fails(), nn.Linear(4, 4)

    def forward(self, x):
        try:
            self.fails(x)
        except RuntimeError:
            return self.linear(x)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=False))


def test_modules_left_by_an_error_count_once():
    found = flops(Catches(), torch.randn(2, 4))
    assert (found["fails.linear"], found["linear"], sum(found.values())) == (64, 64, 128)
    found = flops(Checkpointed(), torch.randn(2, 4), backward=True)
    assert min(found.values()) >= 0
    assert sum(found.values()) == (3 + 1 + 5) * 64  # forward, the first layer again, five gradients


@pytest.mark.parametrize(
    ("conv", "shape", "positions"),
    [
        (lambda: nn.Conv2d(8, 8, 3, groups=4), (8, 3, 6), 4),
        (lambda: nn.Conv1d(8, 8, 3, groups=2), (8, 6), 4),
        (lambda: nn.ConvTranspose2d(8, 8, 3, stride=2, groups=4), (8, 2, 3), 6),
    ],
)
def test_gradients_of_filter_groups(conv, shape, positions):
    layer = conv()
    forward = 2 * layer.weight.numel() * positions
    assert flops(layer, torch.randn(1, *shape), backward=True) == {"(model)": 2 * forward}
    assert flops(layer, torch.randn(1, *shape, requires_grad=True), backward=True) == {"(model)": 3 * forward}


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(16, 4, batch_first=True), need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


ATTENTION = 2 * 10 * 4 * 16 * 16 + 2 * 2 * 10 * 10 * 16  # four projections; scores, and their use


@pytest.mark.parametrize(
    ("model", "shape", "by_hand"),
    [
        (lambda: Attention(False), (10, 16), ATTENTION),
        (lambda: Attention(True), (10, 16), ATTENTION),
        (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (10, 16), ATTENTION + 2 * 2 * 10 * 16 * 32),
        (lambda: nn.LSTM(4, 5, batch_first=True, bidirectional=True), (7, 4), 2 * 2 * 7 * 4 * 5 * (4 + 5)),
    ],
)
def test_attention_and_recurrent_layers_by_hand(model, shape, by_hand):
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert count(model(), shape).flops == by_hand
    assert sum(flops(model().eval(), torch.randn(1, *shape)).values()) == by_hand
    assert torch.backends.mha.get_fastpath_enabled() is enabled


def test_weights_computed_anew_count_every_time():
    model = nn.Sequential(*[nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)) for _ in range(50)])
    assert [count(model, (8,), "deep_roots").params for _ in range(3)] == [50 * 72] * 3
