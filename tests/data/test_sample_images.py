"""Patches of real photographs: shape, determinism, normalisation, and what is said when scikit-learn is missing."""

import builtins

import pytest
import torch

from sparsekern.data import sample_patches

pytest.importorskip("sklearn")
pytest.importorskip("PIL")


def test_shape_dtype_and_the_same_seed_gives_the_same_patches():
    patches = sample_patches(6, size=48, seed=3)
    assert patches.shape == (6, 3, 48, 48) and patches.dtype == torch.float32 and patches.is_contiguous()
    assert torch.equal(patches, sample_patches(6, size=48, seed=3))
    assert not torch.equal(patches, sample_patches(6, size=48, seed=4))
    assert torch.equal(patches[:4], sample_patches(4, size=48, seed=3))
    assert sample_patches(0).shape == (0, 3, 32, 32)


def test_whole_photographs_are_normalised_so_patches_are_near_it():
    patches = sample_patches(512)
    assert patches.mean((0, 2, 3)).abs().max() < 0.3
    assert (patches.std((0, 2, 3)) - 1).abs().max() < 0.3
    # a photograph's neighbouring pixels go together, noise's do not
    left, right = patches[..., :-1].flatten(), patches[..., 1:].flatten()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.8


def test_torch_generator_is_left_alone():
    state = torch.get_rng_state()
    sample_patches(2)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"sample_patches: size must be in 1..427; got 500"):
        sample_patches(1, size=500)
    with pytest.raises(ValueError, match="n must be at least 0; got -1"):
        sample_patches(-1)


@pytest.mark.parametrize("package", ["sklearn", "PIL"])
def test_a_missing_package_is_named_with_its_cure(monkeypatch, package):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install sparsekern\[data\] \(No module named '{package}'\)"):
        sample_patches(1)
