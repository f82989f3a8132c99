"""The first stages of a run: the original, trained where it came without weights, and the search."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.data import Data, Split
from tas.errors import BadData, BadRecipe
from tas.exporting import load, save
from tas.files import json_text, rounded, write_json, write_lines
from tas.folder import RunFolder
from tas.importance import orders
from tas.latency import MEASURE, latencies
from tas.latency.explaining import by_layer
from tas.latency.measuring import this_machine
from tas.latency.table import write as write_table
from tas.methods import OnRow, SearchResult, front, search
from tas.methods.budgets import distinct
from tas.objectives import Objective
from tas.originals import build, load_weights
from tas.preparation import Prepared, costs, describe, original_of
from tas.recipe import Recipe
from tas.reordering import permute
from tas.reporting.progress import Display, Events
from tas.reporting.tables import grouped, lost_note
from tas.scoring import BlindWarning, Score, search_splits
from tas.space import Architecture
from tas.tracing import Traced
from tas.training import Progress, TrainingPlan, evaluate, train

_MEMORISED = 99.95  # percent of the held-out training images: no candidate can then be told from another by its errors


@dataclass(frozen=True)
class Run:
    prepared: Prepared
    folder: RunFolder
    display: Display
    events: Events

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    def judged(self, network: nn.Module) -> dict[str, float]:
        """Metric and loss of a finished network on the test images."""
        prepared = self.prepared
        found = evaluate(network, judged_on(prepared.data), prepared.objective, device=prepared.device)
        return {name: rounded(value) for name, value in found.items()}

    def staged(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return self.folder.stage(name, work)

    def warn(self, text: str) -> None:
        """Say it now and in the report."""
        self.display.say(f"warning: {text}")
        self.folder.warn(text)


def opened(prepared: Prepared, folder: str | Path, display: Display | None = None) -> Run:
    """Begin the run of a recipe in a folder, or take up the one that is there; `check_owner` has been asked before."""
    recipe = prepared.recipe
    title = recipe.title or f"{recipe.network.name.rpartition(':')[2]} on {recipe.data.name}"
    record = RunFolder(folder, recipe, title, prepared.objective.name, prepared.device)
    write_json(record.path / "space.json", describe(prepared.space, prepared.budgets))
    if prepared.latency is not None:
        write_table(prepared.latency, record.path / "latency.json")
    current = Run(prepared, record, display or Display(), Events(record.path / "events"))
    for note in (*grouped(prepared.space.notes), *prepared.doubts):
        current.warn(note)
    return current


def judged_on(data: Data) -> Split:
    """The test images, used for finished networks only; the validation images where there are no others."""
    found = data.test or data.val
    if found is None:
        raise BadData(f"{data.name!r} needs a test or a val split to judge the finished networks on")
    return found


def original(current: Run, seed: int | None = None) -> tuple[nn.Module, dict[str, float]]:
    """The original with its weights, trained here if it came without, and what it reaches.

    seed: of another original than the run's, trained by the same plan from another start, on other batches.
    """
    folder, section, own = current.folder, current.recipe.network, current.recipe.seed
    plan = current.recipe.original if section.weights is None else None
    seed = own if seed is None else seed
    stage, place, network = "original", folder.path / "original", current.prepared.original
    if seed != own:
        stage, place = f"original of seed {seed}", folder.path / "compare" / "originals" / f"seed{seed}"
        network = original_of(section, seed)

    def work() -> dict[str, float]:
        if plan is not None:
            _train_original(current, network, plan, stage, seed)
            save(network, place, network=section.model_dump(mode="json"))
        reached = current.judged(network)
        if plan is not None:
            folder.checkpoint(stage).unlink(missing_ok=True)  # not before: an interruption would train it again
        return reached

    facts = current.staged(stage, work)
    if plan is not None:
        network = load(lambda: build(section.name, section.kwargs), place)
        network.to(current.prepared.device)
    if said := chance(
        judged_on(current.prepared.data), current.prepared.objective, facts[current.prepared.objective.name]
    ):
        current.warn(said)
    return network, numbers(facts, current)


def chance(split: Split, objective: Objective, reached: float | None) -> str:
    """A warning where a top-1 (percent) of the original on `split` is that of always naming its most frequent class, or
    within three standard errors above; empty otherwise."""
    if objective.name != "top1" or split.targets is None or reached is None:
        return ""
    often = int(split.targets.bincount().max()) / len(split)
    if reached > 100 * (often + 3 * math.sqrt(often * (1 - often) / len(split))):
        return ""
    return (
        f"The original classifies {reached:.1f} % of {len(split):,} {split.name} images, within three standard errors "
        f"of guessing ({100 * often:.1f} %): check its weights, and mean and std of the data. Scores of its parts mean "
        "nothing."
    )


def _train_original(current: Run, network: nn.Module, plan: TrainingPlan, stage: str, seed: int) -> None:
    prepared, checkpoint = current.prepared, current.folder.checkpoint(stage)
    generator = torch.Generator().manual_seed(seed)
    with current.display.bar(stage) as bar:
        train(
            network,
            prepared.data,
            plan,
            prepared.objective,
            generator,
            prepared.device,
            progress=lambda at: show(current, stage, at, bar),
            checkpoint=checkpoint,
        )


def show(current: Run, stage: str, at: Progress, bar: Callable[[int, int, str], None]) -> None:
    bar(at.step, at.steps, f"loss {at.loss:.3f}")
    current.events.training(stage, at)


def weighted(prepared: Prepared, original: nn.Module) -> Any:
    """What is searched, with the trained original's weights, most important channels first."""
    if not isinstance(prepared.source, Traced):
        return prepared.source
    return permute(replace(prepared.source, network=original.cpu()), _orders(prepared, original))


