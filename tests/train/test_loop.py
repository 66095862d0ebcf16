"""Training: what decides its result, and that nothing else does."""

import csv
import json
import sys

import pytest
import torch
from tiny import same_weights, tiny_data, tiny_recipe

pytest.importorskip("safetensors")

from sparsekern.data import Samples
from sparsekern.train import DATA, Optimiser, Schedule, TrainingData, build_model, get_recipe, list_recipes, load_data, train
from sparsekern.train.loop import epoch_order
from sparsekern.train.optimiser import OPTIMISERS
from sparsekern.train.show import Quiet


def refuses(sentence, call, *args, kind=ValueError, **options):
    with pytest.raises(kind) as raised:
        call(*args, **options)
    assert sentence in str(raised.value), str(raised.value)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adadelta"])
def test_same_seed_same_weights(optimiser):
    state = torch.get_rng_state()
    one, two, other = (train(tiny_recipe(optimiser), tiny_data(), seed=seed) for seed in (1, 1, 2))
    assert same_weights(one.model, two.model) and not same_weights(one.model, other.model)
    assert not torch.equal(one.model[6].index, other.model[6].index)  # connections follow the seed too
    assert [row["train_loss"] for row in one.rows] == [row["train_loss"] for row in two.rows]
    assert torch.equal(torch.get_rng_state(), state)


def test_it_learns():
    trained = train(tiny_recipe(epochs=12, augment="none"), tiny_data(160))
    assert trained.rows[0]["train_loss"] > 2 * trained.rows[-1]["train_loss"] and trained.best > 0.8


def test_loss_and_accuracy_are_those_of_the_whole_epoch():
    """With a rate of zero and nothing random in the net, an epoch's loss is the loss of the data."""
    recipe = get_recipe("digits/density").with_(lr=0.0, epochs=1, options={"fan_out": (16, 10)})
    data = load_data(recipe)
    trained = train(recipe, data)
    for split, samples in (("train", data.train), ("val", data.val)):
        scores = trained.model(samples.x).detach()
        row = trained.rows[0]
        n = len(samples)
        assert row[f"{split}_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores.double(), samples.y)), rel=1e-5)
        assert row[f"{split}_accuracy"] == pytest.approx(float((scores.argmax(1) == samples.y).sum()) / n, abs=1e-12)


def test_the_last_batch_counts_unless_it_is_a_single_sample():
    seen = []

    class Count(Quiet):
        def step(self, loss, accuracy, rate):
            seen.append(rate)

    for n, batches in ((83, 6), (80, 5), (81, 5), (82, 6)):
        seen.clear()
        train(tiny_recipe(epochs=1), tiny_data(n), show=Count())
        assert len(seen) == batches
    refuses("train: data must be of at least 2 samples; got 1", train, tiny_recipe(), tiny_data(1))


def test_rates():
    seen = []

    class Rates(Quiet):
        def step(self, loss, accuracy, rate):
            seen.append(rate)

    train(tiny_recipe(epochs=2), tiny_data(64), show=Rates())
    assert seen == [0.05] * 4 + [pytest.approx(0.005)] * 4
    assert Schedule(decay=1e-3).rate(1.0, 1000, 5) == 0.5
    assert Schedule((1 / 3, 2 / 3)).rate(1.0, 2, 3) == pytest.approx(0.01)


def test_order_is_a_permutation_of_its_own_for_every_epoch():
    orders = [epoch_order(50, 0, epoch) for epoch in range(3)] + [epoch_order(50, 1, 0)]
    assert all(order.sort().values.equal(torch.arange(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert epoch_order(6, 0, 0).tolist() == epoch_order(6, 0, 0).tolist()


def test_batches_are_prepared_as_told():
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    samples = Samples(x, torch.arange(6), 6)
    mean = x.double().mean(0).div(255).float()
    plain, cropped = TrainingData(samples, samples, "none", mean), TrainingData(samples, samples, "pad_crop_mirror", mean)
    want = x.float() / 255 - mean
    assert torch.allclose(plain.batch(torch.arange(6), seed=3)[0], want)
    assert torch.allclose(cropped.val_batch(0, 6)[0], want)  # judged as they are
    one, two, other = (cropped.batch(torch.arange(6), seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other) and one.shape == want.shape


def test_amp_and_bad_losses():
    trained = train(tiny_recipe(epochs=2), tiny_data(), amp=True)
    assert trained.model[6].weight.dtype == torch.float32 and trained.rows[-1]["val_loss"] > 0
    assert not same_weights(trained.model, train(tiny_recipe(epochs=2), tiny_data()).model)
    refuses("train: loss must be finite; got nan", train, tiny_recipe().with_(lr=float("nan")), tiny_data(), kind=ArithmeticError)
    refuses("train: optimiser must be one of adadelta, adam", train, tiny_recipe().with_(optimiser=Optimiser("lion", 1.0)), tiny_data())


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"epochs": 0}, {}, "epochs must be at least 1; got 0"),
        ({"epochs": 1.5}, {}, "epochs must be a whole number; got 1.5"),
        ({"batch": 0}, {}, "batch must be at least 1; got 0"),
        ({"batch": -5}, {}, "batch must be at least 1; got -5"),
        ({}, {"checkpoint_every": -1}, "checkpoint_every must be at least 1; got -1"),
        ({}, {"checkpoint_every": 1.5}, "checkpoint_every must be a whole number; got 1.5"),
        ({}, {"out": 3}, "out must be a path; got int"),
        ({}, {"path": 3}, "path must be a path; got int"),
        ({}, {"seed": 0.5}, "seed must be a whole number of 64 bits; got 0.5"),
        ({}, {"data": "digits"}, "data must be TrainingData or ImageFolders, or None; got str"),
        ({}, {"recipe": "digits/density"}, "recipe must be a Recipe, as of get_recipe(name); got str"),
        ({"data": "foo"}, {}, "data must be one of morse, digits, mnist, cifar10, cifar100, svhn, imagenet; got 'foo'"),
        ({"data_options": {"shape": 3}}, {}, "data_options must be among seed for digits; got 'shape'"),
        ({}, {"path": "nowhere"}, "data must be left out for digits, which is read from no folder; got 'nowhere'"),
        ({"data": "morse"}, {"path": "nowhere"}, "data must be left out for morse, which is read from no folder; got 'nowhere'"),
        ({"data": "morse", "data_options": {"colour": 1}}, {}, "data_options must be among dash, dilation, dot, "),
        ({}, {"device": "foo"}, "device must be one that torch can use here; got 'foo' ("),
        ({}, {"device": "meta"}, "device must be one that torch can use here; got 'meta' (it holds no numbers)"),
        ({}, {"device": f"cuda:{torch.cuda.device_count()}"}, "device must be one that torch can use here; got 'cuda:"),
    ],
)
def test_what_is_asked_for(changes, options, sentence):
    refuses(f"train: {sentence}", train, **{"recipe": tiny_recipe().with_(**changes), **options})


def test_nothing_to_judge_by():
    data = tiny_data()
    none = TrainingData(data.train, Samples(data.val.x[:0], data.val.y[:0], 4))
    refuses("train: data must have at least 1 sample to judge by; got 0", train, tiny_recipe(), none)
    refuses("train: val_step must be at least 1; got 0", TrainingData, data.train, data.val, val_step=0)


def test_log_and_curves(tmp_path):
    pytest.importorskip("matplotlib")
    trained = train(tiny_recipe(epochs=2), tiny_data(), out=tmp_path)
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in trained.rows]
    document = json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))
    assert document["epochs"] == trained.rows and document["recipe"]["batch"] == 16
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_what_is_not_installed(tmp_path, monkeypatch):
    """Checkpoints cannot be without safetensors: said before the first step. Curves are left out."""
    said = []

    class Listen(Quiet):
        def note(self, text):
            said.append(text)

    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    train(tiny_recipe(epochs=1), tiny_data(), out=tmp_path / "run", show=Listen())
    assert said == ["no curves: plot_curves: matplotlib must be installed: pip install sparsekern[plots]"]
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"last.safetensors", "best.safetensors", "log.csv", "log.json"}
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    sentence = 'train: safetensors must be installed, for checkpoints: pip install "sparsekern[train]"'
    refuses(sentence, train, tiny_recipe(epochs=1), tiny_data(), out=tmp_path / "no", kind=ModuleNotFoundError)
    assert not (tmp_path / "no").exists()
    assert len(train(tiny_recipe(epochs=1), tiny_data()).rows) == 1  # nothing to write, nothing needed


