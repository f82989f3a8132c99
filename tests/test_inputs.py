"""Inputs and outputs of any form: several tensors, by position and by name, nested, whole numbers, masks, None."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import tas
from tas.errors import BadNetwork, BadRecipe
from tas.recipe import examples, parse, parse_inputs
from tas.testing import check_space

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randn(2, 3, 6, 6, generator=GENERATOR)
IDS = torch.randint(0, 11, (2, 5), generator=GENERATOR)
LENGTHS = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
WORDS = torch.randn(2, 5, 8, generator=GENERATOR)


class Reader(nn.Module):
    """Embedded whole numbers, attention over those that a mask keeps, and a head; a mask is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Embedding(11, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.outer, self.norm, self.head = (
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def forward(self, ids: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        if bias is not None:
            x = x + bias
        x = x + self.attend(x, x, x, key_padding_mask=None if mask is None else ~mask, need_weights=False)[0]
        return self.head(self.norm(self.outer(self.inner(x).relu())).mean(1))


class Both(nn.Module):
    """Pictures and whole numbers through stems of their own; `give` makes the output of the logits and the features."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any] = lambda logits, _: logits) -> None:
        super().__init__()
        self.see, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.read, self.inner, self.head = nn.Embedding(11, 8), nn.Linear(8, 10), nn.Linear(10, 4)
        self.give = give

    def forward(self, pictures: Tensor, ids: Tensor) -> Any:
        x = self.inner(self.norm(self.see(pictures)).relu().mean((2, 3)) + self.read(ids).mean(1)).relu()
        return self.give(self.head(x), x)


class Unpacks(nn.Module):
    """Takes its two inputs out of one dict or one pair."""

    def __init__(self, keys: tuple[Any, Any]) -> None:
        super().__init__()
        self.inner, self.keys = Both(), keys

    def forward(self, batch: Any) -> Tensor:
        return self.inner(*(batch[key] for key in self.keys))


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Known:
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Inner:
    features: Tensor
    note: str = "of the encoder"


@dataclasses.dataclass(frozen=True)
class Nested:
    logits: Tensor
    inside: list[Inner]
    nothing: None = None


@dataclasses.dataclass
class Example:
    image: Tensor
    text: Tensor


class Unknown:
    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class OfExamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = Both()

    def forward(self, example: Example) -> Tensor:
        return self.both(example.image, example.text)


_pytree.register_dataclass(Known)


def called(network: nn.Module, inputs: Any) -> Any:
    """As a user would call it."""
    if isinstance(inputs, dict):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def same(one: Any, other: Any) -> None:
    (ours, form), (theirs, wanted) = _pytree.tree_flatten(one), _pytree.tree_flatten(other)
    assert form == wanted
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


INPUTS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "whole numbers": (Reader, IDS),
    "a mask by position": (Reader, (IDS, LENGTHS)),
    "a mask by name": (Reader, {"ids": IDS, "mask": LENGTHS}),
    "none in between": (Reader, (IDS, None, WORDS)),
    "none by name": (Reader, {"mask": None, "ids": IDS, "bias": WORDS}),
    "two by position": (Both, (PICTURES, IDS)),
    "two by name, in another order": (Both, {"ids": IDS, "pictures": PICTURES}),
    "a dict": (lambda: Unpacks(("image", "text")), ({"image": PICTURES, "text": IDS},)),
    "a pair": (lambda: Unpacks((0, 1)), ((PICTURES, IDS),)),
    "a list": (lambda: Unpacks((0, 1)), ([PICTURES, IDS],)),
    "a dataclass": (OfExamples, Example(PICTURES, IDS)),
}
OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tuple": lambda logits, x: (logits, x),
    "a dict": lambda logits, x: {"logits": logits, "features": x},
    "nested": lambda logits, x: {"logits": [logits, (logits.sum(1), {"x": x})], "none": None, "name": "both"},
    "a named tuple": Pair,
    "a registered dataclass": Known,
    "dataclasses, one in the other": lambda logits, x: Nested(logits, [Inner(x)]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_any_form_go_through_every_step(name: str) -> None:
    build, inputs = INPUTS[name]
    torch.manual_seed(0)
    network = build().eval()
    traced = tas.trace(network, inputs)
    space, smallest = traced.space, traced.space.smallest()
    assert tas.macs(space, smallest) < 0.5 * tas.macs(space, space.largest())
    same(called(tas.reorder(traced).network, inputs), called(network, inputs))
    supernet = tas.Supernet(traced).eval()
    same(supernet(inputs, space.largest()), called(network, inputs))
    same(supernet(inputs, smallest), called(tas.extract(supernet, smallest).eval(), inputs))
    check_space(network, inputs, architectures=1)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form_are_kept_as_they_are(name: str) -> None:
    """The features are an output too, so the layer that makes them keeps its size in the student."""
    network = Both(OUTPUTS[name]).eval()
    traced = check_space(network, (PICTURES, IDS), architectures=1)
    assert [choice.name for choice in traced.space.choices] == ["see"]
    assert {kept.name for kept in traced.space.kept} >= {"inner.weight[0]", "head.weight[0]"}
    outputs = network(PICTURES, IDS)
    inputs = PICTURES.double(), IDS
    for student in (tas.extract(traced, traced.space.smallest()).eval(), traced.network):
        form = _pytree.tree_structure(student(*inputs))
        assert form == _pytree.tree_structure(outputs)
    assert type(tas.Supernet(traced)(inputs, traced.space.smallest())) is type(outputs)


def test_an_output_that_torch_cannot_look_into_is_refused() -> None:
    with pytest.raises(BadNetwork, match="alone or in tuples, lists, dicts and dataclasses; got Unknown"):
        tas.trace(Both(Unknown), (PICTURES, IDS))


def test_dataclasses_are_told_by_their_shapes() -> None:
    wanted = r"inputs Example\(image=\(2, 5\), text=\(2, 4\)\), got"
    with pytest.raises(BadNetwork, match=wanted):
        check_space(OfExamples(), Example(torch.zeros(2, 5), torch.zeros(2, 4)))


def test_an_input_that_is_missing_or_unknown_is_told() -> None:
    for inputs, told in (
        (PICTURES, "missing 1 required positional argument: 'ids'"),
        ({"pictures": PICTURES, "words": IDS}, "unexpected keyword argument 'words'"),
        ((PICTURES, IDS.float()), "got RuntimeError"),
    ):
        with pytest.raises(BadNetwork) as problem:
            tas.trace(Both(), inputs)
        assert told in str(problem.value)
        assert "\n" not in str(problem.value)


def test_what_tokens_are_there_does_not_change_the_space() -> None:
    """Costs and choices follow from shapes: other numbers, and masks that keep all, give the same space."""
    torch.manual_seed(0)
    network = Reader()
    spaces = [
        tas.trace(network, {"ids": ids, "mask": mask}).space
        for ids, mask in ((IDS, LENGTHS), (torch.ones_like(IDS), torch.ones_like(LENGTHS)), (IDS.int(), LENGTHS))
    ]
    assert all(space == spaces[0] for space in spaces)


# -- described in one line ---------------------------------------------------------------------------------------------


def test_inputs_are_described_in_one_line_each() -> None:
    assert examples(["1,3,6,6"]).shape == (1, 3, 6, 6)
    assert examples(["1,3,6,6"], batch=2).dtype == torch.float32
    first, second = examples(["3,5:int64:0-10", "3,5,8:float64"])
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((3, 5), torch.int64, (3, 5, 8), torch.float64)
    assert set(examples(["500,5:int32:3-6"]).unique().tolist()) == {3, 4, 5, 6}
    named = examples(["ids=1,5:int64", "mask=1,5:bool"], batch=4)
    assert list(named) == ["ids", "mask"]
    assert named["ids"].tolist() == [[1] * 5] * 4
    assert named["mask"].tolist() == [[True] * 5] * 4
    assert torch.equal(examples(["2,9"]), examples(["2,9"]))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["1,x"], "--shape takes sizes from 1, batch first"),
        (["1,0,3"], "--shape takes sizes from 1, batch first"),
        (["ids="], "such as input_ids=1,16:int64:0-999; got 'ids='"),
        (["a b=1,3"], "got 'a b=1,3'"),
        (["1,3:"], "got '1,3:'"),
        (["1,3:int64:5"], "got '1,3:int64:5'"),
        (
            ["1,3:complex64"],
            "is one of float32, float64, float16, bfloat16, int64, int32, int16, int8, uint8, bool; got",
        ),
        (["1,3:Tensor"], "got 'Tensor' in '1,3:Tensor'"),
        (
            ["1,3:float32:0-1"],
            "a range is for integers that its type can hold, from low to high; got '1,3:float32:0-1'",
        ),
        (["1,3:int8:0-128"], "a range is for integers"),
        (["1,3:int64:4-3"], "a range is for integers"),
        (["ids=1,3", "1,4"], "inputs have names, all of them or none; got ids=1,3, 1,4"),
        (["ids=1,3", "ids=1,4"], "an input has one description; 'ids' has two: ids=1,3, ids=1,4"),
        (["1,3", "2,3"], "the first size of every input is the batch, the same in all; got 1,3, 2,3"),
    ],
)
def test_wrong_descriptions_are_one_line(texts: list[str], told: str) -> None:
    with pytest.raises(BadRecipe) as problem:
        parse_inputs(texts)
    assert told in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_recipe_describes_its_inputs_once() -> None:
    described = ["ids=1,5:int64:0-10", "mask=1,5:bool"]
    base = {"network": {"name": "a:b", "inputs": described}, "data": {"name": "none"}, "budget": {}}
    assert parse(base).network.described == tuple(described)
    assert parse(base, ["network.inputs=[]", "network.shape=[1, 3, 6, 6]"]).network.described == ("1,3,6,6",)
    assert parse(base, ["network.inputs=[]"]).network.described == ()
    with pytest.raises(BadRecipe, match=r"network\.shape is for one input of real numbers"):
        parse(base, ["network.shape=[1, 3, 6, 6]"])
    with pytest.raises(BadRecipe, match="--shape takes sizes from 1"):
        parse(base, ["network.inputs=[ids]"])
