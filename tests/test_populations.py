"""`tas compare` with `forgetting`: an original a seed, predictions that are the networks', a page that says what it can
and what it cannot."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_comparing import recipe_in, trainings
from tiny_task import TinyNet, recipe_values

from tas.comparing import compare
from tas.data import Batches, InMemory, Split
from tas.errors import BadData, BadRecipe
from tas.exporting import load
from tas.forgetting import exemplars, recall_shifts
from tas.objectives import default_objective
from tas.populations import _pixels
from tas.predictions import Predictions, predictions, read_predictions, write_predictions
from tas.recipe import Recipe, parse
from tas.reporting import comparison
from tas.reporting.forgetting import class_rows, explanation, gallery, gallery_line, png, summary_rows

SEEDS = [0, 1, 2, 3, 4]


def recipe(folder: Path, **section: Any) -> Recipe:
    """Half-trained originals and students of a few channels, so that they err."""
    found = recipe_in(folder, **{"budgets": ["25%"], "seeds": SEEDS, "forgetting": True, **section})
    return found.model_copy(update={"original": type(found.original)(epochs=1, batch=64)})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("populations")
    return folder, compare(recipe(folder), folder / "run")


def test_every_seed_has_an_original_of_its_own_and_its_students_come_from_it(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    assert len(found["original"]["spread"]["top1"]["values"]) == 5
    assert found["original"]["top1"] == pytest.approx(np.mean(found["original"]["spread"]["top1"]["values"]))
    named = {cell["seed"]: cell["facts"]["original"] for cell in found["cells"]}
    assert len(set(named.values())) == 5
    assert all(cell["facts"]["original"] == named[cell["seed"]] for cell in found["cells"])
    assert all("original" not in row["differs"] for row in found["rows"])
    weights = [folder / "run" / "original", *(folder / "run/compare/originals" / f"seed{seed}" for seed in SEEDS[1:])]
    read = [load_file(next(path.glob("*.safetensors"))) for path in weights]
    stems = [tensors["stem.0.weight"] for tensors in read]
    assert not any(torch.equal(a, b) for a, b in zip(stems, stems[1:], strict=False))


def test_an_original_hangs_on_its_seed_alone(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Neither on the originals trained before it, nor on whether the seed is the run's own."""
    mine = recipe(done[0], seeds=[3]).model_copy(update={"seed": 3})
    found = compare(mine, tmp_path / "run")
    before = next(cell for cell in done[1]["cells"] if cell["seed"] == 3)
    assert found["cells"][0]["facts"]["original"] == before["facts"]["original"]


