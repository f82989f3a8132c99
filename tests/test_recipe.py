"""A recipe is strict, frozen and complete, and says in one line what is wrong with it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tas import data, objectives, recipe
from tas.errors import BadRecipe
from tas.recipe import DataSource, ObjectiveNames, amount

BASE: dict[str, Any] = {"network": {"name": "a:b"}, "data": {"name": "mnist5k"}, "budget": {"macs": "50%"}}


@pytest.mark.parametrize(
    ("text", "number"),
    [("22.44M", 22_440_000), ("50%", 0.5), ("350k", 350_000), ("1.81G", 1_810_000_000), ("0.5", 0.5), ("100%", 1.0)],
)
def test_amounts_have_units(text: str, number: float) -> None:
    assert amount(text) == number
    assert type(amount(text)) is type(number)
    assert recipe.parse(BASE, [f"budget.macs={text}"]).budget.macs == number


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serch.epochs=2", "unknown key 'serch'; did you mean 'search'?"),
        ("search.epoch=2", "unknown key 'search.epoch' of method differentiable; did you mean 'epochs'?"),
        ("original.epoch=2", "unknown key 'original.epoch'; did you mean 'epochs'?"),
        ("distill.alpa=1", "did you mean 'alpha'?"),
        ("space.ratio=[0.5]", "did you mean 'ratios'?"),
        ("machine.xyzzy=1", "known are device, threads"),
        (
            "search.method=gradient",
            "search.method should be one of differentiable, adaptive_bn, optuna, tuned, netadapt, got 'gradient'",
        ),
        ("search.method=tune", "tuned, netadapt, got 'tune'; did you mean 'tuned'?"),
        ("search={method: optuna, sampler: tpee}", "search.sampler should be 'tpe', 'nsga2', 'gp' or 'random'"),
        ("search={method: optuna, sampler: nsga}", "got 'nsga'; did you mean 'nsga2'?"),
        ("search={method: optuna, measures: [latency_ms]}", "got 'latency_ms'; did you mean 'latency'?"),
        ("search={method: tuned, pruner: hyperbnd}", "did you mean 'hyperband'?"),
        ("search={method: tuned, range: {}}", "unknown key 'search.range' of method tuned; did you mean 'ranges'?"),
        ("search={method: tuned, ranges: {weight_rl: [0.1, 1]}}", "did you mean 'weight_lr'?"),
        ("search={method: optuna, storage: nowhere}", "search.storage is journal:PATH or a URL"),
        ("search={method: adaptive_bn, keep: 1.0}", "search.keep lies between 0 and 1"),
        ("network.shape={ids: [1, 16]}", "got a mapping: inputs with names are network.inputs, such as"),
        ("search.epochs=2.5", "search.epochs should be a valid integer"),
        ("search.epochs=true", "search.epochs should be a valid integer"),
        ('search.epochs="2"', "search.epochs should be a valid integer"),
        ("search.epochs=0", "search.epochs is at least 1, got 0"),
        ("distill.lr=-1", "distill.lr must be above 0, got -1"),
        ("distill.epochs=0", "distill.epochs must be at least 1, got 0"),
        ("original.epochs=0", "original.epochs must be at least 1, got 0"),
        ("synthesize.steps=0", "synthesize.steps must be at least 1, got 0"),
        ("distill.alpha=2", "distill.alpha lies in [0, 1]"),
        ("budget.macs=5X", "must be a number such as 0.5, 50%, 22.44M"),
        ("budget.macs=150%", "budget.macs must be at most 100% of the original, got '150%'"),
        ("budget.macs=true", "budget.macs"),
        ("budget.macs=.inf", "budget.macs"),
        ("budget=[]", "budget holds 1 or more, got []: give a limit, such as 50% of the MACs, or several"),
        ("compare.seeds=[]", "compare.seeds holds 1 or more, got []: add to it, or leave it out"),
        ("initialize.among=[merge]", 'initialize.among holds 2 or more, got ["merge"]'),
        (
            "search={method: optuna, evolve: 3}",
            "unknown key 'search.evolve' of method optuna; known are candidates, sampler, ",
        ),
        (
            "compare.methods=[optuna, {method: differentiable, epochs: 0}]",
            "compare.methods.1.epochs is at least 1, got 0",
        ),
        (
            "compare.methods=[{method: differentiable, momentum: 2}]",
            "compare.methods.0.momentum and compare.methods.0.architecture_betas lie",
        ),
        ("compare.methods=[{method: optuna, evolve: 3}]", "unknown key 'compare.methods.0.evolve' of method optuna; "),
        ("compare.methods=[{method: optuna, measures: [macs], images: 0}]", "compare.methods.0.images is at least 1"),
        ("report.baselines=[unifrm]", "should be 'uniform' or 'random'"),
        ("data=null", "data should be a mapping"),
        ("compare.seeds=3", "compare.seeds should be a list, got 3"),
        ("compare.methods=[{candidates: 3}]", "compare.methods.0 needs the key 'method', one of differentiable, "),
        ("search=3", "search should be a mapping"),
        ("seed=-1", "seed should be greater than or equal to 0"),
        ("seed", "--set takes section.key=value"),
        ("seed.a=1", "'seed' is not a section"),
        ("seed=[1", "the value is not YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, message: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        recipe.parse({**BASE, "seed": 0}, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(BadRecipe, match="the recipe needs 'data'"):
        recipe.parse({"network": {"name": "a:b"}, "budget": {"macs": 0.5}})
    with pytest.raises(BadRecipe, match=r"the recipe needs 'network\.name'"):
        recipe.parse({**BASE, "network": {}})


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(BadRecipe, match="cannot read the recipe"):
        recipe.read(path)
    path.write_text("network: [unclosed\n")
    with pytest.raises(BadRecipe, match="is not YAML"):
        recipe.read(path)
    path.write_text("seed: 0\nsearch:\n  epochs: 2\n  epochs: 3\n")
    with pytest.raises(BadRecipe, match=r"line 4 is not YAML: the key 'epochs' stands twice"):
        recipe.read(path)
    path.write_text("- 1\n")
    with pytest.raises(BadRecipe, match="must be a mapping of sections, got list"):
        recipe.read(path)


def test_overrides_reach_any_depth_and_are_typed_like_the_file() -> None:
    found = recipe.parse(
        BASE, ["distill.lr=1e-3", "network.kwargs.width=8", "search.method=adaptive_bn", "data.flip=true"]
    )
    assert found.distill.lr == 0.001
    assert found.network.kwargs == {"width": 8}
    assert found.search.method == "adaptive_bn"
    assert found.data.flip is True


def test_a_study_is_a_method_and_reads_back_as_itself(tmp_path: Path) -> None:
    options = "{method: optuna, measures: [macs], warm_start: [{w: 3}], storage: 'sqlite:///s.db'}"
    found = recipe.parse(BASE, [f"search={options}"])
    (tmp_path / "r.yaml").write_text(recipe.dump(found))
    assert recipe.read(tmp_path / "r.yaml") == found
    assert found.search.warm_start == ({"w": 3},)


def test_tuned_hyper_parameters_read_back_as_themselves(tmp_path: Path) -> None:
    found = recipe.parse(BASE, ["search={method: tuned, trials: 3, ranges: {epochs: [2, 4], weight_lr: [1e-3, 0.1]}}"])
    (tmp_path / "r.yaml").write_text(recipe.dump(found))
    assert recipe.read(tmp_path / "r.yaml") == found
    assert dict(found.search.ranges) == {"epochs": (2, 4), "weight_lr": (0.001, 0.1)}


def test_the_json_schema_explains_every_option_of_every_search() -> None:
    schema = recipe.Recipe.model_json_schema()["$defs"]
    for section in recipe.SEARCHES.values():
        described = schema[section.__name__]
        for name in described["properties"]:
            assert name == "method" or name in described["description"], f"{section.__name__}.{name}"


def test_the_json_schema_explains_how_images_are_synthesized_and_the_template_shows_its_defaults() -> None:
    described = recipe.Recipe.model_json_schema()["$defs"]["Synthesize"]
    assert [name for name in described["properties"] if name not in described["description"]] == []
    lines = recipe.template("a:b", ["1,3,8,8"]).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# synthesize:"))
    shown = [line.removeprefix("#   ") for line in lines[start + 1 : lines.index("", start)]]
    found = recipe.parse({**BASE, "synthesize": yaml.safe_load("\n".join(shown))}).synthesize
    assert found == recipe.Synthesize()
    assert {line.partition(":")[0] for line in shown} == set(described["properties"])


def test_the_other_searches_of_the_template_are_right_too(tmp_path: Path) -> None:
    lines = recipe.template("a:b", ["1,3,8,8"]).splitlines()
    others = [line.removeprefix("## ") for line in lines if line.startswith("## ")][1:]
    found = "\n".join(others).split("search:")[1:]
    read = [recipe.parse({**BASE, "search": yaml.safe_load(text.partition("\n")[2])}).search for text in found]
    assert [each.method for each in read] == ["adaptive_bn", "optuna", "tuned", "netadapt"]
    assert read[1] == recipe.SEARCHES["optuna"]()  # what stands there are the defaults


def test_a_recipe_is_frozen() -> None:
    found = recipe.parse(BASE)
    with pytest.raises(ValidationError):
        found.seed = 1  # type: ignore[misc]


def test_a_dumped_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    found = recipe.parse(BASE, ["search.method=adaptive_bn", "original.epochs=3", "budget.params=22.44M"])
    (tmp_path / "r.yaml").write_text(recipe.dump(found))
    assert recipe.read(tmp_path / "r.yaml") == found


def test_the_first_difference_of_two_recipes_is_named() -> None:
    one, other = (recipe.parse(BASE, [f"distill.epochs={n}"]).model_dump() for n in (3, 4))
    assert recipe.difference(one, other) == "distill.epochs was 3, is 4"
    assert recipe.difference(one, one) == ""


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"budget": [{"macs": 0.5, "params": None}]}, {"budget": [{"macs": 0.3, "params": None}]}, "budget.0.macs was"),
        (
            {"budget": {"macs": 0.5, "slack": None}},
            {"budget": [{"macs": 0.3}]},
            'was {"macs": 0.5}, is [{"macs": 0.3}]',
        ),
        ({"synthesize": None}, {"synthesize": {"images": 8}}, 'synthesize was null, is {"images": 8}'),
        ({"title": "Größe\nund mehr"}, {"title": "1e-3"}, 'title was "Größe\\nund mehr", is "1e-3"'),
        ({"a": [1, {"b": 2, "c": 3}]}, {"a": [1, {"b": 4, "c": 5}]}, "a.1.b was 2, is 4"),
        ({"flip": True}, {"flip": False}, "flip was true, is false"),
        ({"seeds": [0, 1]}, {"seeds": [0, 1, 2]}, "seeds was [0, 1], is [0, 1, 2]"),
    ],
)
def test_differences_are_told_in_the_words_of_a_recipe(one: Any, other: Any, told: str) -> None:
    assert told in recipe.difference(one, other)


@pytest.mark.parametrize(("section", "function"), [(DataSource, data.load), (ObjectiveNames, objectives.objective)])
def test_a_section_mirrors_the_function_that_takes_it(section: type[Any], function: Any) -> None:
    arguments = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    fields = {name: field.get_default() for name, field in section.model_fields.items()}
    assert list(fields) == list(arguments)
    for name, default in arguments.items():
        if default is not inspect.Parameter.empty:
            assert (fields[name] or None) == (default or None), name


def test_the_template_is_a_recipe(tmp_path: Path) -> None:
    text = recipe.template("their.package:build", ["1,3,224,224"])
    (tmp_path / "r.yaml").write_text(text)
    found = recipe.read(tmp_path / "r.yaml")
    assert found.network.name == "their.package:build"
    assert found.network.shape == (1, 3, 224, 224)
    assert found.data.size == 224


def test_the_commented_keys_of_the_template_are_right_too(tmp_path: Path) -> None:
    lines = []
    for line in recipe.template("a:b", ["1,3,8,8"]).splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        bare = line.lstrip().removeprefix("# ")
        lines.append(indent + bare if ": " in bare or bare.endswith(":") else line)
    text = "\n".join(line for line in lines if not line.startswith(("A run of", "command line")))
    (tmp_path / "r.yaml").write_text(text)
    assert recipe.read(tmp_path / "r.yaml").initialize.importance == "l1"


@pytest.mark.parametrize(
    ("shapes", "given"),
    [
        (["1,16:int64:0-49"], {"inputs": ["1,16:int64:0-49"]}),
        (["1,1,16,16", "1,5"], {"inputs": ["1,1,16,16", "1,5"]}),
        (["image=1,1,16,16", "mask=1,16:bool"], {"inputs": ["image=1,1,16,16", "mask=1,16:bool"]}),
        (["1,6"], {"shape": [1, 6]}),
    ],
)
def test_the_template_of_other_inputs_names_the_users_own_data(
    tmp_path: Path, shapes: list[str], given: dict[str, Any]
) -> None:
    (tmp_path / "r.yaml").write_text(recipe.template("their.package:build", shapes))
    values = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert values["network"] == {"name": "their.package:build", **given}
    assert values["data"] == {"name": "their.package:data"}
    assert recipe.read(tmp_path / "r.yaml").network.described == tuple(shapes)
