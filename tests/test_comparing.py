"""`tas compare`: which rows there are and what they share, that no cell is computed twice, and what is called noise."""

import json
import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from test_methods import chain
from tiny_task import TinyNet, recipe_values, write_data
from torch import Tensor, nn

import tas
from tas import cells, cost
from tas.comparing import compare, searches
from tas.errors import BadRecipe, Infeasible
from tas.exporting import save
from tas.methods.baselines import magnitude, random, uniform
from tas.methods.storages import kept
from tas.objectives import top1, top5
from tas.outcomes import original_of_cells, rows_of, spread, verdict
from tas.preparation import prepare
from tas.recipe import Recipe, parse
from tas.reporting import comparison, pictures
from tas.space import Choice, Factor, LayerCost, SearchSpace, Term
from tas.timing import interleaved

BASELINES = ["uniform", "random", "magnitude", "scratch-E", "scratch-B"]


def recipe_in(folder: Path, **section: Any) -> Recipe:
    search = {"method": "adaptive_bn", "candidates": 3, "evolve": 0, "images": 64, "calibration_images": 64}
    section = {"seeds": [0, 1], "latency_repeats": 3, "latency_batch": 4, **section}
    return parse({**recipe_values(folder), "search": search, "compare": section, "distill": {"epochs": 1, "batch": 64}})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with data and `run`, a finished comparison of one search at two budgets."""
    folder = tmp_path_factory.mktemp("compared")
    return folder, compare(recipe_in(folder, budgets=["60%", {"params": 0.4}]), folder / "run")


def trainings(monkeypatch: pytest.MonkeyPatch, stop_before: int | None = None) -> list[tuple[dict[str, int], int]]:
    """(architecture, epochs) of what is trained from now on; Ctrl-C before training number `stop_before`."""
    seen: list[tuple[dict[str, int], int]] = []
    taught = cells.taught

    def noting(current: Any, stage: str, architecture: Any, *rest: Any, **options: Any) -> Any:
        if stop_before == len(seen):
            raise KeyboardInterrupt
        seen.append((dict(architecture), options["how"].epochs))
        return taught(current, stage, architecture, *rest, **options)

    monkeypatch.setattr(cells, "taught", noting)
    return seen


def test_every_row_meets_its_budget_with_every_seed(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    space = prepare(recipe_in(folder)).space
    assert list(found["budgets"]) == ["60% of MACs", "40% of parameters"]
    assert [row["row"] for row in found["rows"]] == 2 * ["adaptive_bn", *BASELINES]
    assert all(row["seeds"] == [0, 1] for row in found["rows"])
    for cell in found["cells"]:
        for measure, limit in found["budgets"][cell["budget"]].items():
            assert cell[measure] == getattr(tas, measure)(space, cell["architecture"]) <= limit
    assert found["original"]["macs"] == tas.macs(space, space.largest())
    assert json.loads((folder / "run" / "compare" / "comparison.json").read_text()) == found


def test_scratch_rows_train_the_searched_architecture_as_long_and_as_dearly(done: tuple[Path, dict[str, Any]]) -> None:
    found = done[1]
    for budget in found["budgets"]:
        for seed in (0, 1):
            mine = {c["row"]: c for c in found["cells"] if (c["budget"], c["seed"]) == (budget, seed)}
            searched = mine["adaptive_bn"]
            assert mine["scratch-E"]["architecture"] == mine["scratch-B"]["architecture"] == searched["architecture"]
            assert mine["scratch-E"]["facts"]["epochs"] == searched["facts"]["epochs"] == 1
            assert mine["scratch-B"]["facts"]["epochs"] == int(found["original"]["macs"] / searched["macs"]) >= 1
            assert mine["scratch-E"]["facts"]["start"] == mine["scratch-B"]["facts"]["start"] == "scratch"


def test_rows_that_differ_say_in_what(done: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["row"]: row for row in done[1]["rows"] if row["budget"] == "40% of parameters"}
    for name in ("adaptive_bn", "uniform", "random", "magnitude"):
        assert not rows[name]["differs"]
    assert rows["scratch-E"]["differs"] == {"start": "scratch"}
    assert list(rows["scratch-B"]["differs"]) == ["epochs", "start"]


def test_speedup_compression_and_latency_are_those_of_the_rows_networks(done: tuple[Path, dict[str, Any]]) -> None:
    found = done[1]
    for row in found["rows"]:
        mine = [c for c in found["cells"] if (c["budget"], c["row"]) == (row["budget"], row["row"])]
        assert row["speedup"] == pytest.approx(found["original"]["macs"] / (sum(c["macs"] for c in mine) / 2))
        assert row["compression"] == pytest.approx(found["original"]["params"] / (sum(c["params"] for c in mine) / 2))
        medians = [found["latency"][json.dumps(c["architecture"])]["4"]["median"] for c in mine]
        assert row["latency"]["4"]["median"] == pytest.approx(sum(medians) / 2)
        assert list(row["latency"]) == ["1", "4"]
    assert set(found["latency"]) == {"original", *(json.dumps(c["architecture"]) for c in found["cells"])}


def test_nothing_is_computed_twice_and_one_more_seed_adds_its_cells_alone(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = done
    seen = trainings(monkeypatch)
    again = compare(recipe_in(folder, budgets=["60%", {"params": 0.4}]), folder / "run")
    assert not seen
    assert {**again, "environment": 0} == {**found, "environment": 0}
    more = compare(recipe_in(folder, budgets=["60%"], seeds=[1, 5]), folder / "run")
    assert 0 < len(seen) <= 6
    assert {row["row"]: row["seeds"] for row in more["rows"]}["uniform"] == [1, 5]
    compare(recipe_in(folder, budgets=["60%", {"params": 0.4}]), folder / "run")  # as the other tests find it


def test_an_interruption_leaves_a_table_and_the_same_result_afterwards(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = done
    recipe = recipe_in(folder, budgets=["60%"])
    seen = trainings(monkeypatch, stop_before=2)
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "run")
    place = tmp_path / "run" / "compare"
    partial = json.loads((place / "comparison.json").read_text())
    assert partial["cells"]
    assert all(row["latency"] == {} for row in partial["rows"])
    assert "Not finished" in (place / "comparison.html").read_text()
    assert not list(place.rglob("*.part*"))
    monkeypatch.undo()
    rest = trainings(monkeypatch)
    found = compare(recipe, tmp_path / "run")
    assert found["cells"] == [cell for cell in whole["cells"] if cell["budget"] == "60% of MACs"]
    assert len(list((place / "students").glob("*.json"))) == len(seen) + len(rest)
    assert "Not finished" not in (place / "comparison.html").read_text()
    assert not (place / "checkpoints").exists()


def test_a_training_goes_on_from_its_last_epoch(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first of three epochs: the checkpoint is taken up, and gone afterwards."""
    recipe = recipe_in(done[0], budgets=["60%"], seeds=[0])
    recipe = recipe.model_copy(update={"distill": type(recipe.distill)(epochs=3, batch=64)})
    distill, epochs = tas.teaching.distill, []

    def stopping(*arguments: Any, progress: Any, **options: Any) -> Any:
        def told(at: Any) -> None:
            epochs.append(at.epoch)
            if at.epoch == 2 and len(epochs) < 20:
                epochs.extend([0] * 20)
                raise KeyboardInterrupt
            progress(at)

        return distill(*arguments, progress=told, **options)

    monkeypatch.setattr(tas.teaching, "distill", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "run")
    assert len(list((tmp_path / "run" / "compare" / "checkpoints").glob("*.pt"))) == 1
    epochs.append(-1)
    compare(recipe, tmp_path / "run")
    after = epochs[epochs.index(-1) + 1 :]
    assert after[0] == 2
    assert not (tmp_path / "run" / "compare" / "checkpoints").exists()