def rewound(prepared: Prepared, original: nn.Module) -> Traced:
    """The same, channels in the same order, with the weights of the early checkpoint of the recipe."""
    section = prepared.recipe.network
    early = build(section.name, section.kwargs)
    load_weights(early, str(prepared.recipe.initialize.checkpoint), "initialize.checkpoint")
    return permute(replace(prepared.source, network=early), _orders(prepared, original))


def _orders(prepared: Prepared, original: nn.Module) -> dict[str, list[int]]:
    with_weights = replace(prepared.source, network=original.cpu())
    generator = torch.Generator().manual_seed(prepared.recipe.seed)
    return orders(with_weights, prepared.recipe.initialize.importance, generator=generator)


def searched(current: Run, source: Any, network: nn.Module, given: Mapping[str, int] | None) -> dict[str, Architecture]:
    """The architecture of every budget: `given`, or what the search finds. One budget's is `architecture.json`, those
    of several are `architectures.json`."""
    prepared = current.prepared
    several = len(prepared.budgets) > 1
    path = current.folder.path / ("architectures.json" if several else "architecture.json")

    def work() -> dict[str, Any]:
        found = [Architecture.of(given)] if given is not None else _search(current, source, network)
        facts = [costs(prepared.space, each) for each in found]
        rows = [
            {"budget": label, "architecture": dict(each), **its}
            for label, each, its in zip(prepared.budgets, found, facts, strict=True)
        ]
        write_json(path, rows if several else rows[0]["architecture"])
        return dict(zip(prepared.budgets, facts, strict=True)) if several else facts[0]

    current.staged("search", work)
    held = json.loads(path.read_text())
    found = [Architecture.of(row["architecture"]) for row in held] if several else [Architecture.of(held)]
    if given is not None and found != [Architecture.of(given)]:
        raise BadRecipe(f"{current.folder.path} holds the student of another architecture; choose another --out")
    return dict(zip(prepared.budgets, found, strict=True))


def measured(current: Run, source: Any, found: Mapping[str, Architecture]) -> dict[str, dict[str, float]]:
    """Where the run has a latency table of this machine: latency in milliseconds, {"median", "low", "high"}, of the
    original and of the networks found, measured whole in turns; else nothing."""
    table = current.prepared.latency
    if table is None:
        return {}
    for label, architecture in found.items():
        rows = by_layer(current.prepared.space, architecture)
        if idle := [row["layer"] for row in rows if row["idle"]]:
            where = f" ({label})" if len(found) > 1 else ""
            current.warn(
                f"Layers of the student{where} whose MACs fell, but not their latency, by the table: {', '.join(idle)}."
            )
    if table.machine != this_machine(table.target):
        current.warn(
            f"The latency table was measured on {table.machine['device']} ({table.machine['node']}), not here: the "
            "networks found are not measured whole."
        )
        return {}

    def work() -> dict[str, Any]:
        taken = latencies(source, table.target, [current.prepared.space.original(), *found.values()])
        return {"measured": {name: asdict(one) for name, one in zip(["original", *found], taken, strict=True)}}

    return current.staged("latency", work)["measured"]


