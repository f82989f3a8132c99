"""Sizes in Python attributes are found by running cut networks, and set in students; look-alikes are left alone."""

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tas.cost import macs
from tas.exporting import load, save
from tas.extraction import extract
from tas.testing import check_space
from tas.tracing import Traced, proof, trace


class Named(nn.Module):
    """Attention that keeps its numbers in attributes; `shift` and `steps` merely look like sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.shift, self.steps = 3, 4, 3, [4, 2]
        self.qkv, self.out, self.head = nn.Linear(6, 36), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.roll(self.shift, 1)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        x = (scores @ v).transpose(1, 2).reshape(n, length, self.num_heads * self.head_dim)
        return self.head(self.out(x).mean(1))


class Shifted(nn.Module):
    """Windows are shifted by as many places as there are heads; a mask is cut by that shift only later."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shift = 3, [3, 3]
        self.qkv, self.out, self.head = nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mask = x.new_zeros(length)
        mask[: -self.shift[0]] = 1.0
        mask[-self.shift[1] :] = 2.0
        scores = (q @ k.transpose(-2, -1) + mask).softmax(-1)
        return self.head(self.out((scores @ v).transpose(1, 2).reshape(n, length, width)).mean(1))


class Listed(nn.Module):
    """The parts of a layer are listed, unequal, and go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 8]
        self.stem, self.left, self.right = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().split(self.sizes, dim=1)
        return self.head((self.left(a).relu() + self.right(b).relu()).mean((2, 3)))


class Parts(nn.Module):
    """Parts of equal sizes, each with a depthwise layer of its own, joined again: any two may be mistaken."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (20, 20, 20, 20, 20)
        self.stem, self.head = nn.Conv2d(3, 100, 1), nn.Linear(100, 5)
        self.layers = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1, groups=n) for n in self.sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        first, *parts = self.stem(x).split(self.sizes, dim=1)
        joined = torch.cat([first, *(layer(part) for layer, part in zip(self.layers, parts, strict=True))], 1)
        return self.head(joined.relu().mean((2, 3)))


def test_parts_of_one_size_follow_each_its_own() -> None:
    traced = trace(Parts(), torch.randn(2, 3, 8, 8))
    assert [choice.size for choice in traced.space.choices] == [20] * 5
    sizes = dict(zip(traced.space.position, (6, 14, 8, 20, 10), strict=True))
    student = extract(traced, {**traced.space.smallest(), **sizes})
    assert student.sizes == (6, 14, 8, 20, 10)


def test_heads_and_head_size_follow_their_attributes_and_look_alikes_stay() -> None:
    traced = check_space(Named(), torch.randn(2, 7, 6))
    assert {rule.key[0] for rule in traced.attribute_rules} == {"num_heads", "head_dim"}
    student = extract(traced, traced.space.smallest())
    assert (student.num_heads, student.head_dim) == (1, 1)
    assert (student.shift, student.steps) == (3, [4, 2])


def test_of_attributes_found_together_only_those_that_are_needed_change() -> None:
    stem = nn.Linear(6, 12)
    traced = check_space(nn.Sequential(stem, Shifted()), torch.randn(2, 7, 6))
    assert {rule.key[0] for rule in traced.attribute_rules} == {"heads"}
    assert len([choice for choice in traced.space.choices if choice.kind == "width"]) == 3


def test_listed_parts_follow_and_the_list_of_the_original_is_not_touched() -> None:
    traced = check_space(Listed(), torch.randn(2, 3, 8, 8))
    assert [choice.size for choice in traced.space.choices] == [4, 8, 6]
    student = extract(traced, traced.space.smallest())
    assert sum(student.sizes) == student.stem.out_channels < 12
    assert traced.network.sizes == [4, 8]


class Boxed(nn.Module):
    """A size that is no number of Python."""

    def __init__(self, kind: Callable[[int], Any]) -> None:
        super().__init__()
        self.size, self.stem, self.head = kind(12), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().view(-1, self.size.item()))


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_sizes_that_are_numbers_of_numpy_or_torch_follow_and_stay_of_their_kind(
    kind: Callable[[int], Any], tmp_path: Path
) -> None:
    traced = check_space(Boxed(kind), torch.randn(2, 6))
    student = extract(traced, traced.space.smallest())
    assert type(student.size) is type(Boxed(kind).size)
    assert student.size == student.stem.out_features < 12
    save(student, tmp_path / "student")
    loaded = load(lambda: Boxed(kind), tmp_path / "student")
    assert type(loaded.size) is type(student.size)
    assert loaded.size == student.size


def test_every_module_of_a_class_gets_the_rule_that_one_needed() -> None:
    traced = trace(
        nn.Sequential(*(Block() for _ in range(3)), nn.Flatten(), nn.Linear(7 * 12, 5)), torch.randn(2, 7, 12)
    )
    assert {(rule.module, rule.key[0]) for rule in traced.attribute_rules} >= {(f"{i}", "heads") for i in range(3)}