def test_what_is_kept_is_what_the_networks_say(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    place = folder / "run" / "compare"
    with np.load(folder / "data.npz") as arrays:
        truth = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    for cell in found["cells"]:
        kept = read_predictions(place / cell["predictions"])
        assert torch.equal(kept.labels, truth)
        assert 100 * float((kept.predicted == truth).double().mean()) == pytest.approx(cell["top1"], abs=1e-3)
    assert len(list((place / "originals").glob("*.npz"))) == 5
    network = load(TinyNet, place / "originals" / "seed3")
    split = Split("test", InMemory(torch.rand(7, 1, 8, 8), torch.arange(7) % 3))
    with torch.no_grad():
        expected = network(split.source.inputs).argmax(1)
    assert torch.equal(predictions(network, split, default_objective(), "cpu").predicted, expected)


def test_the_file_holds_what_the_mathematics_says_of_the_kept_predictions(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    place = folder / "run" / "compare"
    forgot = json.loads((place / "forgetting.json").read_text())
    cells = {
        json.loads(p.read_text())["facts"]["original"]: p.with_suffix(".npz")
        for p in (place / "originals").glob("*.json")
    }
    order = [next(c["facts"]["original"] for c in found["cells"] if c["seed"] == seed) for seed in SEEDS]
    read = [read_predictions(cells[name]) for name in order]
    before, truth = torch.stack([each.predicted for each in read]), read[0].labels
    assert [row["row"] for row in forgot["rows"]] == [row["row"] for row in found["rows"]]
    for row in forgot["rows"]:
        mine = [cell for cell in found["cells"] if cell["row"] == row["row"]]
        after = torch.stack([read_predictions(place / cell["predictions"]).predicted for cell in mine])
        expected = exemplars(before, after, truth)
        assert [each["image"] for each in row["exemplars"]["found"]] == [each.image for each in expected.found]
        assert [s["shift"] for s in row["shifts"]] == [s.shift for s in recall_shifts(before, after, truth)]


def test_the_page_shows_the_exemplars_as_they_are_stored(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    place = folder / "run" / "compare"
    page = (place / "comparison.html").read_text()
    row = json.loads((place / "forgetting.json").read_text())["rows"][0]
    shown = row["exemplars"]["found"][:24]
    assert shown, "the task is too easy: nothing was forgotten"
    coded = re.findall(r'src="data:image/png;base64,([^"]+)" alt="image (\d+),', page)
    assert [int(image) for _, image in coded] == [each["image"] for each in shown]
    with np.load(folder / "data.npz") as arrays:
        for text, image in coded:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
            assert np.array_equal(pixels, arrays["test_images"][int(image)])
    for text in ("What did pruning forget?", "halves of originals", "Hooker et al. 2019", "p, adjusted"):
        assert text in page, text
    assert not set(re.findall(r"(?:src|href)=\"((?!data:)[^\"#]+)\"", page))


def test_nothing_is_trained_again_and_the_same_page_can_be_written_again(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = done
    page = (folder / "run" / "compare" / "comparison.html").read_bytes()
    comparison.write_comparison(folder / "run")
    assert (folder / "run" / "compare" / "comparison.html").read_bytes() == page
    seen = trainings(monkeypatch)
    again = compare(recipe(folder), folder / "run")
    assert not seen
    assert {**again, "environment": 0} == {**found, "environment": 0}


def test_an_interruption_leaves_what_is_known_so_far(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = recipe(done[0], seeds=[0, 1])
    trainings(monkeypatch, stop_before=1)
    with pytest.raises(KeyboardInterrupt):
        compare(mine, tmp_path / "run")
    place = tmp_path / "run" / "compare"
    forgot = json.loads((place / "forgetting.json").read_text())
    first = forgot["rows"][0]
    assert (first["row"], first["originals"], first["students"]) == ("adaptive_bn", 2, 1)
    assert "Not finished" in (place / "comparison.html").read_text()
    monkeypatch.undo()
    whole = compare(mine, tmp_path / "run")
    assert whole["cells"] == [cell for cell in done[1]["cells"] if cell["seed"] in (0, 1)]


def test_too_few_seeds_give_no_exemplars_and_say_so(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    seen = trainings(monkeypatch)
    for seeds, word in (([0], "a class test needs two"), ([0, 1], "large shifts only")):
        found = compare(recipe(folder, seeds=seeds), folder / "run")
        forgot = json.loads((folder / "run/compare/forgetting.json").read_text())
        assert not seen  # the cells of these seeds are there
        assert all(row["exemplars"] is None for row in forgot["rows"])
        assert all((shift["p"] is None) == (seeds == [0]) for shift in forgot["rows"][0]["shifts"][:1])
        assert word in explanation(forgot)[-1]
        assert "exemplars need 5" in gallery_line(forgot["rows"][0])
        assert summary_rows(forgot)[1][0][3:8] == ["–"] * 5
        assert any("three are the least" in text or "Three seeds" in text for text in comparison.cautions(found))
        assert "exemplars need 5" in (folder / "run/compare/comparison.html").read_text()
    compare(recipe(folder), folder / "run")  # as the other tests find it


def test_predictions_that_are_gone_are_one_clear_error(done: tuple[Path, dict[str, Any]]) -> None:
    folder, found = done
    path = folder / "run" / "compare" / found["cells"][0]["predictions"]
    content = path.read_bytes()
    for broken in (None, b"", content[:40]):
        path.unlink() if broken is None else path.write_bytes(broken)
        with pytest.raises(BadData, match=rf"remove {path.stem}\.json"):
            compare(recipe(folder), folder / "run")
    path.write_bytes(content)


def test_other_data_in_the_same_file_is_not_judged_by_old_cells(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"budgets": ["25%"], "seeds": [0]}
    before = compare(recipe_in(tmp_path, **section), tmp_path / "run")
    arrays = dict(np.load(tmp_path / "data.npz"))
    arrays["test_labels"] = (arrays["test_labels"] + 1) % 3
    np.savez(tmp_path / "data.npz", **arrays)
    seen = trainings(monkeypatch)
    found = compare(recipe_in(tmp_path, **section), tmp_path / "run")
    assert len(seen) >= 4
    for one, other in zip(before["cells"], found["cells"], strict=True):
        assert one["facts"]["data"] != other["facts"]["data"]
        kept = read_predictions(tmp_path / "run" / "compare" / other["predictions"])
        assert other["top1"] == pytest.approx(100 * float((kept.predicted == kept.labels).double().mean()), abs=1e-3)
        assert torch.equal(kept.labels, torch.from_numpy(arrays["test_labels"].astype(np.int64)))


# Originals from files.


def weight_files(folder: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        torch.manual_seed(number)
        paths.append(str(folder / f"original{number}.safetensors"))
        save_file(TinyNet().state_dict(), paths[-1])
    return paths


def test_originals_come_from_files_where_these_are_named(tmp_path: Path) -> None:
    paths = weight_files(tmp_path, 2)
    found = compare(recipe(tmp_path, seeds=[3, 4], weights=paths), tmp_path / "run")
    assert not (tmp_path / "run" / "original").exists()  # nothing was trained that is not asked for
    assert len(found["original"]["spread"]["top1"]["values"]) == 2
    torch.manual_seed(1)
    network, place = TinyNet(), tmp_path / "run" / "compare"
    kept = {json.loads(p.read_text())["top1"] for p in (place / "originals").glob("*.json")}
    with np.load(tmp_path / "data.npz") as arrays:
        images, labels = torch.from_numpy(arrays["test_images"]), torch.from_numpy(arrays["test_labels"].astype(int))
        train = torch.from_numpy(arrays["train_images"]).float() / 255
    with torch.no_grad():
        outputs = network.eval()((images.float() / 255 - train.mean()).div(train.std()).unsqueeze(1))
    reached = 100 * float((outputs.argmax(1) == labels).double().mean())
    assert any(value == pytest.approx(reached, abs=0.01) for value in kept)


@pytest.mark.parametrize(
    ("section", "network", "message"),
    [
        ({"weights": ["a.pt"], "forgetting": False}, {}, "set that to true"),
        ({"weights": ["{0}"]}, {}, "a different file for each of the 2 seeds, got 1"),
        ({"weights": ["{0}", "{0}"]}, {}, "got 2, of them 1 different"),
        ({"weights": ["{0}", "nowhere.pt"]}, {}, "nowhere.pt"),
        ({}, {"weights": "{0}"}, "needs an original a seed"),
        ({"random_draws": 0}, {}, "random_draws"),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_written(
    tmp_path: Path, section: dict[str, Any], network: dict[str, str], message: str
) -> None:
    paths = weight_files(tmp_path, 1)
    section = {"seeds": [0, 1], "forgetting": True, **section}
    if "weights" in section:
        section["weights"] = [name.format(*paths) for name in section["weights"]]
    values = recipe_values(tmp_path) | {"compare": section}
    values["network"] = values["network"] | {key: name.format(*paths) for key, name in network.items()}
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        compare(parse(values), tmp_path / "run")
    assert isinstance(caught.value, (BadRecipe, BadData)) or "nowhere" in message
    assert not (tmp_path / "run").exists()


def test_a_task_without_classes_is_refused(tmp_path: Path) -> None:
    values = recipe_values(tmp_path) | {"compare": {"forgetting": True}}
    values["objective"] = {"metric": "tas.objectives:top1", "name": "share"}
    with pytest.raises(BadRecipe, match="compares classes"):
        compare(parse(values), tmp_path / "run")


def test_the_same_weights_in_two_files_are_refused(tmp_path: Path) -> None:
    paths = weight_files(tmp_path, 1)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(paths[0]).read_bytes())
    with pytest.raises(BadRecipe, match=r"two of compare\.weights hold the same"):
        compare(recipe(tmp_path, seeds=[0, 1], weights=[paths[0], str(copy)]), tmp_path / "run")


# Random networks.


def test_more_random_networks_begin_with_the_same_ones_and_do_not_hang_on_the_search(tmp_path: Path) -> None:
    drawn = {}
    for draws, candidates in ((1, 3), (3, 2)):
        search = {"method": "adaptive_bn", "candidates": candidates, "images": 64, "calibration_images": 64}
        section = {"budgets": ["60%"], "seeds": [0, 1], "random_draws": draws, "methods": [search]}
        found = compare(recipe_in(tmp_path, **section), tmp_path / "run")
        row = next(row for row in found["rows"] if row["row"] == "random")
        assert len(row["top1"]["values"]) == 2 * draws
        drawn[draws] = [(cell["seed"], cell["architecture"]) for cell in found["cells"] if cell["row"] == "random"]
    assert drawn[1] == drawn[3][::3]
    assert len({json.dumps(each) for each in drawn[3]}) > 2


# What people read.


def test_labels_of_any_number_survive_the_file(tmp_path: Path) -> None:
    for classes in (3, 300, 70_000):
        found = Predictions(torch.tensor([0, classes - 1, 1]), torch.tensor([classes - 1, 0, 2]))
        write_predictions(tmp_path / "a.npz", found)
        again = read_predictions(tmp_path / "a.npz")
        assert again.predicted.tolist() == found.predicted.tolist()
        assert again.labels.tolist() == found.labels.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_pictures_of_what_is_a_picture() -> None:
    grey, colour = torch.randint(0, 256, (1, 8, 6)).byte(), torch.randint(0, 256, (3, 5, 7)).byte()
    for pixels in (grey, colour):
        drawn = np.asarray(Image.open(io.BytesIO(png(pixels) or b"")))
        assert np.array_equal(drawn, pixels.permute(1, 2, 0).squeeze(-1).numpy())
    floats = torch.linspace(-2, 2, 12).view(1, 3, 4)
    drawn = np.asarray(Image.open(io.BytesIO(png(floats) or b"")))
    assert (drawn.min(), drawn.max()) == (0, 255)
    large = Image.open(io.BytesIO(png(torch.zeros(3, 400, 200).byte()) or b""))
    assert large.size == (48, 96)
    assert png(torch.zeros(64)) is None
    assert png(torch.zeros(2, 8, 8)) is None


@pytest.mark.parametrize("own", [True, False])
def test_the_wanted_images_are_found_in_memory_and_in_the_users_batches(own: bool) -> None:
    images, labels = torch.arange(10.0).view(10, 1, 1, 1), torch.zeros(10).long()
    source = Batches(list(zip(images.split(4), labels.split(4), strict=True))) if own else InMemory(images, labels)
    assert [(image, float(each)) for image, each in _pixels(Split("test", source), [1, 5, 9])] == [
        (1, 1),
        (5, 5),
        (9, 9),
    ]
    assert not list(_pixels(Split("test", source), []))


def test_words_of_the_tables() -> None:
    shift = {"images": 10, "originals": 90.0, "students": 80.0, "t": -3.0, "df": 4.0}
    shifts = [
        {**shift, "label": 0, "shift": -9.5, "p": 0.0001, "p_holm": 0.0004},
        {**shift, "label": 1, "shift": 3.0, "p": 0.01, "p_holm": 0.03},
        {**shift, "label": 2, "shift": 3.0, "p": 0.04, "p_holm": 0.08},
        {**shift, "label": 3, "shift": 3.0, "p": None, "p_holm": None},
    ]
    seen = {"found": [], "chance": 1.25, "pruned": 2.0, "originals_on": None, "originals_off": 95.0}
    row = {"budget": "b", "row": "a", "originals": 5, "students": 6, "shifts": shifts}
    row["exemplars"] = {**seen, "students_on": None, "students_off": 90.0}
    assert [cells[5:] for cells in class_rows(row)[1]] == [
        ["< 0.001", "< 0.001", "lost"],
        ["0.010", "0.030", "gained"],
        ["0.040", "0.080", ""],
        ["–", "–", ""],
    ]
    header, rows = summary_rows({"rows": [row]})
    assert rows == [["a", "b", "5 / 6", "0", "2.0", "1.2", "– / 95.0", "– / 90.0", "0", "1"]]
    assert len(header) == len(rows[0])
    assert gallery_line(row).startswith("No exemplar")
    assert gallery(row, Path("nowhere")) == []