def _search(current: Run, source: Any, network: nn.Module) -> list[Architecture]:
    prepared, folder = current.prepared, current.folder
    warn_of_scores(current, network)
    sizes = {choice.name: choice.size for choice in prepared.space.choices}
    checkpoint = folder.checkpoint("search")
    with (
        current.display.bar("search") as bar,
        (folder.path / "search.jsonl").open("a") as lines,
        blindness(current.warn),
    ):

        def on_row(row: dict[str, Any]) -> None:
            lines.write(json_text(row) + "\n")
            lines.flush()
            bar(row["step"], row["steps"], "")
            current.events.search(row, sizes)

        results = asked_search(prepared, source, checkpoint, on_row)
    course = [row for result in results for row in result.course]
    write_lines(folder.path / "search.jsonl", course)  # without the rows of an interrupted epoch
    rows = _candidates(prepared, results)
    write_lines(folder.path / "candidates.jsonl", rows)
    if lost := lost_note(rows):
        current.warn(lost)
    if results[0].probabilities:
        write_json(folder.path / "distribution.json", dict(results[0].probabilities))
    if results[0].hyperparameters:
        write_json(folder.path / "hyperparameters.json", dict(results[0].hyperparameters))
    checkpoint.unlink(missing_ok=True)
    return [result.architecture for result in results]


def asked_search(prepared: Prepared, source: Any, checkpoint: Path, on_row: OnRow) -> tuple[SearchResult, ...]:
    """The search of the recipe: a result a budget."""
    options = asdict(prepared.recipe.search)
    method = options.pop("method")
    return search(
        source,
        prepared.data,
        list(prepared.budgets.values()),
        method,
        objective=prepared.objective,
        seed=prepared.recipe.seed,
        device=prepared.device,
        checkpoint=checkpoint,
        on_row=on_row,
        **options,
    )


def _candidates(prepared: Prepared, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    """A row for everything that was scored, best first. Of several budgets, they also say for which of them they were
    chosen, and whether they lie on the Pareto front of score and cost."""
    chosen = {result.architecture for result in results}
    found = distinct([score for result in results for score in result.candidates], prepared.objective)
    rows = [candidate_row(prepared, score, chosen) for score in found]
    if len(results) == 1:
        return rows
    measure = prepared.budget.limits[0][0]
    best = set(front(prepared.space, found, measure, prepared.objective))
    names = list(zip(prepared.budgets, results, strict=True))
    for row, score in zip(rows, found, strict=True):
        row["chosen_for"] = [label for label, result in names if result.architecture == score.architecture]
        row["front"] = score in best
    return rows


@contextmanager
def blindness(say: Callable[[str], None]) -> Iterator[None]:
    """`say` what is a `BlindWarning` inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlindWarning)
        yield
    for one in caught:
        if issubclass(one.category, BlindWarning):
            say(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def few_images(data: Data, images: int, calibration_images: int, seed: int) -> list[str]:
    """What to say where the halves of the training images hold fewer than a search asks for."""
    asked = {"search.calibration_images": calibration_images, "search.images": images}
    halves = zip(asked.items(), search_splits(data, seed), strict=True)
    return [
        f"{key} asks for {count:,} images; all {len(half):,} of the {half.name} half of the training images are used."
        for (key, count), half in halves
        if len(half) < count
    ]


def warn_of_scores(current: Run, network: nn.Module) -> None:
    """Say so where there are fewer images than asked for, or where the original knows the held-out training images by
    heart, on which candidates are scored."""
    prepared, asked = current.prepared, current.recipe.search
    for said in few_images(prepared.data, asked.images, asked.calibration_images, current.recipe.seed):
        current.warn(said)
    if current.recipe.synthesize is not None:
        current.warn(
            "Candidates are scored on images that were synthesized from the original: scores say how far they agree "
            "with it, not how often they are right."
        )
        return
    if prepared.objective.name != "top1":
        return
    held_out = search_splits(prepared.data, current.recipe.seed)[1].take(2000)
    reached = evaluate(network, held_out, prepared.objective, device=prepared.device)["top1"]
    if reached >= _MEMORISED:
        current.warn(
            f"The original classifies {reached:.1f} % of the held-out training images: it has seen them, so scores "
            "rank less sharply. Augment the data, or train the original on half of the images."
        )


def candidate_row(prepared: Prepared, score: Score, chosen: Collection[Architecture]) -> dict[str, Any]:
    row = {**asdict(score), "architecture": dict(score.architecture)}
    return {**row, **costs(prepared.space, score.architecture), "chosen": score.architecture in chosen}


def numbers(facts: Mapping[str, Any], current: Run) -> dict[str, Any]:
    keys = (current.prepared.objective.name, "loss", "macs", "params", MEASURE)
    return {key: math.nan if facts[key] is None else facts[key] for key in keys if key in facts}  # JSON has no NaN
