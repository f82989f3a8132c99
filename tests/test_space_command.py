"""`tas space` and the section `space` of a recipe: what can be searched, how it was counted, what users decide."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adversarial import Net, conv_bn, head, images
from conftest import Shell
from test_inputs import IDS, LENGTHS, Reader
from tiny_task import TinyNet
from torch import Tensor, nn

import tas
from tas.describing import feasibility, survey
from tas.errors import BadRecipe
from tas.recipe import dump, parse
from tas.reporting.tables import ONLY_MIXED, kept_rows, space_tables
from tas.tracing import Rules
from tas.tracing.independent import independent_macs

NAMES = {"network": {"name": "tiny_task:TinyNet"}, "data": {"name": "none"}, "budget": {}}
TINY = ("space", "tiny_task:TinyNet", "--shape", "1,1,8,8")


class Rolled(nn.Module):
    """A stream that is kept because channels change places; eight parameter dimensions share it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.a(x), 1, 1)
        return self.head(self.c(x + self.b(x)).relu())


def nothing() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_the_survey_counts_what_can_be_searched() -> None:
    network = TinyNet()
    inputs = torch.zeros(2, 1, 8, 8)
    space = tas.trace(network, inputs).space
    found = survey(space, network, inputs, 1.25)
    whole, least = (tas.macs(space, a) for a in (space.largest(), space.smallest()))
    assert found["searchable"]["macs"] == pytest.approx(1 - least / whole)
    assert found["searchable"]["layers"] == 1
    assert found["counted"] == {"formula": whole, "torch": independent_macs(network, inputs)}
    assert found["counted"]["formula"] == found["counted"]["torch"]
    assert found["batch_norms"] == sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert found["seconds"] == 1.25
    assert network.training


def test_layers_without_a_choice_count_as_kept() -> None:
    network = Rolled()
    space = tas.trace(network, images(), Rules(depth=False)).space
    shares = survey(space, network, images(), 0.0)["searchable"]
    layers = tas.cost.by_layer(space, space.largest())
    assert shares["layers"] == pytest.approx((layers["c.0"] + layers["head.2"]) / sum(layers.values()))
    assert 0 < shares["macs"] < shares["layers"] < 1


def test_a_disagreement_of_the_two_counts_is_said() -> None:
    network = TinyNet()
    found = survey(tas.trace(network, torch.zeros(2, 1, 8, 8)).space, network, torch.zeros(2, 1, 8, 8), 0.0)
    lines = [part for part in space_tables(found) if isinstance(part, str)]
    assert not any("differ" in line for line in lines)
    found["counted"]["torch"] -= 5
    assert any("they differ by 5, please report it" in line for line in map(str, space_tables(found)))


def test_a_kept_stream_is_listed_once_with_its_places() -> None:
    space = tas.trace(Rolled(), images()).space
    pieces = [kept for kept in space.kept if kept.stream == "a.0.weight[0]"]
    assert [kept.name for kept in pieces] == ["a.0.weight[0]", "b.0.weight[0]", "b.0.weight[1]", "c.0.weight[1]"]
    _, rows = kept_rows(space.to_dict())
    (row,) = (row for row in rows if row[0] == "a.0.weight[0]")
    assert row[1:3] == ["8", "12"]  # two norms of four vectors, rows of a and b, columns of b and c
    assert row[3].startswith("positions change places: roll in the network")
    assert [row[0] for row in rows] == ["a.0.weight[0]", "a.0.weight[1]", "head.2.weight[0]"]


