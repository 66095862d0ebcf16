"""The networks of "Characterizing Sparse Connectivity Patterns": their junctions, counts and densities."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from sparsekern.models import patterns
from sparsekern.models.registry import create_model, model_card
from sparsekern.nn import SparseLinear

# Dey et al., arXiv 1711.02131, section 2.2: neurons of the connected layers, and the weights of all of them fully connected (Table 1).
NETS = {
    "cifar10_conv_2cl": ((4096, 512, 16), 2_105_344),
    "cifar100_conv_2cl": ((4096, 512, 128), 2_162_688),
    "cifar10_conv_3cl": ((4096, 512, 256, 16), 2_232_320),
    "cifar100_conv_3cl": ((4096, 512, 256, 128), 2_260_992),
    "mnist_conv_2cl": ((3136, 784, 10), 2_466_464),
    "mnist_cl": ((784, 224, 10), 177_856),
    "morse_cl": ((64, 1024, 64), 131_072),
}
# Table 1: fan-outs, densities of the junctions in %, overall density in %. The last one prints 0.39 for 0.38497.
TABLE_1 = [
    ("cifar10_conv_2cl", (1, 1), "0.2,6.3", "0.22"),
    ("cifar10_conv_2cl", (1, 8), "0.2,50", "0.39"),
    ("cifar100_conv_2cl", (1, 1), "0.2,0.8", "0.21"),
    ("cifar100_conv_2cl", (1, 8), "0.2,6.3", "0.38"),
    ("cifar100_conv_2cl", (1, 32), "0.2,25", "0.95"),
    ("mnist_conv_2cl", (1, 5), "0.1,50", "0.29"),
    ("mnist_conv_2cl", (4, 10), "0.5,100", "0.83"),
    ("mnist_conv_2cl", (16, 10), "2,100", "2.35"),
    ("cifar10_conv_3cl", (1, 1, 1), "0.2,0.4,6.3", "0.22"),
    ("cifar10_conv_3cl", (1, 1, 8), "0.2,0.4,50", "0.3"),
    ("cifar100_conv_3cl", (1, 1, 1), "0.2,0.4,0.8", "0.22"),
    ("cifar100_conv_3cl", (1, 2, 32), "0.2,0.8,25", "0.59"),
    ("mnist_cl", (4, 10), "1.79,100", "3.02"),
    ("mnist_cl", (112, 10), "50,100", "50.63"),
    ("morse_cl", (512, 32), "50,50", "50"),
    ("cifar100_conv_3cl", (1, 1, 16), "0.2,0.4,13", "0.38"),
]
# The rows of Table 2 use these fan-outs (weights of the sparse junctions).
TABLE_2 = {
    "cifar10_conv_2cl": ((1, 1), 4_608),
    "cifar100_conv_2cl": ((1, 32), 20_480),
    "cifar10_conv_3cl": ((1, 1, 16), 8_704),
    "cifar100_conv_3cl": ((1, 2, 32), 13_312),
    "mnist_conv_2cl": ((16, 10), 58_016),
    "mnist_cl": ((112, 5), 88_928),
    "morse_cl": ((512, 32), 65_536),
}


def junctions(net):
    return [layer for name, layer in net.named_children() if name.startswith("junction")]


def weights(net):
    return [layer.weight.numel() for layer in junctions(net)]


@pytest.mark.parametrize("name", NETS)
def test_fully_connected_by_default(name):
    with torch.device("meta"):
        net = create_model(name)
    neurons, total = NETS[name]
    assert [(layer.in_features, layer.out_features) for layer in junctions(net)] == list(pairwise(neurons))
    assert all(type(layer) is nn.Linear for layer in junctions(net)) and sum(weights(net)) == total
    with torch.device("meta"):
        net = create_model(name, fan_out=neurons[1:])  # the same, said in numbers
    assert all(type(layer) is nn.Linear for layer in junctions(net))


@pytest.mark.parametrize(("name", "fan_out", "densities", "overall"), TABLE_1)
def test_densities_are_table_1(name, fan_out, densities, overall):
    neurons, total = NETS[name]
    with torch.device("meta"):
        kept = weights(create_model(name, fan_out=fan_out))
    assert kept == [left * edges for left, edges in zip(neurons, fan_out)]
    for printed, left, right, number in zip(densities.split(","), neurons, neurons[1:], kept):
        decimals = len(printed.partition(".")[2])
        assert abs(100 * number / (left * right) - float(printed)) <= 0.5 * 10**-decimals + 1e-9, printed
    decimals = len(overall.partition(".")[2])
    assert abs(100 * sum(kept) / total - float(overall)) <= 0.5 * 10**-decimals + 1e-9


@pytest.mark.parametrize("name", TABLE_2)
def test_sparse_weights_are_table_2(name):
    fan_out, total = TABLE_2[name]
    with torch.device("meta"):
        net = create_model(name, fan_out=fan_out)
    assert sum(weights(net)) == total
    kinds = [nn.Linear if edges == right else SparseLinear for edges, right in zip(fan_out, NETS[name][0][1:])]
    assert [type(layer) for layer in junctions(net)] == kinds


@pytest.mark.parametrize(("name", "params", "macs"), [("cifar10_conv_2cl", 1_145_408, 152_764_416), ("mnist_conv_2cl", 52_096, 10_662_400)])
def test_convolutions_are_table_2(name, params, macs):
    counted = []
    with torch.device("meta"):
        net = create_model(name).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out: counted.append(module.weight.numel() * out[0, 0].numel()))
    image = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    net(torch.empty(1, *image, device="meta"))
    convs = [parameter for key, parameter in net.named_parameters() if key.startswith("conv")]
    assert (sum(p.numel() for p in convs), sum(counted)) == (params, macs)


def test_layers_behind_each_other():
    names = [name for name, _ in create_model("cifar100_conv_3cl", conv=nn.Conv2d).named_children()]
    assert names[:7] == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "pool2"]
    assert names[-6:] == ["flatten", "junction1", "relu_junction1", "junction2", "relu_junction2", "junction3"]
    assert [n for n, _ in create_model("mnist_conv_2cl").named_children()][:4] == ["conv1", "pool1", "conv2", "pool2"]  # ReLU is fused
    assert [n for n, _ in create_model("mnist_conv_2cl", batch_norm=True).named_children()][:4] == ["conv1", "bn1", "relu1", "pool1"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in create_model("cifar10_conv_2cl", batch_norm=False).modules())


def test_every_neuron_has_the_same_number_of_edges_on_either_side():
    net = create_model("morse_cl", fan_out=(128, 8))
    for layer, left, fan_out in zip(junctions(net), (64, 1024), (128, 8)):
        edges = layer.weight_dense() != 0  # [right, left]
        assert (edges.sum(0) == fan_out).all() and (edges.sum(1) == left * fan_out // layer.out_features).all()


def test_a_seed_fixes_the_edges():
    one, two, other = (create_model("morse_cl", fan_out=(128, 8), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.junction1.index, two.junction1.index) and not torch.equal(one.junction1.index, other.junction1.index)


def test_numbers_of_numpy_are_pythons():
    one, two = (create_model("morse_cl", fan_out=(n(128), n(8)), seed=n(200)) for n in (int, np.uint8))
    assert all(torch.equal(a.index, b.index) for a, b in zip(junctions(one), junctions(two)))


def test_weights_are_drawn_by_the_true_fan_in():
    net = create_model("morse_cl", fan_out=(512, 64), generator=torch.Generator().manual_seed(0))
    assert (type(net.junction1), type(net.junction2)) == (SparseLinear, nn.Linear)
    for layer, fan_in in zip(junctions(net), (32, 1024)):
        # five deviations of the variance of as many normal samples
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=5 * math.sqrt(2 / layer.weight.numel()))
        assert layer.bias.count_nonzero() == 0
    assert create_model("morse_cl", bias=False).junction1.bias is None


@pytest.mark.parametrize("name", TABLE_2)
def test_the_sparse_nets_of_table_2_train_save_and_compile(name):
    fan_out, _ = TABLE_2[name]
    net = create_model(name, fan_out=fan_out)
    x = torch.randn(2, *model_card(name).input_shape)
    net(x).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any() or (key.startswith("conv") and key.endswith("bias") and hasattr(net, "bn1")), key
    other = create_model(name, fan_out=fan_out, seed=7)  # other edges, which the state replaces
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        out = net.eval()(x)
        assert torch.equal(other.eval()(x), out)
        assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), out)


def test_images_are_flattened_and_padded():
    net = create_model("mnist_cl", fan_out=(112, 5)).eval()
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(net(images), net(images.flatten(1))) and net(images).shape == (3, 10)
    single = create_model("mnist_cl", input_shape=(1024,), hidden=None, classes=16, fan_out=(4,)).eval()  # the paper's (1024, 16)
    assert weights(single) == [4096] and single(images).shape == (3, 16)
    padded = torch.cat([images.flatten(1), torch.zeros(3, 240)], 1)
    assert torch.equal(single(images), single(padded))
    assert weights(create_model("mnist_cl", hidden=28)) == [784 * 28, 280]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "cifar10_conv_2cl",
            {"fan_out": (1,)},
            r"cifar10_conv_2cl: fan_out must be one number per junction, \(4096 -> 512, 512 -> 16\); got \(1,\)",
        ),
        ("morse_cl", {"fan_out": (512, 65)}, r"morse_cl: fan_out must be in \[1, 64\] in junction 2; got 65"),
        ("morse_cl", {"fan_out": (0, 1)}, r"morse_cl: fan_out must be in \[1, 1024\] in junction 1; got 0"),
        ("morse_cl", {"fan_out": (1.5, 1)}, r"morse_cl: fan_out must be in \[1, 1024\] in junction 1; got 1.5"),
        (  # 64 edges cannot reach 1024 neurons
            "morse_cl",
            {"fan_out": (1, 8)},
            r"morse_cl: fan_out must give every right neuron of junction 1 \(64 -> 1024\) the same fan-in, a whole number of at least 1; "
            r"got 1, a fan-in of 0.0625",
        ),
        ("mnist_cl", {"fan_out": (112, 3)}, r"mnist_cl: fan_out must give .* junction 2 \(224 -> 10\) .*; got 3, a fan-in of 67.2"),
        ("cifar10_conv_2cl", {"input_shape": (3, 4, 4)}, r"cifar10_conv_2cl: input_shape must leave a map behind the poolings"),
        ("morse_cl", {"convs": (1,)}, r"create_model: options of morse_cl must be among .*; got convs"),
    ],
)
def test_bad_options_are_answered_in_words(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model(name, **options)


def test_registered_names():
    assert {"cifar10_conv_2cl", "morse_cl"} <= set(NETS) and patterns.CIFAR_CONVS.count(patterns.POOL) == 3
