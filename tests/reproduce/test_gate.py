"""The gate: a right kernel passes in either layout, and each kind of wrong one does not, in any shape of model."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsekern.models.parts import add_relu
from sparsekern.nn import GroupedConv2d, SparseLinear, SpatialBasisConv2d, StochasticConv2d
from sparsekern.reproduce.timed import bench as bench_module
from sparsekern.reproduce.timed import competitors
from sparsekern.reproduce.timed.bench import Bench
from sparsekern.reproduce.timed.competitors import CHANNELS_LAST, NCHW, Competitor, our_competitors, torch_competitors
from sparsekern.reproduce.timed.gate import WrongResult, layer_truth
from sparsekern.reproduce.timed.rivals import CsrLinear, PrepackedConv2d, torch_conv
from sparsekern.reproduce.timed.variants import Variant


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def bench():
    return Bench(Variant("nin_root_8"), noise(3, 3, 32, 32))


@pytest.mark.parametrize("competitor", torch_competitors(), ids=lambda competitor: competitor.name)
def test_torch_passes(bench, competitor):
    ((stack, model),) = bench.checked([competitor])
    with torch.inference_mode():
        stack()
        assert model().shape == (3, 10)


@pytest.mark.parametrize("competitor", [c for c in our_competitors() if not c.optimizes], ids=lambda competitor: competitor.name)
@pytest.mark.parametrize("model_name", ["nin", "nin_root_4", "nin_tree_16", "nin_col_16"])
def test_ours_passes_and_says_who_serves(model_name, competitor):
    bench = Bench(Variant(model_name), noise(2, 3, 32, 32, seed=1))
    bench.checked([competitor])
    served = bench.served[competitor.name]
    assert list(served) == [f"conv{level}{layer}" for level in "123" for layer in "abc"]
    assert all(who.split()[0] in ("sparsekern", "torch", "served") for who in served.values())


def test_an_optimized_model_is_checked_and_timed_as_a_whole(monkeypatch):
    bench = Bench(Variant("nin_root_4"), noise(2, 3, 32, 32, seed=1))
    (whole,) = [c for c in our_competitors() if c.optimizes]
    assert set(bench.callables("ours", [whole])) == {("model", "ours", whole.name)}
    assert bench.served[whole.name] == {"whole model": f"sparsekern optimize: {bench.models[whole.name].report.chosen}"}
    monkeypatch.setattr(competitors, "optimize", lambda model, *example, **options: lambda x: model(x) * (1 + 1e-3))
    with pytest.raises(WrongResult, match=r"output of nin_root_4 by sparsekern\.optimize"):
        bench.checked([whole])


class Forgetful(nn.Conv2d):
    """Leaves out the last input channel of each group: off by little, and only where there is more than one channel."""

    def forward(self, x):
        weight = self.weight.clone()
        weight[:, -1] = 0
        return self._conv_forward(x, weight, self.bias)


class Biasless(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class HalfPrecision(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()


class NotANumber(nn.Conv2d):
    def forward(self, x):
        out = super().forward(x)
        out[..., -1, -1] = float("nan")
        return out


class LastImage(nn.Conv2d):
    def forward(self, x):
        out = super().forward(x)
        out[-1] = out[0]
        return out


class ReLUless(nn.Conv2d):
    """Says that it computes the ReLU, and does not."""

    def __init__(self, *args, activation="none", **options):
        super().__init__(*args, **options)


class TooSmall(nn.Conv2d):
    def forward(self, x):
        return super().forward(x)[..., 1:]


@pytest.mark.parametrize("wrong", [Forgetful, Biasless, HalfPrecision, NotANumber, LastImage, ReLUless, TooSmall])
@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST])
def test_a_wrong_kernel_is_stopped_by_name(bench, wrong, layout):
    sentence = "conv1a of nin_root_8 by wrong must be within the float32 bound of the float64 result; got .* beyond it"
    with pytest.raises(WrongResult, match=sentence):
        bench.checked([Competitor("wrong", layout, wrong)])


def test_the_wrong_one_among_right_ones_is_named(bench):
    with pytest.raises(WrongResult, match="conv1a of nin_root_8 by wrong must"):
        bench.checked([*torch_competitors(), Competitor("wrong", NCHW, Biasless)])


def test_right_layers_in_a_wrong_model_are_stopped(monkeypatch):
    swapped = Bench(Variant("nin_root_8"), noise(3, 3, 32, 32))
    assert isinstance(swapped.helpers[NCHW]["pool1"], nn.Module)
    swapped.helpers[NCHW]["pool1"] = nn.AvgPool2d(3, stride=2, ceil_mode=True)
    with pytest.raises(WrongResult, match=r"output of nin_root_8 by nn\.Conv2d NCHW must be within"):
        swapped.checked(torch_competitors()[:1])


# ---- models of every shape: residual, concatenated, masked, with linear layers


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = GroupedConv2d(3, 16, 3, padding=1, activation="relu")
        self.block = nn.ModuleDict(
            {"grouped": GroupedConv2d(16, 16, 3, padding=1, groups=4, activation="relu"), "last": GroupedConv2d(16, 16, 1)}
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = add_relu(self.block["last"], self.block["grouped"](x), x)
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(GroupedConv2d(3, 8, 1, activation="relu"), GroupedConv2d(8, 8, 5, padding=2, groups=2, activation="relu"))
        self.right = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), GroupedConv2d(3, 8, 1, activation="relu"))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(torch.cat((self.left(x), self.right(x)), 1)).flatten(1)


def unequal():
    sizes = [(4, 8), (8, 8), (4, 4)]
    conv = GroupedConv2d(16, 20, 3, padding=1, group_sizes=sizes, activation="relu")
    return nn.Sequential(
        GroupedConv2d(3, 16, 1), conv, SpatialBasisConv2d(20, 8, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def masked():
    conv = StochasticConv2d(3, 16, 3, padding=1, density=0.25, seed=0)
    return nn.Sequential(
        conv, nn.ReLU(), nn.MaxPool2d(2), GroupedConv2d(16, 8, 1, bias=False, activation="relu"), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def linear():
    return nn.Sequential(nn.Flatten(), SparseLinear(192, 32, fan_in=8, seed=0), nn.ReLU(inplace=True), nn.Linear(32, 5))


BUILDERS = {"residual": Residual, "concat": Concat, "masked": masked, "linear": linear, "unequal": unequal}
LAYERS = {
    "residual": ["stem", "block.grouped", "block.last", "head"],
    "concat": ["left.0", "left.1", "right.1"],
    "masked": ["0", "3", "5"],
    "linear": ["1", "3"],
    "unequal": ["0", "1", "2"],
}
SPARSE = {"residual": ["block.grouped"], "concat": ["left.1"], "masked": ["0"], "linear": ["1"], "unequal": ["1", "2"]}


class Tiny(Variant):
    """One of the models above, without a card."""

    def build(self):
        torch.manual_seed(0)
        return BUILDERS[self.model]().eval().requires_grad_(False)


@pytest.fixture
def tiny(monkeypatch):
    """Makes a bench of a model above; the counts of registered models are not asked for."""
    monkeypatch.setattr(bench_module.recount, "counted", lambda *args, **options: SimpleNamespace(flops=2, params=1, layers=[]))

    def make(name, batch=2, **options):
        return Bench(Tiny(name), noise(batch, 3, 8, 8), **options)

    return make


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_shape_of_model_passes_in_every_way(tiny, name, batch):
    bench = tiny(name, batch, stack_of="connected layers" if name == "linear" else "convolutions")
    assert (list(bench.layers), bench.sparse) == (LAYERS[name], SPARSE[name])
    assert bench.stack == (["1", "3"] if name == "linear" else [path for path in LAYERS[name] if path not in ("head", "5")])
    everybody = [*torch_competitors(sparse_linear=bench.has_sparse_linear), *our_competitors()]
    before = {key: value.clone() for key, value in bench.model.state_dict().items()}
    with torch.inference_mode():
        outs = []
        for stack, model in bench.checked(everybody):
            if stack is not None:
                stack()
            outs.append(model())
    for out in outs:
        torch.testing.assert_close(out, outs[0])
    assert all(torch.equal(before[key], value) for key, value in bench.model.state_dict().items())
    assert all(p.is_contiguous() for p in bench.model.parameters()), "a competitor changed the shared weights"


@pytest.mark.parametrize(("name", "path"), [("residual", "stem"), ("concat", "left.0"), ("masked", "0")])
def test_a_wrong_layer_anywhere_is_stopped_by_its_path(tiny, name, path):
    with pytest.raises(WrongResult, match=rf"reproduce: {path} of {name} by wrong must be within the float32 bound"):
        tiny(name).checked([Competitor("wrong", NCHW, Forgetful, nn.Linear)])


def test_a_wrong_linear_layer_is_stopped_by_its_path(tiny):
    class Shortened(nn.Linear):
        def forward(self, x):
            return super().forward(x[:, :-1] @ torch.eye(x.shape[1])[:-1])

    assert tiny("linear").model[1].index.max() == 191, "the last input must be read for this test"
    with pytest.raises(WrongResult, match="reproduce: 1 of linear by wrong must be within the float32 bound"):
        tiny("linear").checked([Competitor("wrong", NCHW, nn.Conv2d, Shortened)])


class ShortcutLost(PrepackedConv2d):
    def add_relu(self, x, shortcut):
        return self(x).relu_()


class ShortcutTwice(PrepackedConv2d):
    def add_relu(self, x, shortcut):
        return super().add_relu(x, 2 * shortcut)


@pytest.mark.parametrize("wrong", [ShortcutLost, ShortcutTwice])
def test_a_wrong_sum_with_the_shortcut_is_stopped(tiny, wrong):
    with pytest.raises(WrongResult, match=r"reproduce: add_relu of block\.last of residual by wrong must be within"):
        tiny("residual").checked([Competitor("wrong", CHANNELS_LAST, wrong)])


def test_a_lost_branch_is_stopped_by_the_output(tiny):
    bench = tiny("concat")
    bench.helpers[NCHW]["right.0"] = nn.Identity()
    with pytest.raises(WrongResult, match=r"output of concat by nn\.Conv2d NCHW must be within"):
        bench.checked(torch_competitors()[:1])


def test_add_relu_of_the_rival_is_one_call_that_hooks_see():
    conv = PrepackedConv2d(8, 4, 1)
    x, shortcut = (noise(1, c, 5, 5).contiguous(memory_format=torch.channels_last) for c in (8, 4))
    seen = []
    conv.register_forward_hook(lambda module, args, out: seen.append(len(args)))
    with torch.no_grad():
        kept = shortcut.clone()
        out = conv.add_relu(x, shortcut)
        expected = nn.functional.conv2d(x, conv.weight, conv.bias).add(shortcut).relu()
    torch.testing.assert_close(out, expected)
    assert seen == [2] and torch.equal(shortcut, kept)


def test_the_truth_of_a_mask_needs_no_kernel_of_ours():
    layer = StochasticConv2d(4, 8, 3, padding=1, density=0.5, seed=0)
    x = noise(5, 4, 6, 6)
    truth = layer_truth(layer, x)
    expected = nn.functional.conv2d(x[[0, 4]].double(), layer.weight_dense().double(), layer.bias.double(), padding=1)
    torch.testing.assert_close(truth.out, expected.detach())
    kept = int((layer.weight_dense() != 0).flatten(1).sum(1).max())
    assert truth.images == [0, 4] and truth.terms == kept + 1 < 4 * 9 + 1
    assert isinstance(torch_conv(layer, nn.Conv2d), nn.Conv2d)


def test_csr_reads_only_the_kept_weights():
    layer = SparseLinear(16, 8, fan_in=4, seed=0)
    rival = Competitor("csr", NCHW, None, CsrLinear).build(nn.Sequential(layer), {})
    with torch.no_grad():
        torch.testing.assert_close(rival(noise(3, 16)), layer(noise(3, 16)))
    assert rival[0]._csr.values().numel() == 32


def test_other_devices_wait_for_their_kernels():
    with pytest.raises(ValueError, match="reproduce: device must be cpu, where the kernels are; got cuda"):
        Bench(Variant("nin"), noise(1, 3, 32, 32), device="cuda")
