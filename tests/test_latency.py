"""Latency as a cost: the terms of a table, its file, its check; where it matters, time is replaced by a formula."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_task import TinyNet

import tas
from tas import cost
from tas.errors import BadRecipe, Infeasible
from tas.latency import Target, check, measure_latency, read, with_latency
from tas.latency.checking import compared
from tas.latency.explaining import by_layer
from tas.latency.pieces import Piece, at_batch, pieces_of, stretches_at
from tas.latency.table import MEASURE, fitted, smoothed, terms_of
from tas.sampling import sample_many
from tas.space import Choice, Factor, LayerCost, SearchSpace, Term
from tas.timing import Latency
from tas.tracing import Traced


@pytest.fixture(scope="module")
def traced() -> Traced:
    torch.manual_seed(0)
    return tas.trace(TinyNet(), torch.randn(2, 1, 8, 8))


def grid_piece() -> tuple[SearchSpace, Piece, np.ndarray]:
    a, b = Choice("a", "width", (2, 4, 5, 8)), Choice("b", "width", (1, 2, 3))
    depth = Choice("d", "depth", (0, 1, 2))
    piece = Piece("layer", ("a", "b"), ((2, 4, 8), (1, 3)), (Factor("d", "above", 1),))
    values = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    space = SearchSpace((a, b, depth), (LayerCost("layer", MEASURE, terms_of(piece, values)),))
    return space, piece, values


def test_a_piece_costs_what_was_measured_at_the_points_and_bilinear_values_between() -> None:
    space, piece, values = grid_piece()
    for (i, a), (j, b) in product(enumerate(piece.grid[0]), enumerate(piece.grid[1])):
        assert cost.of(space, {"a": a, "b": b, "d": 2}, MEASURE) == pytest.approx(values[i, j])
    # a = 5 lies a quarter of the way from 4 to 8, b = 2 halfway from 1 to 3
    at_four, at_eight = (3 + 5) / 2, (4 + 9) / 2
    assert cost.of(space, {"a": 5, "b": 2, "d": 2}, MEASURE) == pytest.approx(at_four + (at_eight - at_four) / 4)


def test_a_dead_block_costs_nothing() -> None:
    space, _, _ = grid_piece()
    assert [cost.of(space, {"a": 8, "b": 3, "d": d}, MEASURE) for d in (0, 1, 2)] == [0.0, 0.0, 9.0]


def test_the_expectation_is_the_mean_over_all_architectures() -> None:
    space, _, _ = grid_piece()
    table = torch.zeros(3, 4, dtype=torch.float64)
    for row, choice in zip(table, space.choices, strict=True):
        row[: len(choice.candidates)] = torch.rand(len(choice.candidates), dtype=torch.float64).softmax(-1)
    mean = 0.0
    for picked in product(*(range(len(choice.candidates)) for choice in space.choices)):
        chance = float(torch.stack([table[row, column] for row, column in enumerate(picked)]).prod())
        mean += chance * cost.of(space, space.architecture(picked), MEASURE)
    assert float(cost.expected(space, table, MEASURE)) == pytest.approx(mean)


def test_of_the_same_choice_twice_the_curve_is_one_factor_so_the_expectation_stays_exact() -> None:
    points = ((2, 4.0), (8, 64.0))  # a square convolution: one choice, not a product of expectations
    term = tas.space.Term(1.0, (Factor("a", "curve", points=points),))
    space = SearchSpace((Choice("a", "width", (2, 8)),), (LayerCost("layer", MEASURE, (term,)),))
    assert float(cost.expected(space, torch.tensor([[0.5, 0.5]]), MEASURE)) == 34.0


def test_a_curve_is_level_beyond_its_ends() -> None:
    curve = Factor("a", "curve", points=((2, 1.0), (4, 3.0)))
    assert [curve.at(v) for v in (1, 2, 3, 4, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_smoothing_keeps_steps_and_removes_dips() -> None:
    stairs = np.array([1.0, 1.0, 2.0, 2.0, 5.0])
    assert smoothed(stairs).tolist() == stairs.tolist()
    dip = smoothed(np.array([1.0, 3.0, 2.0, 4.0]))
    assert dip.tolist() == [1.0, 2.5, 2.5, 4.0]
    noisy = smoothed(np.random.default_rng(0).random((4, 5)))
    assert (np.diff(noisy, axis=0) >= 0).all()
    assert (np.diff(noisy, axis=1) >= 0).all()


def test_a_fit_finds_offset_and_scale_and_never_a_negative_offset() -> None:
    sums = np.array([1.0, 2.0, 5.0])
    assert fitted(sums, 3 + 2 * sums) == pytest.approx((3, 2))
    offset, scale = fitted(sums, 2 * sums - 1)
    assert offset == 0
    assert 1 < scale < 2


def test_pieces_are_layers_with_what_follows_them_and_the_widths_that_change_them(traced: Traced) -> None:
    args, kwargs = at_batch(traced, 1)
    pieces = {piece.layer: piece for piece in pieces_of(traced, args, kwargs, points=3)}
    first, second = (choice.name for choice in traced.space.choices if choice.kind == "width")
    assert pieces["stem.0"].choices == (first,)
    assert pieces["block.conv1"].choices == pieces["block.conv2"].choices == (first, second)
    assert pieces["block.conv1"].alive
    assert not pieces["stem.0"].alive
    assert all(len(sizes) <= 3 and sizes[-1] == 8 for piece in pieces.values() for sizes in piece.grid)
    stem = stretches_at(traced, traced.space.largest(), args, kwargs)[0]
    assert [type(module).__name__ for module in stem.modules] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert args[0].shape[0] == 1


def test_a_table_predicts_whole_networks(traced: Traced, by_size: list[str]) -> None:
    table = measure_latency(traced, Target(), points=8, rounds=3)
    space = with_latency(traced, table).space
    offset, scale = table.fit
    assert scale == pytest.approx(2, rel=0.05)
    for index in sample_many(space, torch.Generator().manual_seed(3), 12).tolist():
        architecture = space.architecture(index)
        size = sum(p.numel() for p in tas.extract(traced, architecture).parameters()) / 1e3
        assert cost.of(space, architecture, MEASURE) == pytest.approx(1 + 2 * size, rel=0.02)
    assert offset > 0.9
    assert cost.macs(space, space.largest()) == cost.macs(traced.space, traced.space.largest())


def test_a_latency_budget_binds_everywhere(traced: Traced, by_size: list[str]) -> None:
    timed = with_latency(traced, measure_latency(traced, rounds=3))
    whole = cost.original(timed.space, MEASURE)
    assert dict(tas.budget(timed.space, latency=0.6).limits) == {MEASURE: pytest.approx(0.6 * whole)}
    budget = tas.budget(timed.space, latency_ms=0.6 * whole)
    found = sample_many(timed.space, torch.Generator().manual_seed(0), 50, budget)
    assert (cost.count(timed.space, found, MEASURE) <= 0.6 * whole + 1e-9).all()
    assert tas.search(timed, None, budget, method="uniform").architecture != timed.space.largest()
    sizes = torch.tensor([len(choice.candidates) for choice in timed.space.choices])
    present = torch.arange(int(sizes.max())) < sizes[:, None]
    logits = torch.zeros(present.shape, dtype=torch.float64, requires_grad=True)
    biased = logits + 5.0 * torch.nn.functional.one_hot(sizes - 1)  # the largest is the most probable
    probabilities = biased.masked_fill(~present, -torch.inf).softmax(-1)
    cost.penalty(timed.space, budget, probabilities).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) > 0


def test_an_infeasible_latency_names_the_smallest_reachable(traced: Traced, by_size: list[str]) -> None:
    timed = with_latency(traced, measure_latency(traced, rounds=3))
    smallest = cost.whole(MEASURE, cost.of(timed.space, timed.space.smallest(), MEASURE))
    with pytest.raises(Infeasible, match=rf"0\.5 .*smallest architecture's {smallest}"):
        tas.budget(timed.space, latency_ms=0.5)
    with pytest.raises(Infeasible, match=rf"smallest reachable cost is .*{smallest}"):
        tas.sample(timed.space, torch.Generator(), tas.Budget(((MEASURE, 0.5),)))
    with pytest.raises(Infeasible, match="give one of them"):
        tas.budget(timed.space, latency_ms=2.0, latency=0.5)
    with pytest.raises(Infeasible, match=r"ratio up to 1\.0"):
        tas.budget(timed.space, latency=2.5)
    with pytest.raises(Infeasible, match="measure it first"):
        tas.budget(traced.space, latency=0.5)


def test_an_interrupted_table_goes_on_and_a_finished_one_is_only_read(
    traced: Traced, by_size: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "table.json"

    def interrupt(done: int, rounds: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency(traced, rounds=4, file=file, progress=interrupt)
    assert read(file).rounds == 2
    once = len(by_size) / 2
    finished = measure_latency(traced, rounds=4, file=file)
    assert finished.rounds == 4
    assert len(by_size) == 4 * once  # two rounds each time
    assert measure_latency(traced, rounds=4, file=file) == finished == read(file)
    assert len(by_size) == 4 * once
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_a_table_of_something_else_is_refused(traced: Traced, by_size: list[str], tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    table = measure_latency(traced, rounds=3, file=file)
    with pytest.raises(BadRecipe, match="another network, space, input or target"):
        measure_latency(traced, Target(batch=4), rounds=3, file=file)
    with pytest.raises(BadRecipe, match="number of points"):
        measure_latency(traced, rounds=5, points=2, file=file)
    elsewhere = json.loads(file.read_text())
    elsewhere["machine"]["device"] = "another processor"
    file.write_text(json.dumps(elsewhere))
    with pytest.raises(BadRecipe, match="finished where it was begun"):
        measure_latency(traced, rounds=5, file=file)
    with pytest.raises(BadRecipe, match="measure again"):
        with_latency(tas.trace(TinyNet(classes=4), torch.randn(2, 1, 8, 8)), table)
    with pytest.raises(BadRecipe, match="at least 2 points and 3 rounds"):
        measure_latency(traced, points=1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pieces": 3}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(BadRecipe, match="must be a latency table"):
        read(file)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"runtime": "tensorrt"}, "runtime is one of eager, compile, onnxruntime"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"batch": 0}, "batch is at least 1"),
        ({"threads": 0}, "threads is at least 1"),
    ],
)
def test_a_wrong_target_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        Target(**wrong)


def test_what_the_machine_lacks_is_said(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tas.latency.target.find_spec", lambda name: None)
    with pytest.raises(BadRecipe, match=r"onnxruntime.*pip install 'tas\[onnx\]'"):
        measure_latency(traced, Target("onnxruntime"))

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(BadRecipe, match=r"no working C\+\+ compiler"):
        measure_latency(traced, Target("compile"))
    if not torch.cuda.is_available():
        with pytest.raises(BadRecipe, match="needs a CUDA device"):
            measure_latency(traced, Target(device="cuda"))


def test_real_time_is_positive_and_the_threads_are_given_back(traced: Traced) -> None:
    before = torch.get_num_threads()
    table = measure_latency(traced, Target(threads=1, batch=2), points=2, rounds=3)
    assert torch.get_num_threads() == before
    assert min(min(samples) for samples in table.samples.values()) > 0
    assert table.spread >= 0
    original = cost.original(with_latency(traced, table).space, MEASURE)
    assert original > cost.of(with_latency(traced, table).space, traced.space.smallest(), MEASURE) > 0


def test_onnx_runtime_takes_the_pieces() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rules = tas.Rules(ratios=(0.5, 1.0), depth=False)
    small = tas.trace(TinyNet(), torch.randn(2, 1, 8, 8), rules)
    table = measure_latency(small, Target("onnxruntime"), points=2, rounds=3)
    assert min(min(samples) for samples in table.samples.values()) > 0


def test_a_check_compares_with_networks_that_the_table_has_not_seen(traced: Traced, by_size: list[str]) -> None:
    found = check(traced, measure_latency(traced, points=8, rounds=3))
    table = measure_latency(traced, points=8, rounds=3)
    assert not {a for a, _ in table.whole} & set(found.architectures)
    assert found.spearman > 0.99
    assert found.error < 0.01
    assert not found.too_noisy
    with pytest.raises(ValueError, match="15 rounds"):
        check(traced, table, rounds=14)


def test_a_check_says_what_is_off_and_what_is_noise() -> None:
    said, truth = [1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0]
    exact = compared([], said, [Latency(t, t, t) for t in truth])
    assert (exact.spearman, exact.too_noisy) == (1.0, False)
    assert exact.error == pytest.approx((3 / 5 + 4 / 7) / 2)
    assert exact.error_fitted == pytest.approx(0)
    noisy = compared([], said[::-1], [Latency(t, 0.9 * t, 1.1 * t) for t in truth])
    assert noisy.spearman == -1.0
    assert noisy.spread == pytest.approx(0.1)
    assert noisy.too_noisy


def test_a_table_without_signal_is_refused(traced: Traced, by_size: list[str]) -> None:
    table = measure_latency(traced, rounds=3)
    backwards = tuple((a, tuple(1 / s**3 for s in samples)) for a, samples in table.whole)
    with pytest.raises(BadRecipe, match="get faster as their layers do"):
        replace(table, whole=backwards).costs()


def test_layers_whose_macs_fell_and_whose_latency_did_not_are_told() -> None:
    flat, steep = ((4, 2.0), (8, 2.0)), ((4, 1.0), (8, 2.0))
    costs = []
    for layer, points in (("flat", flat), ("steep", steep)):
        costs.append(LayerCost(layer, "macs", (Term(10, (Factor("a", "power", 1),)),)))
        costs.append(LayerCost(layer, MEASURE, (Term(1.0, (Factor("a", "curve", points=points),)),)))
    space = SearchSpace((Choice("a", "width", (4, 8)),), tuple(costs))
    rows = {row["layer"]: row for row in by_layer(space, {"a": 4})}
    assert (rows["flat"]["macs_kept"], rows["flat"]["latency_kept"], rows["flat"]["idle"]) == (0.5, 1.0, True)
    assert (rows["steep"]["latency_kept"], rows["steep"]["idle"]) == (0.5, False)
    assert rows["flat"]["of_latency"] == rows["flat"]["of_macs"] == 0.5
    assert not any(row["idle"] for row in by_layer(space, {"a": 8}))
    assert "idle" not in by_layer(space)[0]