def test_notes_of_one_kind_take_one_line() -> None:
    found = {"notes": ["a norm over channels: x", "a norm over channels: y", "an output is wide"]}
    found |= {"choices": [], "kept": [], "feasibility": {"largest": {"macs": 1, "params": 1}}}
    found |= {"searchable": dict.fromkeys(("macs", "params", "layers"), 0.5), "batch_norms": 0, "seconds": 1.0}
    found |= {"counted": {"formula": 1, "torch": 1}}
    lines = [part for part in space_tables(found) if isinstance(part, str)]
    assert lines[-2:] == [
        f"Note: a norm over channels, in 2 places: x, and 1 more ({ONLY_MIXED})",
        "Note: an output is wide",
    ]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_all_of_it(shell: Shell) -> None:
    code, out, err = shell(*TINY)
    assert (code, err) == (0, "")
    for expected in (
        "of the MACs lie in layers that a choice changes",
        "counted by torch.",
        "Batch norms: ",
        "Traced in",
    ):
        assert expected in out, expected
    assert max(map(len, out.splitlines())) <= 130  # tables keep to 100 columns, sentences are not cut


def test_json_has_all_of_it(shell: Shell) -> None:
    code, out, _ = shell(*TINY, "--json")
    found = json.loads(out)
    assert code == 0
    assert found.keys() >= {
        "choices",
        "kept",
        "notes",
        "feasibility",
        "searchable",
        "counted",
        "batch_norms",
        "seconds",
    }
    assert all(kept.keys() >= {"stream", "places"} for kept in found["kept"])


def test_nothing_to_search_exits_with_two(shell: Shell) -> None:
    code, out, err = shell("space", "test_space_command:nothing", "--shape", "1,1,8,8", "--json")
    assert (code, out) == (2, "")
    assert "no choice is left to search" in err
    assert "1.weight[0]: it is an output of the network" in err


READER = ("space", "test_inputs:Reader", "--json")
TOKENS = ("--shape", "ids=1,5:int64:0-10")


def test_inputs_are_described_by_name_or_in_their_order(shell: Shell) -> None:
    """As the library sees them with its own tensors."""
    space = tas.trace(Reader(), {"ids": IDS, "mask": LENGTHS}).space
    for more in ((*TOKENS, "--shape", "mask=1,5:bool"), ("--shape", "1,5:int64:0-10", "--shape", "1,5:bool")):
        code, out, err = shell(*READER, *more)
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert [choice["name"] for choice in found["choices"]] == [choice.name for choice in space.choices]
        assert found["counted"] == dict.fromkeys(("formula", "torch"), tas.macs(space, space.largest()))


def test_shapes_take_the_place_of_a_recipes(shell: Shell, tmp_path: Path) -> None:
    recipe = {**NAMES, "network": {"name": "test_inputs:Reader", "shape": [1, 3, 6, 6]}}
    (tmp_path / "reader.yaml").write_text(json.dumps(recipe))
    code, _, err = shell("space", "reader.yaml", "--json")
    assert (code, "the network refuses an input of shape [1, 3, 6, 6]: Expected tensor" in err) == (2, True)
    code, out, _ = shell("space", "reader.yaml", "--json", *TOKENS)
    assert code == 0
    assert json.loads(out)["choices"]
    inputs = json.dumps({**recipe, "network": {"name": "test_inputs:Reader", "inputs": [TOKENS[1]]}})
    (tmp_path / "reader.yaml").write_text(inputs)
    assert json.loads(shell("space", "reader.yaml", "--json")[1])["choices"] == json.loads(out)["choices"]


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (("--shape", "ids=1,5:int64:0-99"), "refuses an input ids [1, 5] int64: index out of range"),
        (("--shape", "words=1,5:int64"), "refuses an input words [1, 5] int64: Reader.forward() got an unexpected"),
        ((*TOKENS, "--shape", "mask=1,4:bool"), "refuses inputs ids [1, 5] int64, mask [1, 4] bool: "),
        ((*TOKENS, "--shape", "1,5:bool"), "inputs have names, all of them or none"),
        (("--shape", "1,5:long"), "the type of an input is one of float32"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(shell: Shell, shapes: tuple[str, ...], told: str) -> None:
    code, out, err = shell(*READER, *shapes)
    assert (code, out) == (2, "")
    assert told in err
    assert err.strip().count("\n") == 0


def test_bounds_show_the_original_beside_the_largest(shell: Shell) -> None:
    code, out, _ = shell(*TINY, "--set", "space.bound={stem.0: [2, 4]}")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│ ")][-5:] == [
        *("smallest", "smallest,", "uniform", "largest", "original")
    ]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("space.minimum=0.99", "space.minimum 0.99 leaves each of 3 a single one (stem.0 8, "),
        ("space={ratios: [1.0], depth: false}", "space.ratios (1.0,) leaves each of 2 a single one (stem.0 8, "),
    ],
)
def test_rules_that_leave_no_choice_are_blamed_for_it(shell: Shell, rule: str, told: str) -> None:
    code, out, err = shell(*TINY, "--set", rule)
    assert (code, out) == (2, "")
    assert told in err
    assert "output" not in err
    assert err.strip().count("\n") == 0