def test_only_the_section_compare_may_change_in_a_run_folder(done: tuple[Path, dict[str, Any]]) -> None:
    folder = done[0]
    recipe = recipe_in(folder)
    with pytest.raises(BadRecipe, match=r"distill\.epochs was 1, is 9"):
        compare(recipe.model_copy(update={"distill": type(recipe.distill)(epochs=9, batch=64)}), folder / "run")


def test_tables_page_and_curves_hold_what_was_found(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    header, rows = comparison.comparison_rows(found, "60% of MACs")
    assert header[:3] == ["network", "top1", "to original"]
    assert header[-3:] == ["ms, batch 4", "n", "remarks"]
    assert [row[0] for row in rows] == ["original", "adaptive_bn", *BASELINES]
    assert all(len(row) == len(header) for row in rows)
    assert "starts from scratch" in rows[-2][-1]
    page = (folder / "run" / "compare" / "comparison.html").read_text()
    for text in ("60% of MACs", "40% of parameters", "magnitude", "Every seed", "starts from scratch", "1 epoch on"):
        assert text in page, text
    assert not set(re.findall(r"(?:src|href)=\"([^\"#]+)\"", page))
    assert page.count("<svg") == 1
    picture = (folder / "run" / "compare" / "curves.svg").read_text()
    assert picture.startswith("<svg")
    assert "var(" not in picture
    with pytest.raises(BadRecipe, match="holds no comparison"):
        comparison.write_comparison(folder)


def test_the_table_says_what_it_cannot_say(done: tuple[Path, dict[str, Any]]) -> None:
    found = done[1]
    assert any("Two seeds" in text for text in comparison.cautions(found))
    assert any("learning rate of the others, 0.1" in text for text in comparison.cautions(found))
    large = {**found, "seeds": [0, 1, 2], "start": "scratch", "cells": []}
    assert comparison.cautions(large) == []
    for change, word in (
        ({"seeds": [4]}, "One seed has no spread"),
        ({"budgets": {"50% of MACs": {}}}, "One budget"),
        ({"traced": False}, "No row magnitude"),
        ({"latency": {}}, "Not finished"),
    ):
        [only] = comparison.cautions({**large, **change})
        assert word in only
    assert "Two seeds" in (done[0] / "run" / "compare" / "comparison.html").read_text()


def test_rows_that_are_one_network_are_named(done: tuple[Path, dict[str, Any]]) -> None:
    """scratch-E has the architecture of the first search, but another start."""
    found = done[1]
    cell = found["cells"][0]
    even = [{**cell, "row": row, "seed": seed} for seed in (0, 1) for row in ("uniform", "magnitude")]
    fresh = {**even[0], "row": "scratch-E", "facts": {**cell["facts"], "start": "scratch"}}
    other = {**even[0], "row": "random", "architecture": {**cell["architecture"], "stem.0": 3}}
    assert comparison.cautions({**found, "cells": [*even, fresh, other]})[-1] == (
        "At 60% of MACs the rows uniform and magnitude are the same network (seeds 0, 1), so nothing is to be read "
        "from their being level."
    )
    named = [text for text in comparison.cautions(found) if "are the same network" in text]
    by_seed = {(c["row"], c["budget"], c["seed"]): c["architecture"] for c in found["cells"]}
    for label in found["budgets"]:
        for seed in (0, 1):
            equal = by_seed["uniform", label, seed] == by_seed["magnitude", label, seed]
            told = any(all(part in text for part in (label, "uniform", "magnitude", str(seed))) for text in named)
            assert told or not equal
    page = (done[0] / "run" / "compare" / "comparison.html").read_text()
    assert all(text in page for text in named)


class SixClasses(TinyNet):
    def __init__(self) -> None:
        super().__init__(6)


def test_top5_is_shown_from_six_classes_on(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert "top5" not in done[1]["original"]
    write_data(tmp_path / "data.npz", classes=6)
    recipe = recipe_in(tmp_path, seeds=[0])
    found = compare(
        recipe.model_copy(update={"network": recipe.network.model_copy(update={"name": "test_comparing:SixClasses"})}),
        tmp_path / "run",
    )
    header, rows = comparison.comparison_rows(found, "60% of MACs")
    assert header[2] == "top5"
    assert all(found["original"][name] <= 100 for name in ("top1", "top5"))
    assert found["original"]["top5"] >= found["original"]["top1"]
    assert all(row["verdict"] in ("best", "one seed") for row in found["rows"])
    assert "±" not in rows[1][1]


def test_top5_counts_the_five_largest_logits() -> None:
    outputs = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).expand(7, -1)
    targets = torch.arange(7)
    assert top5(outputs, targets).tolist() == [100.0] * 5 + [0.0] * 2
    assert top1(outputs, targets).tolist() == [100.0] + [0.0] * 6


def test_a_search_that_is_only_named_has_its_defaults_but_the_recipes_images(tmp_path: Path) -> None:
    named = ["optuna", "adaptive_bn", {"method": "adaptive_bn", "candidates": 9}]
    found = searches(recipe_in(tmp_path, methods=named))
    assert list(found) == ["optuna", "adaptive_bn", "adaptive_bn 2"]
    assert [found[name].candidates for name in found] == [100, 3, 9]
    assert found["optuna"].images == 64
    assert list(searches(recipe_in(tmp_path))) == ["adaptive_bn"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seeds": [1, 1]}, "must be distinct"),
        ({"seeds": []}, "compare.seeds holds 1 or more, got"),
        ({"methods": ["evolution"]}, "differentiable, adaptive_bn, optuna, tuned"),
        ({"methods": [{"method": "adaptive_bn", "candidate": 1}]}, "did you mean 'candidates'"),
        ({"budgets": [{"mac": 0.5}]}, "did you mean 'macs'"),
        ({"method": ["optuna"]}, "did you mean 'methods'"),
    ],
)
def test_a_wrong_section_is_one_clear_error(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecipe, match=re.escape(message)):
        recipe_in(tmp_path, **section)


