"""The divisor that a target likes: planted staircases are found, straight lines and noise are not taken for any."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Shell
from torch import nn

import tas
from tas.errors import BadNetwork, BadRecipe
from tas.latency import Target, measure_latency, with_latency
from tas.latency.staircase import Staircase, divisor, staircases
from tas.reporting.latency import divisor_line, idle_lines, plain, staircase_rows
from tas.tracing import Traced


def planted(by: int, sizes: range = range(32, 65), noise: float = 0.0, slope: float = 1.0) -> Staircase:
    """Time of the next multiple of `by`."""
    generator = np.random.default_rng(0)
    times = [1 + slope * -(-size // by) * by / 64 for size in sizes]
    samples = tuple(tuple(time + noise * generator.standard_normal(9)) for time in times)
    return Staircase("layer", "outputs", 16, tuple(sizes), samples)


@pytest.mark.parametrize("by", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_planted_staircase_is_found(by: int, noise: float) -> None:
    assert divisor([planted(by, noise=noise)]) == by
    assert divisor([planted(by, noise=noise), planted(by, range(1, 33), noise)]) == by


def test_a_longer_staircase_shows_larger_divisors() -> None:
    assert divisor([planted(64, range(128, 257))]) == 64
    assert divisor([planted(64, range(224, 257))]) is None  # all of these sizes cost the same


def test_noise_alone_is_flat_and_nothing_is_told_of_it() -> None:
    flat = planted(8, noise=0.01, slope=0.0)
    assert flat.flat
    assert divisor([flat]) is None
    assert divisor([flat, planted(8)]) == 8
    assert divisor([]) is None


def test_a_staircase_half_drowned_in_a_slope_is_none() -> None:
    stairs, line = planted(8), planted(1)
    both = tuple(
        tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(stairs.samples, line.samples, strict=True)
    )
    assert divisor([replace(stairs, samples=both)]) == 1


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 32, 3, stride=2, bias=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def timed(by_size: list[str]) -> Traced:
    traced = tas.trace(Plain(), torch.randn(2, 1, 8, 8))
    return with_latency(traced, measure_latency(traced, points=2, rounds=3))


def by_blocks(of: int) -> Any:
    """A clock: a layer takes as long as its outputs and inputs, each rounded up to a multiple of `of`."""

    def milliseconds(forward: Any, device: torch.device, calls: int) -> float:
        into, out = (-(-size // of) * of for size in forward.func.weight.shape[1::-1])
        assert forward.args[0].shape[1] == forward.func.weight.shape[1]
        return into * out / 1e3

    return milliseconds


@pytest.mark.parametrize("of", [1, 4, 8])
def test_layers_are_measured_alone_over_both_their_sides(
    timed: Traced, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    monkeypatch.setattr("tas.latency.measuring.once", by_blocks(of))
    found = staircases(timed, Target(), points=20, rounds=3)
    sizes = {(each.layer, each.side): (each.sizes[0], each.sizes[-1], each.other) for each in found}
    assert sizes == {
        ("conv2", "outputs"): (13, 32, 24),
        ("conv2", "inputs"): (5, 24, 32),
        ("conv1", "outputs"): (5, 24, 1),  # its one input is no staircase, nor are the head's four outputs
        ("head", "inputs"): (13, 32, 4),
    }
    assert divisor(found) == of


def test_real_layers_are_timed(timed: Traced) -> None:
    found = staircases(timed, Target(), points=5, rounds=3)
    assert min(min(samples) for each in found for samples in each.samples) > 0
    row = staircase_rows([plain(found[0])])[1][0]
    assert row[:3] == ["conv2", "outputs", "28…32"]


def test_what_cannot_be_measured_is_refused(timed: Traced, by_size: list[str]) -> None:
    with pytest.raises(BadRecipe, match="at least 5 sizes and 3 rounds, got 4 and 15"):
        staircases(timed, Target(), points=4)
    small = tas.trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    measured = with_latency(small, measure_latency(small, points=2, rounds=3))
    with pytest.raises(BadNetwork, match="plain convolutions and linear layers"):
        staircases(measured, Target())


def test_lines_say_what_was_found() -> None:
    assert "Set space.divisor: 8" in divisor_line(8)
    assert "every channel" in divisor_line(1)
    assert "Measure more sizes" in divisor_line(None)
    rows = staircase_rows([plain(planted(8)), plain(planted(8, slope=0.0, noise=0.01))])[1]
    assert rows[0] == ["layer", "outputs", "32…64", "1.5000", "2.0000", "32 40 48 56", "8"]
    assert rows[1][-1] == "flat"
    layers = [{"idle": True, "of_latency": 0.25}, {"idle": False, "of_latency": 0.75}]
    assert idle_lines(layers) == ["MACs fell, but latency did not, in 1 of 2 layers (25% of the latency)."]
    assert idle_lines(layers[1:]) == ["Wherever MACs fell, latency did too."]
    assert idle_lines([{"of_latency": 1.0}]) == []


def test_the_command_shows_the_divisor(shell: Shell, by_size: list[str]) -> None:
    asked = ("latency", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--set", "latency.rounds=3", "--staircase", "8")
    code, out, _ = shell(*asked)
    assert code == 0
    assert "largest steps, after" in out
    code, out, _ = shell(*asked, "--json")
    found = json.loads(out)
    assert (code, found["divisor"] in (None, 1, 2, 4)) == (0, True)
    assert {"layer", "side", "other", "divisor", "flat", "taken"} == found["staircases"][0].keys()
    assert shell(*asked[:-1], "4")[0] == 2