def test_uniform_widths_say_which_part_they_are(shell: Shell) -> None:
    code, out, _ = shell(*TINY)
    assert code == 0
    assert "uniform (50% of each width)" in out
    space = tas.trace(TinyNet(), torch.zeros(2, 1, 8, 8)).space
    found = feasibility(space, {"60% of MACs": tas.budget(space, macs=0.6)})
    even = tas.search(tas.trace(TinyNet(), torch.zeros(2, 1, 8, 8)), None, tas.budget(space, macs=0.6), "uniform")
    parts = [even.architecture[name] / 8 for name in ("stem.0", "block.conv1")]
    assert found["uniform"]["widths"] == [min(parts), max(parts)]
    assert "widths" not in found["smallest"]


def test_a_wrong_rule_is_one_line(shell: Shell) -> None:
    code, _, err = shell(*TINY, "--set", "space.fix=[steam]")
    assert code == 2
    assert err.strip().count("\n") == 0
    assert "space.fix names 'steam', which matches nothing; the nearest names: 'stem" in err


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_every_rule_stands_in_a_recipe_and_survives_it() -> None:
    section: dict[str, Any] = {
        "ratios": [0.5, 1.0],
        "divisor": {"*": 4, "stem*": 2},
        "minimum": 0.25,
        "bound": {"stem.0": [0.5, 1.0], "block.conv1": [2, 6]},
        "fix": ["a"],
        "free": ["head"],
        "tie": [["stem.0", "block.*"]],
        "protect": ["block"],
        "depth": False,
    }
    rules = parse({**NAMES, "space": section}).space
    assert rules.bound == {"stem.0": (0.5, 1.0), "block.conv1": (2, 6)}
    assert rules.range_of("stem.0", 8) == (4, 8)
    assert rules.range_of("block.conv1", 8) == (2, 6)
    import yaml

    again = parse(yaml.safe_load(dump(parse({**NAMES, "space": section})))).space
    assert again == rules
    assert isinstance(again.bound["stem.0"][1], float)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"fixed": ["a"]}, "unknown key 'space.fixed'; did you mean 'fix'?"),
        ({"divisor": 0}, "space.divisor is a whole number from 1, got 0"),
        ({"bound": {"a": [8, 4]}}, "space.bound takes (low, high) with low up to high, got (8, 4) for 'a'"),
        ({"tie": ["a", "b"]}, "space.tie"),
        ({"bound": {"a": [1]}}, "space.bound"),
    ],
)
def test_wrong_rules_of_a_recipe_are_one_line(section: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRecipe) as problem:
        parse({**NAMES, "space": section})
    assert told in str(problem.value)
    assert "\n" not in str(problem.value)


def test_two_outputs_of_one_stream_are_one_stream() -> None:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        return x, m.h(m.b(x))

    _, rows = kept_rows(tas.trace(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8)), images()).space.to_dict())
    assert [row[0] for row in rows if row[1] == "8"] == ["a.0.weight[0]"]
