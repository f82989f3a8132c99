"""A recipe from its YAML file and `--set` overrides, and back; whatever is wrong is said in one line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from string import Template
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from tas.errors import BadRecipe
from tas.recipe.inputs import parse_inputs
from tas.recipe.searches import SEARCHES, UNNAMED, SearchOrName
from tas.recipe.sections import FORMS, Recipe, Section

_EXAMPLES = {
    "budget": "give a limit, such as 50% of the MACs, or several: [50%, 30%]"
}  # of lists that may not be empty


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b=c` overrides. `BadRecipe` in one line where anything is wrong."""
    try:
        text = Path(path).read_text()
    except OSError as problem:
        raise BadRecipe(f"cannot read the recipe {path}: {problem.strerror}") from problem
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as problem:
        where = getattr(problem, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise BadRecipe(f"{path}{line} is not YAML: {getattr(problem, 'problem', problem)}") from problem
    return parse(values, overrides)


def parse(values: Any, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe from plain mappings, with overrides. `BadRecipe` where anything is wrong."""
    if not isinstance(values, Mapping):
        raise BadRecipe(f"a recipe must be a mapping of sections, got {type(values).__name__}")
    values = json.loads(json.dumps(values, default=str))  # dates and the like become text, which no key takes
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as problem:
        raise BadRecipe(_message(problem)) from problem
    except BadRecipe as problem:
        raise BadRecipe(_placed(str(problem), values)) from problem


def dump(recipe: Recipe) -> str:
    """The recipe with all defaults filled in, as YAML that `read` takes."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def template(network: str, shapes: Sequence[str]) -> str:
    """A commented recipe for the network of that import path, whose inputs are described as `--shape` takes them, to be
    completed by hand: with a folder of pictures where there is one input that can be one, else with the user's data."""
    first, *others = parse_inputs(shapes)
    plain = not others and not first.name and first.dtype == "float32"
    given = f"shape: {list(first.sizes)}" if plain else f"inputs: {json.dumps(list(shapes))}"
    pictures = plain and len(first.sizes) == 4
    data = _filled(
        "pictures.yaml" if pictures else "own_data.yaml", size=first.sizes[-1], package=network.partition(":")[0]
    )
    return _filled("template.yaml", network=network, input=given, data=data.rstrip())


def _filled(name: str, **values: Any) -> str:
    return Template((Path(__file__).parent / name).read_text()).substitute(values)


def difference(one: Any, other: Any, key: str = "") -> str:
    """Where two dumped recipes first differ, with both values; "" where they agree."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return "" if one == other else f"{key} was {_told(one)}, is {_told(other)}"
    parts = [(f"{key}.{name}" if key else name, name) for name in dict.fromkeys([*one, *other])]
    return next(filter(None, (difference(one.get(name), other.get(name), path) for path, name in parts)), "")


def _told(value: Any) -> str:
    """On one line, as YAML takes it; of sections, what they say."""
    return json.dumps(_without_nulls(value), ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


# what pydantic calls after JSON, in the words of YAML
_WORDS = {"should be a valid array": "should be a list", "should be an object": "should be a mapping"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text, where people mean the number; of a key that stands twice it takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _override(values: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    keys = path.split(".")
    if not sign or not all(keys):
        raise BadRecipe(f"--set takes section.key=value, got {override!r}")
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise BadRecipe(f"--set {override!r}: {key!r} is not a section")
    try:
        values[keys[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as problem:
        raise BadRecipe(f"--set {override!r}: the value is not YAML") from problem


def _message(problem: ValidationError) -> str:
    """The first error of a validation, in one line."""
    error = problem.errors(include_url=False)[0]
    location = [str(part) for part in error["loc"] if part not in ("int", "float", *FORMS)]
    key = ".".join(part for part in location if part not in SEARCHES)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        method = next((f" of method {part}" for part in location if part in SEARCHES), "")
        return f"unknown key {key!r}{method}; " + (
            f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        )
    if error["type"] in ("missing", "missing_argument"):
        return f"the recipe needs {key!r}"
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        if tag == UNNAMED:
            return f"{key} needs the key 'method', one of {', '.join(SEARCHES)}"
        return f"{key}.method should be one of {', '.join(SEARCHES)}, got {tag!r}{_nearest(tag, SEARCHES)}"
    if error["type"] == "too_short":
        few, least = error["input"], error["ctx"]["min_length"]
        return f"{key} holds {least} or more, got {json.dumps(few)}: {_EXAMPLES.get(key, 'add to it, or leave it out')}"
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    for theirs, ours in _WORDS.items():
        reason = reason.replace(theirs, ours)
    hint = _nearest(error["input"], re.findall(r"'([^']+)'", reason)) if error["type"] == "literal_error" else ""
    return f"{key} {reason}, got {error['input']!r}{hint}"


def _placed(rule: str, values: Mapping[str, Any]) -> str:
    """A broken rule of a search, which knows itself as `search`, by the place where it stands in the recipe."""
    methods = values["compare"].get("methods") if isinstance(values.get("compare"), Mapping) else None
    several = {f"compare.methods.{n}": each for n, each in enumerate(methods if isinstance(methods, list) else ())}
    for place, section in {"search": values.get("search"), **several}.items():
        with suppress(ValidationError):
            try:
                TypeAdapter(SearchOrName).validate_json(json.dumps(section))
            except BadRecipe as own:
                if str(own) == rule:
                    return re.sub(r"\bsearch\.", f"{place}.", rule)
    return rule


def _nearest(given: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at a location."""
    kind: Any = Recipe
    for name in location:
        if name.isdigit():  # the place in a list
            continue
        annotation = SEARCHES.get(name) or get_type_hints(kind).get(name)
        kind = next(_classes(annotation), Section)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind.model_fields)


def _classes(annotation: Any) -> Iterator[type]:
    """An annotation's own class, or those in it: of Annotated, of a union, of the members of a tuple."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)