def _codegen() -> tuple[Traced, dict[str, Tensor]]:
    """Its code divides the width by 4, which is rounded: rules that differ agree at many architectures."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "n_positions": 40, "n_ctx": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    torch.manual_seed(0)
    network = transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**sizes, use_cache=False)).eval()
    inputs = {"input_ids": torch.randint(5, 60, (2, 8))}
    return trace(network, inputs), inputs


def _require_students(traced: Traced, inputs: dict[str, Tensor]) -> None:
    """Those of many architectures run."""
    sizes = {c.name: c.candidates for c in traced.space.choices if ".h.1.attn" in c.name}
    for values in list(product(*sizes.values()))[::3]:
        extract(traced, {**traced.space.largest(), **dict(zip(sizes, values, strict=True))})(**inputs)


def test_a_rule_that_fits_all_architectures_of_the_proof_by_chance_is_refuted_at_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "for_peers", lambda *_: [])
    _require_students(*_codegen())


def test_modules_of_a_class_share_a_rule_whose_dimension_is_of_an_operator_nearby(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "_FRESH", 0)
    _require_students(*_codegen())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.made, self.out = 3, nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.made(x).unflatten(-1, (self.heads, -1))
        return x + self.out((heads * heads.mean(1, keepdim=True)).flatten(-2))


class Remembering(nn.Module):
    """Many attributes have the number of heads, which the code reads in one of several ways, and only that."""

    def __init__(self, reads: Callable[[nn.Module], int]) -> None:
        super().__init__()
        self.reads = reads
        for number in range(30):
            setattr(self, f"aim{number}", 3)
        self.heads = 3
        self.made, self.out, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.made(x).unflatten(-1, (self.reads(self), -1))
        return self.head(self.out((heads * heads.mean(1, keepdim=True)).flatten(-2)).mean(1))


class Own(Remembering):
    """It looks its attributes up itself."""

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


def _replays(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of cut networks a trace takes; the laws hold."""
    calls = list[int]()
    plain = proof._Proof._replay
    monkeypatch.setattr(proof._Proof, "_replay", lambda self: (calls.append(1), plain(self))[1])
    x = torch.randn(2, 7, 6)
    assert [rule.key for rule in trace(network, x).attribute_rules] == [("heads",)]
    number = len(calls)
    check_space(network, x)
    return number


def test_attributes_that_the_code_does_not_look_up_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _replays(Remembering(lambda module: module.heads), monkeypatch) < 20  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Remembering, Own])
def test_attributes_that_are_read_behind_the_back_of_a_lookup_are_tried(
    kind: type[Remembering], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _replays(kind(lambda module: vars(module)["heads"]), monkeypatch) >= 20


class Kept(Remembering):
    """It keeps what follows from a width."""

    def __init__(self) -> None:
        super().__init__(lambda module: module.heads)  # type: ignore[arg-type, return-value]
        self.known = dict[int, int]()

    def forward(self, x: Tensor) -> Tensor:
        width = self.made.weight.shape[0]
        if width not in self.known:
            self.known[width] = self.heads
        heads = self.made(x).unflatten(-1, (self.known[width], -1))
        return self.head(self.out((heads * heads.mean(1, keepdim=True)).flatten(-2)).mean(1))


class Settled(Remembering):
    """Its settings are served by a method that looks them up past all others."""

    def __init__(self) -> None:
        super().__init__(lambda module: module.count)  # type: ignore[arg-type, return-value]
        self.settings = Settings()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "settings"), name)


class Settings:
    def __init__(self) -> None:
        self.count = 3


def test_attributes_that_only_cut_networks_look_up_are_found() -> None:
    network, x = Kept(), torch.randn(2, 7, 6)
    network(x)
    assert [rule.key for rule in trace(network, x).attribute_rules] == [("heads",)]
    check_space(network, x)


def test_settings_that_a_method_serves_are_found() -> None:
    network, x = Settled(), torch.randn(2, 7, 6)
    assert [rule.key for rule in trace(network, x).attribute_rules] == [("settings", "count")]
    check_space(network, x)


def test_threads_trace_at_once_and_leave_nothing() -> None:
    met, found = Barrier(2), list[tuple[Any, ...]]()

    def read(module: nn.Module) -> int:
        with suppress(BrokenBarrierError):
            met.wait(1)  # both are in a forward
        return module.heads  # type: ignore[return-value]

    def traced() -> None:
        found.append(tuple(trace(Remembering(read), torch.randn(2, 7, 6)).attribute_rules))

    threads = [Thread(target=traced) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[rule.key for rule in rules] for rules in found] == [[("heads",)]] * 2
    assert "__getattribute__" not in vars(nn.Module)


def _helped(x: Tensor, *sizes: int) -> Tensor:
    heads = x.unflatten(-1, sizes)
    return (heads * heads.mean(1, keepdim=True)).flatten(-2)


