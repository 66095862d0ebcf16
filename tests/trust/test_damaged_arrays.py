"""Plans and packs that are not as they were made: refused by their seal before a kernel follows an offset in them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from trust.tally import tally

from sparsekern import nn
from sparsekern.ops import (
    OPS,
    backends,
    grouped_conv2d_packed,
    joined_conv2d_packed,
    pack_grouped_conv2d,
    pack_sparse_linear,
    root_conv2d_packed,
    sparse_linear_packed,
)
from sparsekern.ops.sparse_conv2d import plan_sparse_conv2d
from sparsekern.ops.sparse_linear import plan_sparse_linear
from sparsekern.topology import balanced_table, fan_in_table

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")


def _linear_plan(table, inputs, block=(1, 1)):
    x, weight = torch.randn(3, inputs), torch.randn(*table.shape, *(block if block != (1, 1) else ()))
    return plan_sparse_linear(table, inputs, block), lambda plan: OPS["sparse_linear"].function(x, weight, table, None, plan)


def _linear_pack(table, inputs, dtype=torch.float32, rows=2):
    weight = torch.randn(table.shape).to(dtype)
    x = torch.randn(rows, inputs).to(dtype)
    pack = pack_sparse_linear(weight, table, inputs)
    return pack, lambda packed: sparse_linear_packed(x, packed, None, len(table), weight.numel())


def _conv_plan(block, kept):
    inputs = OPS["sparse_conv2d"].samples(torch.device("cpu"), torch.float32)
    sample = next(s for s in inputs if s.name == kept).inputs
    plan = plan_sparse_conv2d(sample["indptr"], sample["index"], sample["x"].shape[1], sample["kernel_size"], block)
    return plan, lambda plan: OPS["sparse_conv2d"].function(**sample, plan=plan)


def _conv_pack(dtype=torch.float32, run="packed"):
    x = torch.randn(1, 16, 6, 6).to(memory_format=torch.channels_last).to(dtype)
    weight, point = torch.randn(32, 4, 3, 3).to(dtype), pack_grouped_conv2d(torch.randn(8, 32, 1, 1).to(dtype))
    pack = pack_grouped_conv2d(weight, padding=1, groups=4, images=(1, 6, 6))
    calls = {
        "packed": lambda p: grouped_conv2d_packed(x, p, None, 32, 3, padding=1, groups=4),
        "root": lambda p: root_conv2d_packed(x, p, None, point, None, None, None, 8, 3, padding=1, groups=4),
        "joined": lambda p: joined_conv2d_packed([x], [p], [torch.zeros(32, dtype=dtype)], [3, 3, 1, 1, 1, 1, 1, 1, 4]),
    }
    return pack, calls[run]


ARRAYS = {
    "plan": lambda: _linear_plan(fan_in_table(70, 40, 9, seed=0), 70),
    "balanced plan": lambda: _linear_plan(balanced_table(96, 40, 18, seed=0), 96),
    "wide plan": lambda: _linear_plan(fan_in_table(70000, 3, 5, seed=0), 70000),
    "block plan": lambda: _linear_plan(fan_in_table(6, 4, 2, seed=0), 48, (16, 8)),
    "pack": lambda: _linear_pack(fan_in_table(300, 40, 9, seed=0), 300),
    "pack, many rows": lambda: _linear_pack(fan_in_table(300, 40, 9, seed=0), 300, rows=70),
    "balanced pack": lambda: _linear_pack(balanced_table(96, 40, 18, seed=0), 96),
    "dense pack": lambda: _linear_pack(fan_in_table(70, 40, 60, seed=0), 70),
    "bf16 pack": lambda: _linear_pack(fan_in_table(96, 40, 30, seed=0), 96, torch.bfloat16, rows=40),
    "mask plan": lambda: _conv_plan((1, 1, 1), "odd_batch"),
    "spatial mask plan": lambda: _conv_plan((1, 20, 1), "spatial"),
    "convolution pack": _conv_pack,
    "bf16 convolution pack": lambda: _conv_pack(torch.bfloat16),
    "pack in a chain": lambda: _conv_pack(run="root"),
    "pack in a join": lambda: _conv_pack(run="joined"),
}


def damaged(array: torch.Tensor, generator: torch.Generator):
    """Copies with something wrong: a bit, a word, two words that changed places, a part of another, cut short, too long."""
    length = array.numel()

    def at():
        return int(torch.randint(length, (), generator=generator))

    for _ in range(12 if length < 100_000 else 1):
        i = at()
        bit = array.clone()
        bit[i] = int(array[i]) ^ (1 << int(torch.randint(31, (), generator=generator)))
        word = array.clone()
        word[at()] = int(torch.randint(-(2**31), 2**31, (), generator=generator))
        swapped = array.clone()
        first, second = at(), at()
        swapped[first], swapped[second] = array[second], array[first]
        yield from (bit, word, swapped)
    for i in range(min(40, length) if length < 100_000 else 0):  # the header, word by word
        for value in (0, -1, 2**31 - 1, length, length + 1, -length):
            head = array.clone()
            head[i] = value
            yield head
    for size in (0, 1, 8, 24, 40, length // 2, length - 1):
        yield array[:size].clone()
        short = array[:size].clone()
        if size > 7:
            short[7] = size  # where a length stands
        yield short
    yield torch.cat([array, array])
    yield torch.zeros_like(array)
    yield torch.full_like(array, -1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "wide plan")) for name in ARRAYS])
def test_damage_is_refused(name):
    torch.manual_seed(0)
    array, run = ARRAYS[name]()
    good = run(array)
    generator, tried = torch.Generator().manual_seed(0), 0
    for copy_ in damaged(array, generator):
        if torch.equal(copy_, array):
            assert torch.equal(run(copy_), good)
            continue
        with pytest.raises(ValueError, match=r"must be (as .* made it|made by |of )"):
            run(copy_)
        tried += 1
    tally("damaged plans and packs", tried)
    assert torch.equal(run(array), good) and torch.equal(run(array.clone()), good)


@pytest.mark.parametrize("name", ["plan", "pack", "mask plan", "convolution pack"])
def test_every_provider_says_the_same_of_damage(name):
    array, run = ARRAYS[name]()
    array[array.numel() // 2] += 1
    answers = set()
    for provider in backends.providers():
        with backends.use(provider), pytest.raises(ValueError) as raised:
            run(array)
        answers.add(str(raised.value))
    assert len(answers) == 1


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_may_lie_anywhere(name):
    """At any multiple of 4 bytes: copied into a larger one, read from a file, sent from another process."""
    array, run = ARRAYS[name]()
    good = run(array)
    for off in (1, 3, 5, 15):
        inside = torch.empty(array.numel() + 16, dtype=torch.int32)[off : off + array.numel()].copy_(array)
        assert torch.equal(run(inside), good)


def test_an_array_is_looked_at_again_once_it_was_written_to():
    array, run = ARRAYS["plan"]()
    for make in (ARRAYS["plan"], ARRAYS["pack"], ARRAYS["mask plan"], ARRAYS["convolution pack"]):
        array, run = make()
        good, at = run(array), array.numel() // 2
        array[at] += 1
        with pytest.raises(ValueError, match="must be"):
            run(array)
        array[at] -= 1
        assert torch.equal(run(array), good)


def test_arrays_of_layers_survive_copies_and_pickles():
    layer = nn.SparseLinear(96, 40, density=0.2).pack().eval()
    conv = nn.GroupedConv2d(16, 32, 3, padding=1, groups=4).pack().eval()
    x, image = torch.randn(2, 96), torch.randn(1, 16, 6, 6).to(memory_format=torch.channels_last)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.no_grad():
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert torch.equal(other(x), layer(x))
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            assert torch.equal(other(image), conv(image))
