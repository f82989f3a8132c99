import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import data, network

import tas
from tas import scoring
from tas.calibration import recalibrate
from tas.data import nested
from tas.errors import BadData, BadRecipe
from tas.merging import Merging
from tas.objectives import Objective, cross_entropy, default_objective, top1
from tas.scoring import Score, judge, judged, raced, ranked, score, search_splits

DATA = data()


def traced() -> tas.Traced:
    return tas.trace(network(), torch.zeros(2, 1, 8, 8))


def architectures(space: tas.SearchSpace, count: int = 5) -> list[tas.Architecture]:
    found = tas.sample_many(space, torch.Generator().manual_seed(3), count)
    return [space.architecture(row) for row in found.tolist()]


@pytest.mark.parametrize("merge", [False, True])
def test_a_score_does_not_depend_on_the_other_candidates_or_their_order(merge):
    source = traced()
    found = architectures(source.space)
    options = {"images": 100, "batch": 32, "merge": merge}
    forward = score(source, found, DATA, **options)
    backward = score(source, found[::-1], DATA, **options)
    alone = score(source, found[2:3], DATA, **options)
    assert forward == backward[::-1]
    assert alone == forward[2:3]
    assert len({scored.loss for scored in forward}) > 1


def test_a_merged_score_is_of_the_merged_student():
    source = traced()
    found = architectures(source.space)[0]
    chosen = judge(source, DATA, images=100, calibration_images=96, batch=32, merge=True)
    student = Merging(source, chosen.merging.batches).student(found)
    recalibrate(student, chosen.calibration, student)
    with torch.no_grad():
        wanted = torch.cat([student.eval()(x) for x, _ in chosen.held_out])
    scored, _ = judged(chosen, found)
    assert scored.loss == pytest.approx(float(cross_entropy(wanted, torch.cat([y for _, y in chosen.held_out]))), 1e-5)
    assert scored.loss != pytest.approx(judged(replace(chosen, merging=None), found)[0].loss, 1e-3)
    weights, _ = search_splits(DATA)
    assert sum(map(len, chosen.merging.batches)) == min(256, len(weights))


def test_candidates_of_one_depth_share_what_the_original_said(monkeypatch):
    source = traced()
    found = architectures(source.space, 8)
    (depth,) = (choice.name for choice in source.space.choices if choice.kind == "depth")
    runs, cut = [], tas.Traced.cut
    monkeypatch.setattr(tas.Traced, "cut", lambda *given: runs.append(1) or cut(*given))
    chosen = judge(source, DATA, images=50, calibration_images=32, batch=32, merge=True)
    [chosen.network(each) for each in found]
    depths = {each[depth] for each in found}
    assert len(depths) > 1
    first, again = len(runs), [chosen.network(each) for each in found]
    assert len(runs) - first == len(again)  # an extraction each, and the original is not run any more
    assert set(chosen.merging._known) == {(each,) for each in depths}


def test_weights_of_a_supernet_are_never_merged():
    source = traced()
    found = architectures(source.space)
    supernet = tas.Supernet(source)
    assert judge(supernet, DATA, images=50, merge=True).merging is None
    assert score(supernet, found, DATA, images=50, merge=True) == score(supernet, found, DATA, images=50)


def test_candidates_may_be_indices_as_samplers_and_distributions_give_them():
    source = traced()
    space, generator = source.space, torch.Generator().manual_seed(3)
    rows = tas.sample_many(space, generator, 3, tas.budget(space, macs=0.6))
    learned = tas.ArchitectureDistribution(space).sample(generator, 2)
    for indices in (rows, learned):
        listed = [space.architecture(row) for row in indices.tolist()]
        assert score(source, indices, DATA, images=50) == score(source, listed, DATA, images=50)