def test_budgets_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match="below the smallest"):
        compare(recipe_in(tmp_path, budgets=["60%", 10]), tmp_path / "run")
    with pytest.raises(BadRecipe, match="two are 50% of MACs"):
        compare(recipe_in(tmp_path, budgets=[0.5, 0.5001]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The statistics of the table.


def cell(row: str, seed: int, value: float, **facts: Any) -> dict[str, Any]:
    facts = {"epochs": 10, "lr": 0.1, **facts}
    return {"row": row, "budget": "b", "seed": seed, "err": value, "macs": 50 + seed, "params": 4, "facts": facts} | {
        "architecture": {"w": seed}
    }


def test_rows_are_means_with_the_best_and_what_is_within_noise_of_it() -> None:
    values = {"a": [4.0, 6.0, 5.0], "b": [4.5, 7.0, 5.75], "c": [9.0, 9.5, 9.25]}
    listed = [cell(name, seed, value) for name, two in values.items() for seed, value in enumerate(two)]
    originals = original_of_cells([{"err": 3.0, "macs": 102, "params": 12, "facts": {}}])
    found = {"metric": "err", "higher_is_better": False, "original": originals, "latency": {}}
    rows = {row["row"]: row for row in rows_of({**found, "cells": listed})}
    assert {name: row["verdict"] for name, row in rows.items()} == {"a": "best", "b": "within noise", "c": ""}
    assert rows["a"]["err"] == {"mean": 5.0, "sd": pytest.approx(1.0), "values": [4.0, 6.0, 5.0], "lost": 0}
    assert rows["a"]["speedup"] == pytest.approx(2.0)
    assert rows["a"]["compression"] == 3.0
    assert {row["row"]: row["verdict"] for row in rows_of({**found, "cells": listed, "higher_is_better": True})} == {
        "a": "",
        "b": "",
        "c": "best",
    }


def test_within_noise_is_said_beside_the_best_and_beside_the_original() -> None:
    values = {"a": [4.0, 6.0, 5.0], "b": [4.5, 7.0, 5.75], "c": [9.0, 9.5, 9.25]}
    listed = [cell(name, seed, value) for name, two in values.items() for seed, value in enumerate(two)]
    before = [{"err": value, "macs": 101, "params": 12} for value in (8.0, 10.5, 9.25)]
    found = {"metric": "err", "higher_is_better": False, "original": original_of_cells(before), "latency": {}}
    assert found["original"]["err"] == 9.25
    found |= {"cells": listed, "rows": rows_of({**found, "cells": listed}), "budgets": {"b": {"macs": 51, "params": 4}}}
    header, rows = comparison.comparison_rows(found, "b")
    assert rows[0][:2] == ["original", "9.250 ± 1.250"]
    assert rows[0][header.index("n")] == "3"
    remarks = [row[-1] for row in rows[1:]]
    assert remarks == ["best", "within noise of the best", "within noise of the original"]
    cheap = {**found, "budgets": {"b": {"macs": 60, "params": 5}}}  # 50 to 52 MACs, 4 parameters
    assert comparison.comparison_rows(cheap, "b")[1][1][-1] == "best; uses 85% of the budget"
    one = {**found, "original": original_of_cells(before[:1])}
    one["rows"] = rows_of(one)
    assert [row[-1] for row in comparison.comparison_rows(one, "b")[1][1:]] == ["best", "within noise of the best", ""]


def test_welchs_test_decides_and_one_seed_decides_nothing() -> None:
    best = spread([92.0, 93.0, 94.0])
    assert verdict(spread([89.0, 90.0, 91.0]), best) == ""  # t = 3.67 at 4 degrees of freedom: p = 0.021
    assert verdict(spread([90.0, 91.0, 92.0]), best) == "within noise"  # t = 2.45: p = 0.07, and two deviations apart
    assert verdict(spread([92.0]), best) == "one seed"
    assert verdict(best, spread([92.0])) == "one seed"
    assert verdict(spread([92.0, 92.0]), spread([92.0, 92.0])) == "within noise"
    assert verdict(spread([91.0, 91.0]), spread([92.0, 92.0])) == ""


def test_equals_are_rarely_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 2000, 3, generator=generator).tolist()
    told = [verdict(spread(one), spread(other)) == "" for one, other in zip(*draws, strict=True)]
    assert 0.01 < sum(told) / len(told) < 0.06


def test_facts_that_change_from_seed_to_seed_are_shown_as_a_range() -> None:
    listed = [cell("a", 0, 1.0), cell("a", 1, 1.0), cell("b", 0, 1.0, epochs=21), cell("b", 1, 1.0, epochs=23)]
    originals = original_of_cells([{"err": 1.0, "macs": 1, "params": 1}])
    found = {"metric": "err", "higher_is_better": True, "original": originals, "latency": {}}
    rows = rows_of({**found, "cells": listed})
    assert rows[1]["differs"] == {"epochs": "21 to 23"}
    assert [row["verdict"] for row in rows] == ["best", "best"]  # equal to the last digit


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
@pytest.mark.parametrize("higher", [True, False])
def test_a_metric_that_is_no_number_is_named_and_never_best(nothing: float | None, higher: bool) -> None:
    values = {"a": [9.0, 9.5], "b": [nothing, 9.9 if higher else 0.1], "c": [nothing, nothing]}
    listed = [cell(name, seed, value) for name, two in values.items() for seed, value in enumerate(two)]
    originals = original_of_cells([{"err": 3.0, "loss": nothing, "macs": 101, "params": 12}])
    found = {"metric": "err", "higher_is_better": higher, "original": originals, "latency": {}, "cells": listed}
    found |= {"rows": rows_of(found), "budgets": {"b": {"macs": 51, "params": 4}}}
    by_name = {row["row"]: row for row in found["rows"]}
    assert {name: row["verdict"] for name, row in by_name.items()} == {"a": "best", "b": "one seed", "c": ""}
    assert (by_name["b"]["err"]["mean"], by_name["c"]["err"]["mean"]) == (values["b"][1], None)
    _, shown = comparison.comparison_rows(found, "b")
    assert shown[2][-1] == "err is no number in 1 of 2 seeds; one seed"
    assert (shown[3][1], shown[3][-1]) == ("no number", "err is no number in 2 of 2 seeds")
    assert comparison.seed_rows(found)[1][2][3] == "no number"
    assert pictures.curves(found["rows"], originals, "err").count("<svg") == 1
    alone = {**found, "cells": listed[4:]}
    assert [row["verdict"] for row in rows_of(alone)] == [""]
    assert pictures.curves(rows_of(alone), {**originals, "err": None}, "err")


@pytest.mark.parametrize("storage", ["journal:{}/studies.journal", "sqlite:///{}/studies.db"])
def test_cells_of_two_budgets_and_seeds_have_studies_of_their_own_in_one_storage(tmp_path: Path, storage: str) -> None:
    where = storage.format(tmp_path)
    method = {"method": "optuna", "candidates": 3, "startup": 2, "images": 32, "calibration_images": 32}
    asked = recipe_in(tmp_path, budgets=["60%", "80%"], methods=[{**method, "storage": where}])
    found = compare(asked, tmp_path / "run")
    with kept(where) as opened:
        studies = {name: optuna.load_study(study_name=name, storage=opened).trials for name in names_in(opened)}
    assert len(studies) == 4
    assert all(name.startswith("tas-") for name in studies)
    assert all(len(trials) >= 3 for trials in studies.values())
    searched = {(c["budget"], c["seed"]) for c in found["cells"] if c["row"] == "optuna"}
    assert len(searched) == 4
    again = compare(asked, tmp_path / "run")
    assert again["cells"] == found["cells"]
    with kept(where) as opened:
        assert {name: len(optuna.load_study(study_name=name, storage=opened).trials) for name in names_in(opened)} == {
            name: len(trials) for name, trials in studies.items()
        }


def names_in(storage: Any) -> list[str]:
    return sorted(optuna.get_all_study_names(storage))


# Global magnitude.


def scores_of(space: tas.SearchSpace, **replaced: Tensor) -> dict[str, Tensor]:
    plain = {c.name: torch.linspace(1, 2, c.size) for c in space.choices if c.kind == "width"}
    return {**plain, **replaced}


def test_global_magnitude_takes_the_channels_that_say_nothing() -> None:
    """Half of w1's channels are dead: they go first, and where that meets the budget exactly, nothing else does."""
    space = chain()
    dead = torch.cat([torch.ones(20), torch.zeros(20)])[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    without = {**space.largest(), "w1": 20}
    budget = tas.Budget((("macs", float(cost.macs(space, without))),))
    assert dict(magnitude(space, budget, scores_of(space, w1=dead))) == without
    assert dict(uniform(space, budget)) != without


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.77, 1.0])
def test_global_magnitude_meets_the_budget_and_ends_where_nothing_more_fits(ratio: float) -> None:
    space = chain()
    generator = torch.Generator().manual_seed(3)
    importance = {name: torch.rand(40, generator=generator) ** 3 for name in scores_of(space)}
    limit = ratio * cost.macs(space, space.largest())
    found = magnitude(space, tas.Budget((("macs", limit),)), importance)
    assert cost.macs(space, found) <= limit
    for choice in space.choices:
        if choice.kind == "width" and found[choice.name] < choice.size:
            assert cost.macs(space, {**found, choice.name: found[choice.name] + 4}) > limit


