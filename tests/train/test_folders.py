"""ImageNet's folders as a training sees them: real photographs, cut up, as JPEG files of two classes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import OPTIMISERS, same_weights
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from sparsekern.data.augment import IMAGENET_DEVIATION, IMAGENET_MEAN, centre_crop, resize_short
from sparsekern.train import ImageFolders, Optimiser, Recipe, get_recipe, list_recipes, load_data, train
from sparsekern.train import model as models

PER_CLASS = {"train": 24, "val": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image
    from sklearn.datasets import load_sample_images

    path, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for wnid, photograph in zip(("n01", "n02"), load_sample_images().images):  # a temple, a flower
        for split, count in PER_CLASS.items():
            (path / split / wnid).mkdir(parents=True)
            for i in range(count):
                top, left = rng.integers(0, 327), rng.integers(0, 520)
                Image.fromarray(photograph[top : top + 100, left : left + 120]).save(path / split / wnid / f"{i}.JPEG", quality=95)
    return path


def recipe(**fields) -> Recipe:
    told = dict(epochs=5, batch=16, augment="crop_mirror", data_options={"size": 8, "short": 12}) | fields
    return Recipe("folders", "tiny_net", "imagenet", "no paper's", OPTIMISERS["sgd"], **told)


def test_batches(folder):
    data = load_data(recipe(data_options={"size": 64, "short": 72}), folder, check=False)
    assert isinstance(data, ImageFolders) and (len(data.train), len(data.val)) == (48, 16)
    indices = torch.tensor([3, 40, 0, 25, 11])
    x, y = data.batch(indices, seed=5)
    assert x.shape == (5, 3, 64, 64) and x.dtype == torch.float32 and y.tolist() == [0, 1, 0, 1, 0]
    again, other = (data.batch(indices, seed)[0] for seed in (5, 6))
    assert torch.equal(x, again) and not torch.equal(x, other)
    for part in (slice(0, 2), slice(2, 5), slice(5, 5)):  # what each of several processes takes
        assert torch.equal(data.batch(indices, 5, part)[0], x[part]) and torch.equal(data.batch(indices, 5, part)[1], y[part])
    x, y = data.val_batch(6, 10)
    whole, label = data.val[6]
    want = centre_crop(resize_short(whole, 72), 64).double() / 255
    want = (want - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1)
    torch.testing.assert_close(x[0].double(), want, atol=1e-5, rtol=0)
    assert y.tolist() == [0, 0, 1, 1] and label == 0


def test_threads_that_decode_start_no_others(folder):
    torch.set_num_threads(3)
    data = load_data(recipe(), folder, check=False)
    data.batch(torch.arange(4), 0)
    assert set(data._threads.map(lambda _: torch.get_num_threads(), range(20))) == {1}
    with ThreadPoolExecutor(1) as other:
        assert torch.get_num_threads() == 3 == other.submit(torch.get_num_threads).result()


def test_augmentations_are_those_told(folder):
    """A crop of one scale shows what is in the image scaled; the full one has other colours and sizes."""
    cropped = load_data(recipe(data_options={"size": 64, "short": 72}), folder, check=False)
    whole = resize_short(cropped.train[3][0], 72).float() / 255
    image = cropped.batch(torch.tensor([3]), 1)[0][0] * torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(
        3, 1, 1
    )
    places = [(top, left) for top in range(9) for left in range(whole.shape[2] - 63)]
    found = [
        w for w in (image, image.flip(2)) for top, left in places if (whole[:, top : top + 64, left : left + 64] - w).abs().max() < 1e-5
    ]
    assert len(found) == 1
    full = load_data(recipe(augment="full_imagenet", data_options={"size": 64, "short": 72}), folder, check=False)
    several = torch.stack([full.batch(torch.tensor([3]), seed)[0][0] for seed in range(8)])
    assert several.isfinite().all() and several.mean((1, 2, 3)).std() > 0.05  # brightness is jittered
    assert torch.equal(full.val_batch(0, 2)[0], cropped.val_batch(0, 2)[0])


def test_a_net_learns_from_folders_and_resumes(folder, tmp_path):
    whole = train(recipe(), path=folder, check=False)
    assert whole.best >= 0.75
    pytest.importorskip("safetensors")

    class Stop(Exception):
        pass

    def stops(model):
        steps = []

        def count(*_):
            steps.append(model.training)
            if sum(steps) == 8:
                raise Stop

        model.register_forward_pre_hook(count)

    with pytest.raises(Stop):
        train(recipe(), path=folder, check=False, out=tmp_path, checkpoint_every=2, prepare=stops)
    assert same_weights(whole.model, train(recipe(), path=folder, check=False, out=tmp_path, resume=True).model)


def test_auxiliary_classifiers_count_three_tenths(folder):
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Linear(192, 2), nn.Linear(192, 2)

        def forward(self, x):
            x = x.flatten(1)
            return (self.main(x), self.aux(x)) if self.training else self.main(x)

    models.OWN["headed"] = Headed
    one = recipe(epochs=1, batch=48).with_(model="headed", optimiser=Optimiser("sgd", 1.0))
    start, end = models.build_model(one, 0), train(one, path=folder, check=False)
    data = load_data(one, folder, check=False)
    from sparsekern.train.loop import epoch_order
    from sparsekern.train.recipe import fold_seed

    x, y = data.batch(epoch_order(48, 0, 0), fold_seed(0, "augment", 0))
    main, aux = (nn.functional.cross_entropy(scores, y) for scores in start(x))
    (main + 0.3 * aux).backward()
    for parameter, trained in zip(start.parameters(), end.model.parameters()):
        torch.testing.assert_close(trained, parameter - parameter.grad, atol=1e-6, rtol=1e-5)
    assert end.rows[0]["train_loss"] == pytest.approx(main.item(), rel=1e-5)  # of the net that is judged


def test_recipes_of_imagenet():
    found = {r.name: r for r in list_recipes() if r.data == "imagenet"}
    assert len(found) == 7 + 7 + 5 + 3 and all(r.name.startswith("deep-roots/") for r in found.values())
    resnet, deep, alexnet = (found[f"deep-roots/{name}"] for name in ("resnet50_root_64", "resnet200_root_32", "alexnet_groups_2"))
    assert (resnet.augment, deep.augment, alexnet.data_options) == ("crop_mirror", "full_imagenet", {"size": 227})
    assert (resnet.epochs, resnet.batch, resnet.schedule.rate(0.1, 30, 90)) == (90, 256, pytest.approx(0.01))
    net = models.build_model(found["deep-roots/googlenet_root_2"], 0)
    assert net.conv1.bn.weight is None and net.conv1.bn.bias is None  # no scale, no bias
    assert get_recipe("deep-roots/nin").data == "cifar10"


def test_both_splits_have_the_same_classes(folder, tmp_path):
    """A label is the place of a folder: one missing, and all that follow would be judged as other classes."""
    for split, names in (("train", ("n01", "n02")), ("val", ("n02", "n03", "n04"))):
        (tmp_path / split).mkdir()
        for name in names:
            (tmp_path / split / name).symlink_to(folder / split / "n02")
    with pytest.raises(ValueError) as raised:
        load_data(recipe(), tmp_path, check=False)
    sentence = "train: train and val must hold folders of the same classes; got 'n01' in train alone, 'n03' and 1 more in val alone"
    assert str(raised.value) == sentence


def test_bad_arguments(folder, tmp_path):
    for kind, sentence, call in (
        (ValueError, "train: data must be given for imagenet: the folder that holds train and val", lambda: load_data(recipe())),
        (FileNotFoundError, "ImageNet: path must hold the folder train; got", lambda: load_data(recipe(), tmp_path)),
        (ValueError, "ImageNet: train must be 1000 folders, one per class; got 2 folders", lambda: load_data(recipe(), folder)),
        (
            ValueError, "train: augment must be one of ('crop_mirror', 'full_imagenet') for images of folders; got 'pad_crop_mirror'",
            lambda: load_data(recipe(augment="pad_crop_mirror"), folder, check=False),
        ),
        (
            ValueError, "train: augment must be one of ('none', 'pad_crop_mirror') for images in memory; got 'crop_mirror'",
            lambda: load_data(get_recipe("digits/density").with_(augment="crop_mirror")),
        ),
        (
            ValueError, "train: size must be in [1, 12], the shorter side; got 13",
            lambda: load_data(recipe(data_options={"size": 13, "short": 12}), folder, check=False),
        ),
        (
            ValueError, "train: size must be a whole number; got '8'",
            lambda: load_data(recipe(data_options={"size": "8"}), folder, check=False),
        ),
        (
            ValueError, "train: data_options must be among short, size, val_step for imagenet; got 'width'",
            lambda: load_data(recipe(data_options={"width": 8}), folder, check=False),
        ),
    ):  # fmt: skip
        with pytest.raises(kind) as raised:
            call()
        assert sentence in str(raised.value), str(raised.value)


@pytest.mark.slow
def test_a_recipe_of_imagenet_from_the_command(folder, tmp_path, capsys):
    """The whole network at the whole size, on a few images."""
    pytest.importorskip("safetensors")
    from sparsekern.cli import main

    run = [
        "train",
        "deep-roots/googlenet_root_2",
        "--data",
        str(folder),
        "--no-check",
        "--epochs",
        "1",
        "--batch",
        "16",
        "--out",
        str(tmp_path),
    ]
    assert main(run) == 0 and "epoch    1  loss" in capsys.readouterr().out
