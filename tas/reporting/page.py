"""`report.html`: one self-contained page about a run, from the files of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tas.errors import BadRecipe
from tas.files import read_json, read_lines, write_text
from tas.reporting import numbers, pictures, tables
from tas.reporting.synthesis import synthesis_parts

COMPARISON, COMPARED = "compare/comparison.json", "compare/comparison.html"  # in a run folder: figures, and their page


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path; stages that have not run yet are left out.

    `BadRecipe` where the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise BadRecipe(f"a report is made of a run folder; {folder} has no run.json")
    write_page(folder / "report.html", "report.html.jinja", _content(folder))
    return folder / "report.html"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """One self-contained page, from a template of this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("tas.reporting", "."), autoescape=True, undefined=StrictUndefined)
    write_text(path, environment.get_template(template).render(light=pictures.LIGHT, **content))


def _content(folder: Path) -> dict[str, Any]:
    run, space = read_json(folder / "run.json"), read_json(folder / "space.json")
    metrics, students = read_json(folder / "metrics.json"), students_of(folder)
    candidates, course = read_lines(folder / "candidates.jsonl"), read_lines(folder / "search.jsonl")
    agreement = read_json(folder / "correlation.json")
    metric, budgets = run["metric"], list((space or {}).get("budgets", {}).values())
    limits = [limits["macs"] for limits in budgets if "macs" in limits]
    tuned = read_json(folder / "hyperparameters.json")
    drawn = {
        "Course of the search": _course(course, budgets[0] if budgets else {}),
        "Candidates": pictures.candidates(candidates, metric, limits) if candidates else "",
        "Scores and results": pictures.correlation(agreement["candidates"], metric) if agreement else "",
    }
    if space and len(students) == 1:
        drawn = {"Sizes before and after": pictures.sizes(space, *students.values()), **drawn}
    if space and len(students) > 1:
        drawn = {"Sizes at each budget": pictures.beside(space, students), **drawn}
    several = any("front" in row for row in candidates)
    return {
        "title": run["title"],
        "summary": _summary(metrics, metric),
        "compared": COMPARED if (folder / COMPARISON).is_file() else "",
        "result": tables.page_rows(metrics, metric) if metrics else None,
        "synthesis": synthesis_parts(folder, run["stages"].get("synthesize")),
        "correlations": _correlations(agreement) if agreement else None,
        "starts": _starts(run["stages"].get("initialize"), metric),
        "tuned": tables.tuned_rows(course, tuned) if tuned else None,
        "feasibility": tables.feasibility_rows(space["feasibility"]) if space else None,
        "pictures": {name: picture for name, picture in drawn.items() if picture},
        "front": tables.front_rows(candidates, metric) if several else None,
        "sizes": tables.size_rows(space, students) if space and len(students) > 1 else None,
        "scores": tables.score_rows(candidates, metric) if candidates else None,
        "choices": tables.choice_rows(space) if space else None,
        "kept": tables.kept_rows(space) if space else None,
        "timing": [(name, numbers.duration(stage["seconds"])) for name, stage in run["stages"].items()],
        "total": numbers.duration(sum(stage["seconds"] for stage in run["stages"].values())),
        "warnings": run["warnings"],
        "environment": read_json(folder / "environment.json") or {},
        "recipe": (folder / "recipe.yaml").read_text() if (folder / "recipe.yaml").is_file() else "",
    }


def _correlations(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"table": tables.correlation_rows(found["correlations"]), "note": tables.correlation_note(found)}


def _starts(stage: Mapping[str, Any] | None, metric: str) -> dict[str, Any] | None:
    """None where no start of the weights was decided here."""
    if not stage or not stage["done"]:
        return None
    return {"table": tables.start_rows(stage, metric), "note": tables.start_note(stage)}


def _course(rows: list[dict[str, Any]], limits: dict[str, float]) -> str:
    """Empty where the method has no course that can be drawn."""
    measure = next(iter(limits), "macs")
    drawable = [row for row in rows if {"step", f"{measure}_expected", "entropy"} <= row.keys()]
    return pictures.course(drawable, measure, limits.get(measure)) if len(drawable) > 1 else ""


def _summary(metrics: dict[str, Any] | None, metric: str) -> str:
    students = [row for name, row in (metrics or {}).items() if name.partition(" ")[0] == "student"]
    if not metrics or not students:
        return "No student of this folder is finished."
    original = metrics["original"]
    if len(students) > 1:
        kept = _listed(f"{student['macs'] / original['macs']:.1%}" for student in students)
        reached = _listed(numbers.decimal(student[metric]) for student in students)
        return (
            f"The students keep {kept} of the original's multiply-accumulates; {metric} on the test images goes from "
            f"{numbers.decimal(original[metric])} to {reached}."
        )
    return (
        f"The student keeps {students[0]['macs'] / original['macs']:.1%} of the original's multiply-accumulates and "
        f"{students[0]['params'] / original['params']:.1%} of its parameters; {metric} on the test images goes from "
        f"{numbers.decimal(original[metric])} to {numbers.decimal(students[0][metric])}."
    )


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}"


def students_of(folder: Path) -> dict[str, dict[str, int]]:
    """The architectures that a run has found: the one of "student", or those of several budgets by the budget."""
    one, several = read_json(folder / "architecture.json"), read_json(folder / "architectures.json")
    return {row["budget"]: row["architecture"] for row in several or ()} or ({"student": one} if one else {})