class Helped(nn.Module):
    """A step by a literal number comes before that by an attribute in some, by the same helper."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.heads, self.out = 3, nn.Linear(12, 12)
        self.value = nn.Linear(12, 12)
        self.first, self.joined = (nn.Linear(12, 12), nn.Linear(12, 12)) if more else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is not None and self.joined is not None:
            x = self.joined(_helped(self.first(x.relu()), 3, -1))
        return self.out(_helped(self.value(x), self.heads, -1))


def test_a_helper_that_serves_several_steps() -> None:
    blocks = [nn.Linear(6, 12), Helped(False), nn.Linear(12, 12), Helped(True), nn.Linear(12, 12), Helped(False)]
    network, x = nn.Sequential(*blocks, nn.Linear(12, 5)), torch.randn(2, 7, 6)
    traced = check_space(network, x)
    assert {rule.named() for rule in traced.attribute_rules} == {f"heads of {number}" for number in (1, 3, 5)}


class Applied(nn.Module):
    """Convolutions that the network's own forward applies, with what their attributes say."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            rounded = layer.weight + ((layer.weight * 16).round() / 16 - layer.weight).detach()
            x = torch.relu(nn.functional.conv2d(x, rounded, layer.bias, groups=layer.groups))
        return self.head(x.mean((2, 3)))


def test_settings_of_a_layer_whose_weight_other_code_applies_follow() -> None:
    traced = check_space(Applied(), torch.randn(2, 3, 8, 8))
    assert [choice.candidates[-1] for choice in traced.space.choices] == [8, 6]
    depthwise = extract(traced, traced.space.smallest()).layers[1]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (depthwise.weight.shape[0],) * 3


class Slots(nn.Module):
    """Learned slots that look at the input for some steps; both counts are attributes, and may be equal."""

    def __init__(self, slots: int, steps: int) -> None:
        super().__init__()
        self.slots, self.steps = slots, steps
        self.start = nn.Parameter(torch.randn(1, 1, 12))
        self.inner, self.norm, self.query = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 12)
        self.turn, self.head = nn.GRUCell(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner(x))
        width = x.shape[2]
        slots = self.start.expand(len(x), self.slots, -1)
        for _ in range(self.steps):
            weights = (self.query(slots) @ x.transpose(1, 2)).softmax(1)
            slots = self.turn((weights @ x).reshape(-1, width), slots.reshape(-1, width)).reshape(len(x), -1, width)
        return self.head(slots).sum(1)


class Registers(nn.Module):
    """Learned registers, as many as steps."""

    def __init__(self, registers: int, steps: int) -> None:
        super().__init__()
        self.registers, self.steps = registers, steps
        self.start, self.inner, self.head = nn.Parameter(torch.randn(registers, 12)), nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        seen = self.start.expand(len(x), self.registers, -1)
        for _ in range(self.steps):
            seen = torch.tanh(seen + (seen @ x.transpose(1, 2)).softmax(-1) @ x)
        return self.head((seen * seen.sum(-1, keepdim=True)).sum(1))


@pytest.mark.parametrize("kind", [Slots, Registers])
def test_a_count_of_steps_is_no_size_that_it_equals(kind: Callable[[int, int], nn.Module]) -> None:
    spaces = []
    for steps in (4, 3):
        traced = check_space(kind(4, steps), torch.randn(2, 7, 5))
        assert extract(traced, traced.space.smallest()).steps == steps
        spaces.append([(choice.name, choice.candidates) for choice in traced.space.choices])
    assert spaces[0] == spaces[1] != []


class Mixer(nn.Module):
    """A mixer of state spaces: the middle part of the projection is a sum of sizes, split again further on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.state, self.heads = 32, 6, 4
        self.first, self.out = nn.Linear(3, 16), nn.Linear(32, 5)
        self.project = nn.Linear(16, 2 * self.inner + 2 * self.state + self.heads)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.inner, self.inner + 2 * self.state, self.heads]
        gate, mixed, step = self.project(self.first(x)).split(parts, -1)
        u, keys, queries = mixed.split([self.inner, self.state, self.state], -1)
        u = u.unflatten(-1, (self.heads, -1))
        scores = queries @ keys.transpose(1, 2)
        y = torch.einsum("bls,bsh,bshp->blhp", scores, nn.functional.softplus(step), u)
        return self.out(y.flatten(2) * nn.functional.silu(gate))


def test_parts_that_are_sums_of_sizes_follow_them() -> None:
    traced = check_space(Mixer(), torch.randn(2, 7, 3))
    assert macs(traced.space, traced.space.smallest()) < 0.1 * macs(traced.space, traced.space.largest())
    student = extract(traced, traced.space.smallest())
    assert (student.heads, student.inner, student.state) == (1, 2, 1)


class Turns(nn.Module):
    """Goes another way where two numbers, which are no sizes, are not what they were; and where it is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.p = self.q = 12
        self.a, self.b, self.c, self.d = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.b((y + y.sigmoid() if y.shape[-1] < 6 else y).tanh())
        y = self.c((y.abs().neg() if self.p != 12 else y).tanh())
        return self.d((y.abs().neg() if self.q != 12 else y).tanh())


def test_what_goes_another_way_where_it_is_narrow_keeps_its_sizes() -> None:
    """No attribute is to blame: a proof that goes on trying without any would never end."""
    traced = trace(Turns(), torch.randn(3, 4))
    assert not traced.attribute_rules
    assert any("computes something else" in size.reason for size in traced.space.kept)