def test_global_magnitude_compares_channels_and_not_the_sizes_of_layers() -> None:
    space, generator = chain(), torch.Generator().manual_seed(4)
    importance = {name: torch.rand(40, generator=generator) for name in scores_of(space)}
    budget = cost.budget(space, macs=0.4)
    larger = {**importance, "w2": 1000 * importance["w2"]}
    assert magnitude(space, budget, larger) == magnitude(space, budget, importance)
    shuffled = {name: score[torch.randperm(40, generator=generator)] for name, score in importance.items()}
    assert magnitude(space, budget, shuffled) == magnitude(space, budget, importance)
    alike = {name: torch.ones(40) for name in importance}
    assert cost.macs(space, magnitude(space, budget, alike)) <= budget.limits[0][1]


def test_what_room_is_left_goes_to_the_most_important_missing_channels() -> None:
    """The threshold takes the last two channels of all three; then there is room for those of a or of b."""
    names = ("a", "b", "c")
    layers = [
        LayerCost(name, "macs", (Term(price, (Factor(name, "power", 1),)),))
        for name, price in zip(names, (10, 10, 30), strict=True)
    ]
    space = SearchSpace(tuple(Choice(name, "width", (2, 4)) for name in names), tuple(layers))
    importance = {
        "a": torch.tensor([4, 3, 0.9, 0.1]),
        "b": torch.tensor([4, 3, 0.8, 0.2]),
        "c": torch.tensor([4, 3, 0.7, 0.3]),
    }
    assert dict(magnitude(space, tas.Budget((("macs", 125.0),)), importance)) == {"a": 4, "b": 2, "c": 2}


