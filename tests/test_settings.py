"""Sizes in objects of settings and in methods that another module calls: found, followed, saved and loaded."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tas
from tas.testing import check_space


@dataclass(frozen=True)
class Frozen:
    n_head: int = 4
    n_embd: int = 32
    n_hidden: int = 48
    dropout: float = 0.0
    kind: type = nn.GELU


class Plain:
    n_head, n_embd, n_hidden = 4, 32, 48  # of the class: an instance holds none of them

    def head_size(self) -> int:
        return self.n_embd // self.n_head


class Slotted:
    __slots__ = ("n_embd", "n_head", "n_hidden")

    def __init__(self) -> None:
        self.n_head, self.n_embd, self.n_hidden = 4, 32, 48


class Easy(dict[str, Any]):
    """A dict with attributes, as much research code has one."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


SIZES = {"n_head": 4, "n_embd": 32, "n_hidden": 48}
SETTINGS: dict[str, Callable[[], Any]] = {
    "frozen dataclass": Frozen,
    "namespace": lambda: SimpleNamespace(**SIZES, act=nn.GELU),
    "arguments": lambda: argparse.Namespace(**SIZES, lr=0.1),
    "class": Plain,
    "slots": Slotted,
    "dict": lambda: Easy(**SIZES, act=nn.GELU, names={3: "three"}),
}


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        size = self.config.n_embd // self.config.n_head
        q, k, v = (
            part.view(n, length, self.config.n_head, size).transpose(1, 2)
            for part in self.qkv(x).split(self.config.n_embd, dim=2)
        )
        x = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, length, self.config.n_embd))


class Network(nn.Module):
    """Two blocks and the network share one object of settings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(6, 32)
        self.blocks = nn.ModuleList(Attention(config) for _ in range(2))
        self.up, self.head = nn.Linear(32, 48), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        gate, x = self.up(x).view(len(x), -1, 2, self.config.n_hidden // 2).unbind(2)
        return self.head(gate.sigmoid() * x).mean(1)


@pytest.mark.parametrize("kind", SETTINGS)
def test_sizes_in_settings_that_modules_share_follow_in_each(kind: str, tmp_path: Path) -> None:
    def build() -> Network:
        torch.manual_seed(0)
        return Network(SETTINGS[kind]())

    x = torch.randn(2, 7, 6)
    network = build()
    check_space(network, x, architectures=2)
    traced = tas.trace(network, x)
    smallest = traced.space.smallest()
    assert tas.macs(traced.space, smallest) < 0.25 * tas.macs(traced.space, traced.space.largest())
    student = tas.extract(traced, smallest).eval()
    assert (network.config.n_head, network.config.n_embd) == (4, 32), "the original's settings were touched"
    assert type(student.config) is type(network.config)
    tas.save(student, tmp_path / "student")
    torch.testing.assert_close(tas.load(build, tmp_path / "student")(x), student(x))


def test_each_module_that_shares_settings_is_free_of_the_others() -> None:
    traced = tas.trace(Network(Frozen()), torch.randn(2, 7, 6))
    names = [name for name in traced.space.position if name.startswith("blocks.") and "qkv" in name]
    assert {name.split(".")[1] for name in names} == {"0", "1"}
    one = {**traced.space.largest(), **{n: traced.space.smallest()[n] for n in names if n.startswith("blocks.0")}}
    first, second = tas.extract(traced, one).blocks
    assert (first.config == second.config, second.config) == (False, Frozen())
    assert replace(first.config, n_head=4, n_embd=32) == Frozen()


def test_a_folder_with_settings_needs_nothing_of_tas(tmp_path: Path) -> None:
    traced = tas.trace(Network(Frozen()), torch.randn(2, 7, 6))
    tas.save(tas.extract(traced, traced.space.smallest()), tmp_path / "student")
    code = f"""
import sys
sys.modules["tas"] = None
sys.path[:0] = [{str(tmp_path / "student")!r}, {str(tmp_path)!r}]
import torch
from load import load
from plain import Frozen, Network
print(load(lambda: Network(Frozen()), {str(tmp_path / "student")!r})(torch.zeros(2, 7, 6)).shape)
"""
    source = Path(__file__).read_text().replace("import tas\nfrom tas.testing import check_space\n", "")
    (tmp_path / "plain.py").write_text(source)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch.Size([2, 5])" in done.stdout, done.stderr


class Writes(nn.Module):
    """What the network writes into the shared settings, its part reads: neither can have a copy of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.context = SimpleNamespace(width=16, length=0)
        self.part = Reads(self.context)
        self.stem = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        self.context.length = x.shape[1]
        return self.part(self.stem(x).relu())


class Reads(nn.Module):
    def __init__(self, context: Any) -> None:
        super().__init__()
        self.context, self.head = context, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(-1, self.context.length, self.context.width))


def test_settings_that_a_forward_writes_to_stay_one_object() -> None:
    network, x = Writes(), torch.randn(2, 5, 4)
    traced = tas.trace(network, x)
    assert not traced.attribute_rules
    student = tas.extract(traced, traced.space.smallest())
    assert student.context is student.part.context
    assert student(torch.randn(2, 6, 4)).shape == (2, 6, 3)


class Cell(nn.Module):
    def __init__(self, reads: int, hidden: int) -> None:
        super().__init__()
        self.hidden_dim = hidden
        self.conv = nn.Conv2d(reads + hidden, 4 * hidden, 3, padding=1)

    def init_hidden(self, batch: int, size: torch.Size) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, self.hidden_dim, *size), torch.zeros(batch, self.hidden_dim, *size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], 1)), self.hidden_dim, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Cell(3, 8), Cell(8, 12)])
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = list(x.unbind(1))
        for cell in self.cells:
            state = cell.init_hidden(len(x), x.shape[-2:])  # type: ignore[operator]
            for step, given in enumerate(outputs):
                state = cell(given, state)
                outputs[step] = state[0]
        return self.head(outputs[-1])


def test_a_method_that_the_parent_calls_reads_sizes_of_the_child() -> None:
    network, x = ConvLSTM().double(), torch.randn(2, 2, 3, 6, 6, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        traced = tas.trace(network, x)
        check_space(network, x, architectures=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [choice.size for choice in traced.space.choices] == [8, 12]
    student = tas.extract(traced, dict(zip(traced.space.position, (4, 6), strict=True)))
    assert [cell.hidden_dim for cell in student.cells] == [4, 6]
