"""Samples, the digits, and what the augmentations may and may not do to an image."""

from __future__ import annotations

import pytest
import torch

from sparsekern.data import Samples, digits
from sparsekern.data.augment import (
    centre_crop,
    color_jitter,
    lighting,
    mirror,
    pad_crop,
    random_crop,
    random_sized_crop,
    resize_short,
    standardise,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples():
    data = Samples(torch.arange(20).reshape(10, 2), torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 0, 0]), 3)
    assert len(data) == 10 and data[3][0].tolist() == [6, 7] and data[:2][1].tolist() == [0, 1]
    part = data.first_per_class(2)
    assert part.y.tolist() == [0, 1, 1, 2, 0, 2] and part.x[:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert len(batches) == 3 and torch.equal(torch.cat([y for _, y in batches]), data.y)
    with pytest.raises(ValueError, match=r"^Samples: y must be one label per sample, 3; got 2$"):
        Samples(torch.zeros(3, 1), torch.zeros(2), 1)


@pytest.mark.parametrize(
    ("labels", "classes", "sentence"),
    [
        (torch.tensor([0, 3]), 3, r"y must be in \[0, 3\); got 0 to 3"),
        (torch.tensor([-1, 2]), 3, r"y must be in \[0, 3\); got -1 to 2"),
        (torch.tensor([0.0, 1.5]), 3, r"y must be whole numbers \[N\]; got float32 \[2\]"),
        (torch.tensor([[0], [1]]), 3, r"y must be whole numbers \[N\]; got int64 \[2, 1\]"),
        (torch.tensor([0, 1]), 0, "classes must be at least 1; got 0"),
        (torch.tensor([0, 1]), "3", "classes must be a whole number; got '3'"),
    ],
)
def test_labels_are_classes(labels, classes, sentence):
    with pytest.raises(ValueError, match=f"^Samples: {sentence}$"):
        Samples(torch.zeros(2, 4), labels, classes)
    assert len(Samples(torch.zeros(0, 4), labels[:0].long().flatten(), 3)) == 0


def test_digits():
    pytest.importorskip("sklearn")
    train, test, every = digits("train"), digits("test"), digits("all")
    assert train.x.shape == (1437, 1, 8, 8) and len(test) == 360 and len(every) == 1797 and train.x.dtype == torch.float32
    assert train.x.min() == 0 and train.x.max() == 1 and set(test.y.tolist()) == set(range(10))
    both = torch.cat([train.x, test.x]).flatten(1)
    assert torch.equal(both.sum(1).sort().values, every.x.flatten(1).sum(1).sort().values)  # a split, nothing lost or twice
    assert torch.equal(digits("test").x, test.x) and not torch.equal(digits("test", seed=1).x, test.x)
    with pytest.raises(ValueError, match=r"^digits: split must be one of \['all', 'test', 'train'\]; got 'val'$"):
        digits("val")


def test_mirror():
    x = torch.rand(400, 2, 5, 6)
    out = mirror(x, generator=seeded())
    kept, flipped = ((out == y).flatten(1).all(1) for y in (x, x.flip(-1)))
    assert (kept ^ flipped).all() and 150 < int(flipped.sum()) < 250
    assert torch.equal(out, mirror(x, generator=seeded())) and mirror(x[0], generator=seeded()).shape == (2, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pad_crop_shifts_by_up_to_the_padding(dtype):
    x = torch.randint(1, 256, (600, 3, 7, 9), generator=seeded()).to(dtype)
    out = pad_crop(x, 2, generator=seeded(1))
    assert out.shape == x.shape and out.dtype == dtype and out.is_contiguous()
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = torch.zeros(5, 5)
    for image, source in zip(out, padded):
        hits = [(t, left) for t in range(5) for left in range(5) if torch.equal(source[:, t : t + 7, left : left + 9], image)]
        assert len(hits) == 1
        seen[hits[0]] += 1
    assert (seen - 24).abs().max() < 5 * 24**0.5  # every shift equally often
    assert torch.equal(pad_crop(x, 0), x)


def test_crops_of_one_image():
    image = torch.arange(3 * 20 * 30).reshape(3, 20, 30).float()
    assert torch.equal(centre_crop(image, 10), image[:, 5:15, 10:20]) and torch.equal(centre_crop(image, 20), image[:, :, 5:25])
    corners = {tuple(random_crop(image, 18, generator=seeded(s))[0, 0, :1].tolist()) for s in range(200)}
    assert corners <= {(30.0 * t + left,) for t in range(3) for left in range(13)} and len(corners) > 30
    with pytest.raises(ValueError, match=r"^centre_crop: size must be in \[1, 20\]; got 21$"):
        centre_crop(image, 21)


def test_resize_short():
    image = torch.linspace(0, 255, 60).expand(3, 40, 60).round().byte()
    small = resize_short(image, 20)
    assert small.shape == (3, 20, 30) and small.dtype == torch.uint8
    assert (small[0, 10].diff().float() > 0).all() and resize_short(image.transpose(1, 2), 20).shape == (3, 30, 20)
    assert torch.equal(resize_short(image, 40), image)


def test_random_sized_crop():
    """The image's values are its coordinates, so a crop tells where it was cut."""
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(120.0), indexing="ij")
    image = torch.stack([rows, columns])
    shares = []
    for seed in range(300):
        out = random_sized_crop(image, 32, generator=seeded(seed))
        assert out.shape == (2, 32, 32)
        height, width = (float(out[0, -1, 0] - out[0, 0, 0]) * 32 / 31, float(out[1, 0, -1] - out[1, 0, 0]) * 32 / 31)
        shares.append(height * width / 12000)
        assert 0.6 < height / width < 1.7
    assert 0.05 < min(shares) < 0.15 and 0.8 < max(shares) <= 1.05 and 0.35 < sum(shares) / 300 < 0.65
    tall = 0
    for seed in range(1500):
        out = random_sized_crop(image[:, :, :100], 2, generator=seeded(seed))
        tall += float(out[0, -1, 0] - out[0, 0, 0]) > float(out[1, 0, -1] - out[1, 0, 0])
    assert abs(tall - 750) < 4 * (1500 / 4) ** 0.5  # as often as wide
    thin = torch.rand(3, 4, 400)  # no crop of 3/4 to 4/3 has 8 % of this area: the centre
    assert torch.allclose(random_sized_crop(thin, 4, generator=seeded()), thin[:, :, 198:202], atol=1e-6)


def test_colours():
    image = torch.rand(3, 6, 7, generator=seeded())
    jittered = color_jitter(image, 0.4, generator=seeded(1))
    assert jittered.shape == image.shape and not torch.allclose(jittered, image)
    assert torch.allclose(color_jitter(image, 0.0), image, atol=1e-6)
    grey = torch.full((3, 6, 7), 0.5)
    assert color_jitter(grey, 0.4, generator=seeded(2)).std() < 1e-6  # a grey image stays of one colour
    shift = lighting(image, 0.1, generator=seeded(3)) - image
    assert torch.allclose(shift, shift[:, :1, :1].expand_as(shift), atol=1e-6) and shift.abs().max() > 0
    many = torch.stack([lighting(torch.zeros(3, 1, 1), 0.1, generator=seeded(s)).flatten() for s in range(3000)])
    # variance of each channel: the sum over components of (eigenvector * eigenvalue * 0.1)^2
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    want = (vectors * torch.tensor([0.2175, 0.0188, 0.0045]) * 0.1).square().sum(1).sqrt()
    assert torch.allclose(many.std(0), want, rtol=5 / (2 * 3000) ** 0.5)


def test_standardise():
    x = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    assert torch.allclose(standardise(x, (0.5, 0.2)), torch.tensor([[[[-0.5, 0.5]], [[0.0, 0.2]]]]))
    assert torch.allclose(standardise(x, (0.5, 0.2), (0.5, 0.1)), torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]), atol=1e-6)
