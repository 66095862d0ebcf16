"""What a docstring example may use without importing it."""

import pytest


@pytest.fixture(autouse=True)
def names_of_examples(doctest_namespace):
    import torch
    from torch import nn

    import sparsekern

    doctest_namespace.update(torch=torch, nn=nn, sparsekern=sparsekern)