def test_an_architecture_of_another_space_is_refused_before_any_image_is_decoded(monkeypatch):
    source = traced()
    monkeypatch.setattr(scoring, "judge", lambda *_, **__: pytest.fail("images were decoded"))
    wrong = dict(source.space.largest()) | {"conv": 999}
    with pytest.raises(ValueError, match=r"'conv' takes one of \(.*\), got 999"):
        score(source, [source.space.largest(), wrong], DATA)


def test_scoring_leaves_the_original_and_the_supernet_bit_identical():
    source = traced()
    supernet = tas.Supernet(source)
    for owner, weights in ((source, source.network), (supernet, supernet)):
        before = {name: value.clone() for name, value in weights.state_dict().items()}
        score(owner, architectures(source.space, 2), DATA)
        assert all(torch.equal(value, before[name]) for name, value in weights.state_dict().items())


def test_a_score_is_what_extracting_recalibrating_and_evaluating_by_hand_gives():
    source = traced()
    architecture = architectures(source.space, 1)[0]
    (found,) = score(source, [architecture], DATA, calibration_images=96, batch=32, images=10_000, seed=4)
    weights, held_out = search_splits(DATA, 4)
    images, targets = next(held_out.batches(len(held_out)))
    student = tas.extract(source, architecture).eval()
    with torch.no_grad():
        raw = (student(images).argmax(1) == targets).double().mean().item()
        order = nested(weights.targets, len(weights), torch.Generator().manual_seed(0))
        recalibrate(student, [inputs for inputs, _ in weights.take(order[:96]).batches(32)])
        outputs = student(images)
    assert found.raw == pytest.approx(100 * raw)
    assert found.recalibrated == pytest.approx(100 * (outputs.argmax(1) == targets).double().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert found.images == len(held_out)
    assert found.architecture == architecture


def test_the_largest_architecture_scores_raw_like_the_original():
    source = traced()
    (found,) = score(source, [source.space.largest()], DATA)
    images, targets = next(search_splits(DATA)[1].batches(1000))
    with torch.no_grad():
        assert found.raw == pytest.approx(float(top1(source.network(images), targets).mean()))


def test_images_states_how_many_were_used():
    source = traced()
    assert score(source, [source.space.smallest()], DATA, images=50)[0].images == 50
    assert score(source, [source.space.smallest()], DATA, images=9999)[0].images == 128


def test_calibration_and_scores_never_share_an_image():
    weights, held_out = search_splits(DATA)
    assert len(weights) + len(held_out) == len(DATA.train)
    inputs = torch.cat([weights.source.inputs, held_out.source.inputs]).flatten(1)
    assert len(inputs.unique(dim=0)) == len(DATA.train)


def test_a_network_without_batch_norm_is_not_recalibrated():
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
    source = tas.trace(plain, torch.zeros(2, 1, 8, 8))
    for found in score(source, architectures(source.space, 3), DATA):
        assert found.recalibrated == found.raw
        assert math.isfinite(found.loss)
    assert judge(source, DATA).calibration == []


def test_a_race_gives_every_candidate_the_score_that_its_count_gives_without_a_race():
    source, told = traced(), []
    found = list(dict.fromkeys(architectures(source.space, 9)))
    options = {"calibration_images": 128, "batch": 32}
    race = score(source, found, DATA, images=100, rungs=2, keep=0.25, raw=False, on_score=told.append, **options)
    early = score(source, found, DATA, images=25, calibration_images=32, batch=32, raw=False)
    late = score(source, found, DATA, images=100, raw=False, **options)
    survivors = {scored.architecture for scored in ranked(early)[: math.ceil(len(found) / 4)]}
    for raced_one, first, whole in zip(race, early, late, strict=True):
        assert raced_one == (whole if raced_one.architecture in survivors else first)
    assert {scored.images for scored in race} == {25, 100}
    assert [scored.images for scored in told] == [25] * len(found) + [100] * len(survivors)
    backward = score(source, found[::-1], DATA, images=100, rungs=2, keep=0.25, raw=False, **options)
    assert backward == race[::-1]


def test_a_race_calibrates_each_batch_once_and_knows_its_limits(monkeypatch):
    source, seen = traced(), []

    def counting(network, batches, *rest, **named):
        seen.append(len(batches))
        recalibrate(network, batches, *rest, **named)

    monkeypatch.setattr(scoring, "recalibrate", counting)
    chosen = judge(source, DATA, images=100, calibration_images=128, batch=32)
    raced(chosen, architectures(source.space, 1), rungs=3, keep=0.5)
    assert seen == [1, 1, 2]
    for rungs, keep in ((0, 0.5), (2, 0.0), (2, 1.0)):
        with pytest.raises(BadRecipe, match="at least 1 rung"):
            raced(chosen, [], rungs, keep)


def test_equal_architectures_are_scored_once_and_raw_costs_its_own_forwards():
    source, told = traced(), []
    (one,) = architectures(source.space, 1)
    found = score(source, [one, one], DATA, images=20, raw=False, on_score=told.append)
    assert found == [told[0], told[0]]
    assert len(told) == 1
    assert found[0].raw is None


def test_a_candidate_that_is_not_a_number_is_never_promoted():
    source = traced()
    found = list(dict.fromkeys(architectures(source.space, 6)))
    chosen = judge(source, DATA, images=100, batch=32)
    plain = raced(chosen, found)
    lost = ranked(plain)[0].architecture

    def nan_for_the_best(outputs, targets):
        return cross_entropy(outputs, targets) * (math.nan if calls[-1] == lost else 1)

    calls = []
    objective = Objective(nan_for_the_best, top1, "top1")
    broken = judge(source, DATA, objective=objective, images=100, batch=32)
    kept = []
    for each in found:
        calls.append(each)
        kept.append(judged(broken, each)[0])
    assert sum(not scored.valid for scored in kept) == 1
    assert ranked(kept)[-1].architecture == lost
    assert ranked(kept)[0] == ranked(plain)[1]


def test_a_class_that_is_not_held_out_is_named():
    with pytest.warns(UserWarning, match="blind to classes"):
        score(traced(), [], DATA, images=2)


def test_fewer_calibration_images_than_a_batch_are_one_batch():
    source = traced()
    (one,) = architectures(source.space, 1)
    (few,), (many,) = (score(source, [one], DATA, calibration_images=count, images=50) for count in (40, 128))
    assert few.loss != many.loss
    assert few.raw == many.raw


def scored(metric: float, loss: float = 1.0, width: int = 1, images: int = 10) -> Score:
    return Score(tas.Architecture.of({"w": width}), metric, 0.0, loss, images)


def test_ranking_takes_the_metric_then_the_loss_and_never_what_is_not_a_number():
    lost, low, tied, best = scored(math.nan, 0.0), scored(3.0), scored(5.0, 2.0), scored(5.0, 1.5)
    assert ranked([lost, low, tied, best]) == [best, tied, low, lost]
    error = Objective(cross_entropy, top1, "error", higher_is_better=False)
    assert ranked([lost, tied, low, best], error) == [low, best, tied, lost]
    assert ranked([scored(5.0, math.nan), tied], default_objective())[0] == tied
    assert ranked([scored(5.0, width=3), scored(5.0, width=2)])[0].architecture["w"] == 2
    assert ranked([scored(9.0, images=5), low, lost]) == [low, scored(9.0, images=5), lost]
    with pytest.raises(BadData, match="all are NaN"):
        ranked([lost, lost])


def test_arguments_of_another_kind_are_refused_in_words():
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    one = source.space.uniform(0.5)
    with pytest.raises(ValueError, match="a mapping of choices to sizes, got a Tensor"):
        score(source, [torch.zeros(2)], DATA)
    for name in ("images", "calibration_images"):
        with pytest.raises(BadRecipe, match=f"{name} is at least 1, got -1"):
            score(source, [one], DATA, **{name: -1})
    images = {"images": 32, "calibration_images": 32}
    assert score(source, one, DATA, **images) == score(source, [one], DATA, **images)
