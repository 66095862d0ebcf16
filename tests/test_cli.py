"""The command line: every command, its exit code, and what it says to a user who made a mistake."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekern import cli
from sparsekern.cli import main
from sparsekern.models import list_models

pytest.importorskip("rich")
FAST = ["--rounds", "2", "--min-time-ms", "0.1"]
CASE = ["--case", "64-1024 0.5", "--batch", "2"]


def _row(case=None, **fields):
    """What a quick case might have taken."""
    from sparsekern.measure.cases import select
    from sparsekern.measure.rows import Row

    case = case or select("linear", quick=True)[0]
    times = dict(p20_us=1.0, p50_us=1.0, p80_us=1.0, wall_us=1.0, cpu_us=1.0)
    about = (case.op, case.id, "ours", "fwd", "hot", case.dtype, "rows", case.batch, case.sizes, case.density)
    return Row(*about, 1, 1, 1, 1, "cpu", **times, **fields)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("env", "profile", "bench", "compare", "probe", "reproduce"))


def test_the_command_line_imports_nothing_heavy_before_it_must():
    for path in Path(cli.__file__).parent.glob("*.py"):
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in imports}
        assert not names & {"torch", "numpy", "rich", "matplotlib"}, path.name
        assert not {n.module for n in imports if isinstance(n, ast.ImportFrom)} & {"sparsekern.models", "sparsekern.measure"}, path.name


def test_python_m():
    done = subprocess.run([sys.executable, "-m", "sparsekern", "reproduce"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_env(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "sparse_linear" in text
    assert "torch" in text
    assert main(["env", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["serves"]["sparse_linear"]["cpu"]


def test_bench_compare_and_plot(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "plot.png")]
    assert main(["bench", "linear", *CASE, *FAST, "--json", files[0], "--plot", files[2]]) == 0
    text = capsys.readouterr().out
    assert "embedding_bag" in text
    assert "served by" in text
    assert main(["bench", "linear", *CASE, *FAST, "--json", files[1], "--mode", "fwd,fwd_bwd", "--both"]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["compare", *files[:2]]) == 0
    text = capsys.readouterr().out
    assert "measured in one run only" in text
    assert any(verdict in text for verdict in ("FAST", "SLOW", "SAME", "AMBG"))


def test_bench_list(capsys):
    assert main(["bench", "linear", *CASE, "--list"]) == 0
    assert capsys.readouterr().out == "sparse_linear/64-1024/0.5/n2/float32/rows\n"


def test_no_older_rows_are_given_up_before_there_are_new_ones(tmp_path, monkeypatch, capsys):
    from sparsekern.measure import rows, show

    file, row = tmp_path / "rows.jsonl", _row()
    file.write_text("an older run\n")
    for mistake in (["--mode", "sideways"], ["--core", "9999"], ["--threads", "0"]):
        assert main(["bench", "linear", *CASE, *mistake, "--json", str(file)]) == 2
        assert file.read_text() == "an older run\n"
    monkeypatch.setattr(rows, "measure", lambda *_, **options: [row])
    monkeypatch.setattr(show, "table", lambda found: 1 / 0)  # whatever befalls the picture, the rows are kept
    assert main(["bench", "linear", *CASE, "--json", str(file)]) == 1
    assert rows.read_rows(file) == [row]


def test_a_reader_that_goes_ends_nothing(tmp_path):
    """`sparsekern ... | head -0`: what was asked for is done to its end, and nothing failed."""
    code = "import sys; sys.stdin.read(); from sparsekern.cli import main; sys.exit(main(sys.argv[1:]))"
    commands = {
        "models": ["models"],
        "train": ["train", "digits/density", "--fan-out", "4,5", "--epochs", "2", "--out", str(tmp_path / "run"), "--threads", "1"],
    }
    for name, command in commands.items():
        running = subprocess.Popen(
            [sys.executable, "-c", code, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.stdout.close()  # before it says a word
        said = running.communicate()[1].decode()
        assert running.returncode == 0, f"{name}: {said}"
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3


def test_letters_that_a_terminal_lacks():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "sparsekern", "bench", "overhead", "--case", "linear_blocks", "--mode", "fwd", "--rounds", "1"],
        env=environment, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and b"ours ?s" in done.stdout, done.stderr.decode()


def test_a_bench_that_is_cut_off_keeps_what_it_measured(tmp_path, monkeypatch):
    from sparsekern.measure import rows, show

    measured = []

    def measure(case, **options):
        if measured:
            raise KeyboardInterrupt
        measured.append(_row(case))
        return measured

    monkeypatch.setattr(rows, "measure", measure)
    monkeypatch.setattr(show, "table", lambda found: "a table")
    (tmp_path / "rows.jsonl").write_text("an older run\n")
    assert main(["bench", "linear", "--json", str(tmp_path / "rows.jsonl")]) == 130
    assert rows.read_rows(tmp_path / "rows.jsonl") == measured


@pytest.mark.parametrize(("ratio", "code"), [(99.0, 0), (0.5, 1)])
def test_bench_check_of_recorded_rows(tmp_path, capsys, ratio, code):
    from sparsekern.measure.rows import write_rows

    write_rows(tmp_path / "rows.jsonl", [_row(ratios={"dense": [ratio] * 3}, gated=["dense"])])
    assert main(["bench", "check", str(tmp_path / "rows.jsonl"), "--recorded"]) == code
    assert ("BROKEN" in capsys.readouterr().out) == bool(code)


def test_profile(tmp_path, capsys):
    (tmp_path / "net.py").write_text("from torch import nn\ndef small():\n    return nn.Sequential(nn.Linear(6, 3), nn.ReLU())\n")
    file = str(tmp_path / "profile.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code = main(["profile", "net:small", "--input", "4x6", "--against", "net:small", "--rounds", "2", "--json", file])
    assert code == 0
    text = capsys.readouterr().out
    assert "Linear" in text
    assert "1.00x fewer FLOPs" in text
    assert json.loads((tmp_path / "profile.json").read_text())["flops"] == 2 * 4 * 6 * 3


def test_probe(capsys):
    assert main(["probe", "--layer", "block 16", "--probe", "no_bias"]) == 0
    assert "all ok" in capsys.readouterr().out


def test_reproduce_lists_its_tables(capsys):
    assert main(["reproduce"]) == 0
    assert "deep-roots/nin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bench linear --case nothing", "bench: --case must match a case of linear; got 'nothing'"),
        ("bench linear --batch one", "--batch must be numbers separated by commas; got 'one'"),
        ("bench linear --batch 0", "--batch must be above 0; got 0"),
        ("bench linear --density nan", "--density must be above 0; got nan"),
        ("bench linear --case 784-224 --rounds 0", "interleave: rounds and min_time_ms must be above 0; got 0 and 3.0"),
        ("bench linear --dtype int8", "bench: dtypes of linear must be among float32, float64, float16, bfloat16; got int8"),
        ("bench conv --layout rows", "bench: layouts of conv must be among nchw, channels_last; got rows"),
        ("bench linear --case nothing --list", "bench: --case must match a case of linear; got 'nothing'"),
        ("bench linear --mode grad_x", "bench: --mode must be of fwd, fwd_bwd; got grad_x"),
        ("bench linear some_file", "bench linear: FILE must be left out; got some_file"),
        ("bench conv --allocator kept", "bench conv: --allocator must be left out; got kept"),
        ("bench overhead --dtype bfloat16", "bench overhead: --dtype must be left out; got bfloat16"),
        ("bench overhead --plot foo.png", "bench overhead: --plot must be left out; got foo.png"),
        ("bench overhead --json nowhere/rows.jsonl", "bench: the folder of nowhere/rows.jsonl must exist"),
        ("bench check --density 0.1", "bench check: --density must be left out; got 0.1"),
        ("bench models --rounds 3", "bench models: --rounds must be left out; got 3"),
        ("reproduce digits/density --counts-only", "reproduce: --counts-only must be left out: digits/density trains and counts nothing"),
        ("reproduce digits/density --batch 4", "reproduce: --batch must be left out: digits/density trains and counts nothing"),
        ("reproduce patterns/morse --quick", "reproduce: --quick must be left out: patterns/morse trains and counts nothing"),
        ("reproduce deep-roots/nin --no-check", "reproduce: --no-check must be left out: deep-roots/nin trains nothing"),
        ("reproduce deep-roots/nin --seeds 0,1", "reproduce: --seeds must be left out: deep-roots/nin trains nothing"),
        ("reproduce all --preset full", "reproduce: --preset must be left out: all trains nothing"),
        ("reproduce digits/density --seeds 0,1,0", "reproduce: --seeds must be different numbers; got 0,1,0"),
        ("reproduce digits/density --epochs 0", "reproduce: --epochs must be above 0; got 0"),
        ("reproduce digits/density --threads 0", "reproduce: --threads must be from 1 to 1024; got 0"),
        ("bench linear --threads 1,100000", "bench: --threads must be from 1 to 1024; got 100000"),
        ("train digits/density --threads 100000", "train: --threads must be from 1 to 1024; got 100000"),
        ("compare . .", "[Errno 21] Is a directory: '.'"),
        ("profile nin --input 3x-1x5", "--input must be sizes joined by x, for example 1x3x32x32; got '3x-1x5'"),
        ("reproduce deep-roots/nin --batch 0", "--batch must be above 0; got 0"),
        ("bench check nowhere", "bench check: FILE must be a file of rows or a folder of them; got nowhere"),
        ("profile no_such_model", "create_model: name must be a registered model; got 'no_such_model'"),
        ("profile no.such:thing", "profile: MODEL must be module:callable that can be imported"),
        ("profile nin --input 32by32", "--input must be sizes joined by x"),
        ("compare a.jsonl b.jsonl", "[Errno 2] No such file or directory: 'a.jsonl'"),
        ("reproduce no-such-table", "reproduce: TABLE must be one of"),
        ("probe --layer pudding", "probe: must be one of"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(arguments, sentence, capsys):
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sparsekern: {sentence}")
    assert said.count("\n") == 1


def test_unknown_commands_are_argparse_errors(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2


def test_models_lists_every_model_with_counts_and_what_was_measured(tmp_path, capsys):
    row = {"model": "nin_root_8", "speedup": {"model": {"ours over dense": [2.0, 2.13, 2.2]}}}
    other = {"model": "nin_root_4", "options": {"fan_out": [1]}, "speedup": {"model": {"ours over dense": [9, 9, 9]}}}
    document = {"batch": 1, "threads": 1, "dtype": "float32", "machine": {"cpu": "a processor"}, "rows": [row, other]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    (tmp_path / "b.json").write_text(json.dumps(document | {"batch": 32}))
    assert main(["models", "nin_root_?", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "314,954" in text and "2.13x" in text and "a processor" in text and "9.00x" not in text
    (tmp_path / "none").mkdir()
    assert main(["models", "--json", "-", "--results", str(tmp_path / "none")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found] == list_models()
    assert main(["models", "vgg*"]) == 2
    assert "models: PATTERN must match a registered model; got 'vgg*'" in capsys.readouterr().err