def test_the_baselines_of_a_seed_are_not_candidates_of_its_search() -> None:
    space, budget = chain(), cost.budget(chain(), macs=0.5)
    one, other = (random(space, budget, torch.Generator().manual_seed(s)) for s in (0, 1_000_003))
    assert one != other


# Latency.


class Sleeper(nn.Module):
    def __init__(self, seconds: float, log: list[float]) -> None:
        super().__init__()
        self.seconds, self.log = seconds, log

    def forward(self, x: Tensor) -> Tensor:
        import time

        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.log.append(self.seconds)
        time.sleep(self.seconds)
        return x


def test_networks_are_timed_in_turns() -> None:
    log: list[float] = []
    slow, fast = Sleeper(0.1, log), Sleeper(0.004, log)
    found = interleaved([slow.train(), fast.eval()], torch.zeros(1), repeats=4)
    assert found[0].low <= found[0].median <= found[0].high
    assert found[0].median > 2 * found[1].median
    assert found[0].median >= 100
    assert log[-8:] == [0.1, 0.004, 0.004, 0.1] * 2
    assert slow.training
    assert not fast.training
    with pytest.raises(ValueError, match="at least 2"):
        interleaved([fast], torch.zeros(1), repeats=1)


def test_a_student_folder_is_no_comparison(tmp_path: Path) -> None:
    save(TinyNet(), tmp_path / "student")
    with pytest.raises(BadRecipe, match="neither empty nor a run folder"):
        compare(recipe_in(tmp_path), tmp_path / "student")


def test_latency_is_not_measured_at_a_batch_that_the_images_do_not_fill(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, budgets=["60%"], seeds=[0], latency_batch=10_000)
    found = compare(recipe, tmp_path / "run")
    assert {batch for one in found["latency"].values() for batch in one} == {"1", str(found["images"]["test"])}
