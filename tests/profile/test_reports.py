"""What becomes of a profile: tree, tables, comparison, JSON that reads back, CSV, picture, page, trace; and the dense twins."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.cli import main
from sparsekern.measure.roof import Roof
from sparsekern.profile import LayerProfile, Profile, diff, page, plot, profile, report, save
from sparsekern.profile.trace import write_trace
from sparsekern.profile.tree import SORTS, build_tree, sort_tree
from sparsekern.profile.twins import dense_twin


def layer(name, ms, flops=0, kind="Linear", **more):
    about = {"dense_flops": flops, "samples_ms": (0.9 * ms, ms, 1.1 * ms)} | more
    return LayerProfile(name, kind, (1, 4), (1, 4), 10, 100, flops, ms, None, 1, **about)


def made(model="net"):
    """A profile of known numbers: 4 layers in 2 levels, one of them sparse."""
    layers = [
        layer("stem", 1.0, 2_000_000),
        layer("body.0", 2.0, 1_000_000, dense_flops=4_000_000, speedup=(2.9, 3.0, 3.1), peak_bytes=500),
        layer("body.1", 1.0, kind="ReLU", peak_bytes=700),
        layer("body", 0.5, kind="Block"),
    ]
    about = {"containers": {"": "Net", "body": "Block"}, "machine": {"cpu": "a processor", "torch": "2"}, "samples_ms": (4.4, 4.5, 4.6)}
    return Profile(model, (1, 4), layers, 4.5, None, 40, Roof(100.0, 10.0, "given", 50.0), 1, **about)


def test_tree_totals_by_hand():
    root = build_tree(made())
    body = root.children[1]
    assert [(depth, node.path) for depth, node in root.walk()] == [
        (0, ""), (1, "stem"), (1, "body"), (2, "body.0"), (2, "body.1"), (2, "body.(itself)")
    ]  # fmt: skip
    assert (body.total_ms, body.flops, body.dense_flops, body.params, body.peak_bytes) == (3.5, 1_000_000, 4_000_000, 30, 700)
    assert body.speedup == pytest.approx((3 * 2.0 + 1.0 + 0.5) / 3.5)
    assert root.speedup == pytest.approx((1.0 + 3 * 2.0 + 1.0 + 0.5) / 4.5)
    assert root.children[0].speedup is None
    assert root.effective_gflops == pytest.approx(6_000_000 / 4.5 / 1e6)
    assert body.range_ms[1] == pytest.approx(3.5) and body.range_ms[0] < 3.5 < body.range_ms[2]
    folded = build_tree(made(), depth=1)
    assert [node.path for _, node in folded.walk()] == ["", "stem", "body"]
    assert folded.children[1].total_ms == 3.5 and folded.total_ms == root.total_ms


def test_sorting_keeps_the_tree():
    assert [node.path for _, node in sort_tree(build_tree(made()), "time").walk()][1:4] == ["body", "body.0", "body.1"]
    for by in SORTS:
        sort_tree(build_tree(made()), by)
    from sparsekern.cli.profile import SORTS as offered

    assert set(offered) == {"order", *SORTS}


def test_numbers_by_hand():
    found = made()
    values = save.numbers(found, build_tree(found).children[1].children[0])
    assert values["intensity"] == 1e4 and values["gflops"] == pytest.approx(0.5) and values["effective_gflops"] == pytest.approx(2.0)
    assert values["roof_percent"] == pytest.approx(0.5) and values["share_percent"] == pytest.approx(100 * 2 / 4.5)
    assert values["roofline_percent"] == pytest.approx(0.5)  # 10 GB/s could feed 1e5 GF/s: the compute roof is the lower one


def test_comparison_of_trees():
    first = made()
    layers = [layer("stem", 1.0, 2_000_000), layer("body", 7.0, 4_000_000), layer("tail", 1.0)]
    second = replace(made(), model="other", layers=layers, containers={"": "Net"})
    both, only_first, only_second = diff.compare(first, second)
    by_path = {difference.path: difference for difference in both}
    assert list(by_path) == ["(model)", "stem", "body"]  # a layer against a container: as a whole
    assert by_path["body"].fewer_flops == 4 and by_path["body"].less_time == 2 and by_path["body"].realised == 0.5
    assert by_path["body"].verdict == "faster" and by_path["stem"].verdict == "same"
    assert (only_first, only_second) == ([], ["tail"])


@pytest.mark.parametrize(
    "where, name, value",
    [
        ("layers", "ms", [0.5, 1.0]), ("layers", "flops", "9"), ("layers", "calls", 2**63), ("layers", "in_shape", [2, "x"]),
        ("layers", "speedup", [1.0, 2.0]), ("layers", "samples_ms", None), ("roof", "gflops", None), ("", "threads", True),
        ("", "containers", [[]]),
    ],
)  # fmt: skip
def test_a_saved_value_of_another_type_is_refused(tmp_path, where: str, name: str, value):
    """It would end in a traceback only where it is shown."""
    values = save.to_dict(made())
    part = values["layers"][0] if where == "layers" else values[where] if where else values
    assert name in part
    part[name] = value
    (tmp_path / "bad.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"profile: bad.json must be a profile written by --json; got TypeError: {name} must be "):
        save.read_json(tmp_path / "bad.json")


def test_json_reads_back_and_csv_has_every_layer(tmp_path):
    found = made()
    save.write_json(found, tmp_path / "p.json")
    assert save.read_json(tmp_path / "p.json") == found
    save.write_csv(found, tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["layer"] for row in rows] == ["stem", "body.0", "body.1", "body.(itself)", "(all)"]
    assert float(rows[-1]["ms"]) == 4.5 and rows[1]["speedup"] == "3.0"
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"profile: bad.json must be a profile written by --json; got TypeError"):
        save.read_json(tmp_path / "bad.json")


def test_page_is_complete_and_loads_nothing(tmp_path):
    found = made(model="a </script> <b>name")
    page.write_page(found, tmp_path / "p.html", against=made())
    text = (tmp_path / "p.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))
    assert data["model"] == found.model
    assert [row["path"] for row in data["rows"]] == ["(model)", "stem", "body", "body.0", "body.1", "body.(itself)"]
    assert [row["parent"] for row in data["rows"]] == [None, 0, 0, 2, 2, 2]
    assert data["against"]["rows"][0]["verdict"] == "same"


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    plot.write_plot(made(), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_twins_are_dense_and_counted():
    net = nn.Sequential(sk.SparseLinear(64, 32, density=0.25), nn.ReLU(), nn.Linear(32, 8))
    found = profile(net, torch.randn(4, 64), rounds=2, backward=True)
    sparse, dense = (next(layer for layer in found.layers if layer.name == name) for name in "02")
    assert sparse.dense_flops == 4 * sparse.flops and sparse.speedup[0] <= sparse.speedup[1] <= sparse.speedup[2]
    assert dense.dense_flops == dense.flops and dense.speedup is None
    assert net[0].weight.grad is None
    assert profile(net, torch.randn(4, 64), rounds=1, twins=False, memory=False).layers[-1].speedup is None


def test_an_optimized_model_counts_what_the_model_did():
    root = sk.RootModule(8, 16, 16, 3, groups=4, padding=1)
    net = nn.Sequential(root, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    x = torch.randn(1, 8, 10, 10)
    before = profile(net, x, rounds=1)
    after = profile(sk.optimize(net, x, rounds=1), x, rounds=1, memory=False)
    assert (after.flops, after.dense_flops, after.params) == (before.flops, before.dense_flops, before.params)


def test_a_sequence_of_layers_has_a_dense_twin():
    """What optimize makes of several layers is one module that calls none of them."""
    from sparsekern.transform.pool import Pool2d
    from sparsekern.transform.sequence import Sequence2d

    conv = sk.GroupedConv2d(8, 16, 3, groups=4, activation="relu")
    mask = sk.StochasticConv2d(16, 8, 3, density=0.5, seed=0)
    x = torch.randn(1, 8, 12, 12).to(memory_format=torch.channels_last)
    pool = Pool2d(nn.MaxPool2d(2))
    sequence = Sequence2d(("a", "b", "c"), [conv.pack(), pool, mask], [False, False, True], 0).eval().requires_grad_(False)
    torch.testing.assert_close(dense_twin(sequence)(x), sequence(x))
    found = profile(nn.Sequential(sequence), x, rounds=1, memory=False)
    layer = next(layer for layer in found.layers if layer.name == "0")
    assert layer.flops == 2 * (16 * 2 * 9 * 100 + 16 * 8 * 9 // 2 * 9) and layer.speedup
    assert layer.dense_flops == 2 * (16 * 8 * 9 * 100 + 16 * 8 * 9 * 9)


def test_joined_convolutions_have_a_dense_twin():
    from sparsekern.transform.join import Joined

    class Branches(nn.Module):
        def __init__(self, joined):
            super().__init__()
            self.joined = joined

        def forward(self, x):
            return self.joined(x, x[:, :4].contiguous(memory_format=torch.channels_last))

    convolutions = [sk.GroupedConv2d(8, 16, 3, groups=4, padding=1), sk.GroupedConv2d(4, 6, 1, groups=2)]
    joined = Joined(("a", "b"), [conv.pack() for conv in convolutions]).eval().requires_grad_(False)
    x = torch.randn(1, 8, 12, 12).to(memory_format=torch.channels_last)
    torch.testing.assert_close(dense_twin(joined)(x, x[:, :4]), joined(x, x[:, :4].contiguous(memory_format=torch.channels_last)))
    found = profile(Branches(joined), x, rounds=1, memory=False)
    layer = next(layer for layer in found.layers if layer.name == "joined")
    assert layer.flops == 2 * 144 * (16 * 2 * 9 + 6 * 2) and layer.speedup
    assert layer.dense_flops == 2 * 144 * (16 * 8 * 9 + 6 * 4)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (sk.GroupedConv2d(8, 16, 3, groups=4, activation="relu"), (2, 8, 5, 5)),
        (sk.StochasticConv2d(8, 16, 3, density=0.25), (2, 8, 5, 5)),
        (nn.Conv2d(8, 16, 3, padding=1, groups=2), (2, 8, 5, 5)),
    ],
)
def test_twins_have_the_shape_of_their_layer(module, shape):
    x = torch.randn(shape)
    dense = dense_twin(module)
    assert dense(x).shape == module(x).shape
    if hasattr(module, "to_dense"):
        torch.testing.assert_close(dense(x), module(x))
    assert dense_twin(nn.Conv2d(4, 4, 1)) is None and dense_twin(sk.GroupedConv2d(4, 4, 1)) is None


def test_memory_peaks_and_trace(tmp_path):
    class Wide(nn.Module):
        def forward(self, x):
            return x.repeat(1, 1000).sum(1, keepdim=True)

    net = nn.Sequential(nn.Linear(4, 4), Wide(), nn.Linear(1, 2))
    found = profile(net, torch.randn(8, 4), rounds=1, name="wide")
    peaks = [next(layer.peak_bytes for layer in found.layers if layer.name == name) for name in "012"]
    row = 8 * 4 * 4
    assert peaks[0] == row and row * 1001 <= peaks[1] <= row * 1003  # its input, the copy, and the sum
    assert found.peak_bytes == peaks[1] > peaks[2]
    write_trace(found.trace, tmp_path / "t.json", model="wide")
    text = (tmp_path / "t.json").read_text()
    events = json.loads(text)["traceEvents"]
    assert {"0", "1", "2", "(model)"} <= {e["name"] for e in events if e.get("cat") == "layer"}
    assert any(e["ph"] == "C" and e["args"]["bytes"] == found.peak_bytes for e in events)
    assert "host" not in text and all(e["pid"] == 1 for e in events)


def test_memory_peaks_where_a_layer_raises_and_its_caller_goes_on():
    class Refuses(nn.Module):
        def forward(self, x):
            raise NotImplementedError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Refuses()

        def forward(self, x):
            try:
                return self.first(x)
            except NotImplementedError:
                return x.repeat(1, 1000).sum(1, keepdim=True)

    found = profile(nn.Sequential(Tries(), nn.Linear(1, 2)), torch.randn(8, 4), rounds=1)
    peaks = found.trace.peaks
    assert peaks["0"] >= 8 * 4 * 4 * 1000 > peaks["0.first"]  # what its caller did afterwards is not its own


def test_command_writes_every_file_and_reads_a_saved_profile(tmp_path, capsys):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    (tmp_path / "two_deep.py").write_text(
        "from torch import nn\ndef small():\n    return nn.Sequential(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), nn.Linear(3, 2))\n"
    )
    files = {kind: str(tmp_path / f"p.{kind}") for kind in ("html", "png", "json", "csv")} | {"trace": str(tmp_path / "t.json")}
    asked = ["--input", "4x6", "--rounds", "2", "--sort", "time", "--backward"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["profile", "two_deep:small", *asked, *(word for kind, file in files.items() for word in (f"--{kind}", file))]) == 0
    capsys.readouterr()
    assert all((tmp_path / file).stat().st_size > 100 for file in files.values())
    assert main(["profile", files["json"], "--against", files["json"], "--depth", "1", "--html", files["html"]]) == 0
    text = capsys.readouterr().out
    assert "same" in text and "1.00x" in text and " 0 " in text
    assert main(["profile", files["json"], "--trace", files["trace"]]) == 2
    assert "profile: --trace must be asked for when a model runs" in capsys.readouterr().err


MODELS = """
from torch import nn
five = 5
def net(): return nn.Conv2d(3, 4, 3)
def boom(): raise RuntimeError("boom\\nand more")
def needs_an_argument(x): return net()
def gives_five(): return five
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nin --rounds 0", "--rounds must be at least 1; got 0"),
        ("nin --threads 0", "--threads must be from 1 to 1024; got 0"),
        ("nin --threads -1", "--threads must be from 1 to 1024; got -1"),
        ("nin --threads 100000", "--threads must be from 1 to 1024; got 100000"),
        ("nin --top -1", "--top must be at least 0; got -1"),
        ("nin --depth -1", "--depth must be at least 0; got -1"),
        ("nin --depth 4294967296", "--depth must be below 2^31; got 4294967296"),
        ("mym:net --input 1x1x8x8", "MODEL must run on an input of 1x1x8x8; got RuntimeError: "),
        ("mym:net --input 3", "MODEL must run on an input of 3; got RuntimeError: "),
        ("mym:net --channels-last --input 3x8", "--input must be four sizes with --channels-last; got 3x8"),
        ("mym:boom", "MODEL must make a torch.nn.Module; got mym:boom: RuntimeError: boom"),
        ("mym:needs_an_argument", "MODEL must make a torch.nn.Module; got mym:needs_an_argument: TypeError: "),
        ("mym:five", "MODEL must make a torch.nn.Module; got mym:five: TypeError: 'int' object is not callable"),
        ("mym:gives_five", "MODEL must make a torch.nn.Module; got int"),
        ("mym:nothing", "MODEL must be module:callable that can be imported; got mym:nothing: AttributeError: "),
        ("fails_to_import:net", "MODEL must be module:callable that can be imported; got fails_to_import:net: RuntimeError: early"),
        (":x", "MODEL must be module:callable that can be imported; got :x: ValueError: Empty module name"),
    ],
)
def test_what_cannot_be_profiled_is_answered_in_one_line(tmp_path, monkeypatch, capsys, arguments, sentence):
    pytest.importorskip("rich")
    (tmp_path / "mym.py").write_text(MODELS)
    (tmp_path / "fails_to_import.py").write_text("raise RuntimeError('early')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mym", raising=False)
    assert main(["profile", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sparsekern: profile: {sentence}") and said.count("\n") == 1


def test_what_the_library_refuses(tmp_path):
    pytest.importorskip("rich")
    for rounds in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=f"^profile: rounds must be a whole number of at least 1; got {rounds}$"):
            profile(nn.Linear(4, 2), torch.randn(1, 4), rounds=rounds)
    with pytest.raises(ValueError, match=r"^profile: depth must be None or at least 0; got -1$"):
        build_tree(made(), depth=-1)
    with pytest.raises(ValueError, match=r"^profile: top must be None or at least 0; got -1$"):
        report.table(made(), top=-1)
    with pytest.raises(ValueError, match=r"^profile: numbers must be finite to be written; got nan$"):
        save.write_json(replace(made(), bare_ms=float("nan")), tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def test_brackets_in_names_are_shown_as_they_are():
    console = pytest.importorskip("rich.console").Console(width=200, record=True, file=io.StringIO())
    layers = [layer("[/x]", 1.0, 2_000_000, kind="[/y]"), layer("[/z]", 1.0)]
    odd = replace(made("[/m]"), layers=layers, containers={"": "Net"}, roof=Roof(100.0, 10.0, "[/r]"))
    for shown, words in (
        (report.table(odd), ("[/m]", "[/x]", "[/y]", "[/z]", "[/r]")),
        (report.table(odd, top=2), ("[/x]", "[/z]")),
        (report.realised(odd, replace(odd, layers=layers[:1])), ("[/m] against [/m]", "[/x]", "only in [/m]: [/z]")),
    ):
        console.print(shown)
        text = console.export_text()
        assert all(word in text for word in words)


def test_the_command_leaves_the_callers_random_numbers(tmp_path, monkeypatch):
    pytest.importorskip("rich")
    (tmp_path / "no_draws.py").write_text("from torch import nn\nnet = nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    assert main(["profile", "no_draws:net", "--input", "2x4", "--rounds", "1"]) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_page_in_a_browser(tmp_path, width):
    """Sorts by a click, folds, draws a dot per layer, and nothing sticks out to the side."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser")
    page.write_page(made(), tmp_path / "p.html", against=made())
    script = """<script>
    const names = () => [...document.querySelectorAll("#layers tbody td:first-child")].map((td) => td.title);
    const said = { before: names(), width: innerWidth };
    const press = (head) => [...document.querySelectorAll("#layers th button")].find((b) => b.textContent === head).click();
    press("ms"); said.down = names(); press("ms"); said.up = names(); press("ms"); said.again = names();
    said.wide = document.documentElement.scrollWidth;
    document.querySelector("#layers .fold").click(); said.folded = names();
    document.querySelector("#theme").click(); said.theme = document.documentElement.dataset.theme;
    const last = () => {
      said.dots = document.querySelectorAll("circle").length;
      parent.postMessage("SAID" + JSON.stringify(said) + "DIAS", "*");
    };
    setTimeout(last, 200);
    </script></body>"""
    file, frame = tmp_path / "p.html", tmp_path / "frame.html"  # a window of a desktop browser is at least 500 wide, a frame is not
    file.write_text(file.read_text().replace("</body>", script))
    listen = "<script>addEventListener('message', (e) => { document.title = e.data; })</script>"
    frame.write_text(f'<body>{listen}<iframe src="p.html" style="width:{width}px;height:900px;border:0"></iframe></body>')
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path}/data", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = json.loads(re.search("SAID(.*?)DIAS", done.stdout).group(1))
    order = ["(model)", "stem", "body", "body.0", "body.1", "body.(itself)"]
    assert said["before"] == said["again"] == order
    assert said["down"] == ["(model)", "body", "body.0", "body.1", "body.(itself)", "stem"]
    assert said["up"] == ["(model)", "stem", "body", "body.(itself)", "body.1", "body.0"]
    assert said["folded"] == ["(model)"] and said["dots"] == 2 and said["theme"] == "dark"
    assert said["width"] == width and said["wide"] <= width
