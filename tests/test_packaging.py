"""What `pip` gets: an sdist with every source, a wheel from it that works anywhere and names no build path."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command, cwd=ROOT, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """sdist, and the wheel that pip builds from it in isolation."""
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--sdist", "--outdir", out, ROOT)
    (sdist,) = out.glob("*.tar.gz")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, sdist, cwd=out)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_the_sources(dist):
    with tarfile.open(dist[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for path in [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("sparsekern/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "CMakeLists.txt"]:
        assert str(path.relative_to(ROOT)) in names, path
    assert not any(name.endswith(".so") for name in names)


def test_wheel_works_away_from_the_tree(dist, tmp_path):
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", dist[1], cwd=tmp_path)
    assert (tmp_path / "site" / "sparsekern" / "profile" / "page.html").exists()
    assert (tmp_path / "site" / "sparsekern" / "py.typed").exists()  # else nobody's checker reads our types
    code = (
        "import sys; sys.path.insert(0, 'site'); import torch, sparsekern; assert 'site' in sparsekern.__file__;"
        "from sparsekern.ops import backends; assert backends.missing is None, backends.missing;"
        "layer = sparsekern.SparseLinear(64, 32, density=0.25); layer(torch.randn(3, 64)).sum().backward();"
        "print(backends.serves('sparse_linear'))"
    )
    assert run("-c", code, cwd=tmp_path).startswith("cpu/")


def test_wheel_names_no_build_path(dist):
    with zipfile.ZipFile(dist[1]) as wheel:
        libraries = [name for name in wheel.namelist() if name.endswith(".so")]
        assert len(libraries) == 4
        for name in libraries:
            data = wheel.read(name)
            assert str(ROOT).encode() not in data and b"/tmp/pip" not in data, name