# ---- recipes


def test_recipes_name_what_exists():
    for recipe in list_recipes():
        assert recipe.data in DATA and recipe.optimiser.name in OPTIMISERS and recipe.source, recipe.name
        reduced = recipe.preset("reduced")
        assert 1 <= reduced.epochs <= recipe.epochs and not reduced.reduced
    refuses("recipe: preset must be one of ('full', 'reduced'); got 'tiny'", recipe.preset, "tiny")
    refuses("got 'patterns/mors' (nearest: patterns/morse", get_recipe, "patterns/mors")


def test_recipes_say_what_the_papers_say():
    simplenet = get_recipe("simplenet/5m_cifar10")
    assert (simplenet.epochs, simplenet.batch, simplenet.bn_momentum, simplenet.augment) == (800, 100, 0.05, "pad_crop_mirror")
    assert simplenet.schedule.rate(0.1, 94_999, 400_000) == pytest.approx(0.01)
    assert simplenet.schedule.rate(0.1, 370_000, 400_000) == pytest.approx(1e-7)
    assert simplenet.optimiser.options == {"rho": 0.9, "eps": 1e-3, "weight_decay": 0.005}
    nin = get_recipe("deep-roots/nin_root_8")
    assert (nin.epochs, nin.batch, nin.options, nin.centre) == (300, 128, {"batch_norm": True}, True)
    morse, cifar = get_recipe("patterns/morse"), get_recipe("patterns/cifar10_conv_2cl")
    assert (morse.epochs, morse.optimiser.name, cifar.epochs, cifar.optimiser.name, cifar.augment) == (30, "sgd", 30, "adam", "none")


def test_networks_are_built_as_recipes_ask():
    net = build_model(get_recipe("simplenet/310k_mnist"), seed=0)
    assert {m.momentum for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.05}
    assert net[0].in_channels == 1
    morse = build_model(get_recipe("patterns/morse").with_(options={"fan_out": (128, 8), "topology": "spread"}), seed=3)
    assert morse.junction1.topology == "spread" and morse.junction1.bias.unique().tolist() == [pytest.approx(0.1)]


def test_data_must_be_where_they_are_said_to_be(tmp_path):
    refuses("train: data must be given for mnist", load_data, get_recipe("patterns/mnist_cl"))
    refuses("mnist: path must hold the file train-images", load_data, get_recipe("patterns/mnist_cl"), tmp_path, kind=FileNotFoundError)
