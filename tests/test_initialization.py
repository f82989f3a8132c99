"""A student starts from the original's first channels, or from fresh weights that depend on the seed alone."""

import pytest
import torch
from tiny_task import TinyNet

import tas
from tas.initialization import student_at


@pytest.fixture
def traced() -> tas.Traced:
    torch.manual_seed(0)
    return tas.trace(TinyNet(), torch.randn(2, 1, 8, 8))


def test_inherited_weights_are_the_first_channels(traced: tas.Traced) -> None:
    student = student_at(traced, traced.space.smallest(), "inherit")
    width = student.stem[0].weight.shape[0]
    assert width < 8
    assert torch.equal(student.stem[0].weight, traced.network.stem[0].weight[:width])


def test_fresh_weights_depend_on_the_seed_alone(traced: tas.Traced) -> None:
    before, state = traced.network.stem[0].weight.clone(), torch.random.get_rng_state()
    first, again, other = (student_at(traced, traced.space.largest(), "scratch", seed) for seed in (1, 1, 2))
    assert torch.equal(first.stem[0].weight, again.stem[0].weight)
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)
    assert not torch.equal(first.stem[0].weight, before)
    assert torch.equal(traced.network.stem[0].weight, before)
    assert torch.equal(torch.random.get_rng_state(), state)
