"""A student survives the disk: sizes, attributes, silenced blocks, ties; and the folder needs nothing of tas."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tas
from tas import exporting
from tas.errors import BadNetwork


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.conv(x))).relu()


class Net(nn.Module):
    """Holds what makes rebuilding hard: a size as attribute, a buffer out of the state dict, a tie, optional parts."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.shape: tuple[int, ...] = (8, 2)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(8), Block(8), Block(8))
        self.extra: nn.Module | None = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        self.echo = nn.Linear(8, 4)
        self.echo.weight = self.head.weight
        self.register_buffer("scale", torch.ones(8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x) * self.scale)
        if self.extra is not None:
            x = self.extra(x)
        x = x.view(-1, self.width, x.shape[-1] * x.shape[-2]).mean(-1)
        return self.head(x) + self.echo(x)


def smaller() -> Net:
    """A student as extraction makes it: the same class, 5 channels, a block gone, another silenced, a part removed."""
    torch.manual_seed(0)
    net = Net()
    net.width, net.shape = 5, (5, 2)
    net.stem = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    net.blocks = nn.Sequential(Block(5), nn.Identity(), Block(5))
    del net.blocks[2]
    net.extra = None
    net.head, net.echo = nn.Linear(5, 4), nn.Linear(5, 4, bias=False)
    net.echo.weight = net.head.weight
    net.scale = torch.rand(5, 1, 1)
    return net.eval()


def test_a_loaded_student_computes_the_same_and_has_the_same_structure(tmp_path: Path) -> None:
    student, x = smaller(), torch.randn(2, 3, 6, 6)
    tas.save(student, tmp_path / "student", architecture={"stem": 5})
    loaded = tas.load(Net, tmp_path / "student")
    assert torch.equal(loaded(x), student(x))
    assert isinstance(loaded, Net)
    assert repr(loaded).replace("bias=True", "") == repr(student).replace("bias=True", "")
    assert loaded.shape == (5, 2)
    assert loaded.echo.weight is loaded.head.weight
    assert not loaded.training
    assert exporting.facts(tmp_path / "student") == {"architecture": {"stem": 5}}


def test_the_folder_is_read_without_tas(tmp_path: Path) -> None:
    tas.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "student")
    script = (
        "import sys; from load import load; from torch import nn\n"
        "student = load(lambda: nn.Sequential(nn.Linear(3, 7)), '.')\n"
        "assert student[0].out_features == 2 and 'tas' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", "import sys; sys.path.insert(0, '.')\n" + script],
        check=True,
        cwd=tmp_path / "student",
    )


def test_another_factory_is_refused(tmp_path: Path) -> None:
    tas.save(smaller(), tmp_path / "student")
    with pytest.raises(BadNetwork, match="no module 'stem'"):
        tas.load(lambda: nn.Sequential(nn.Linear(3, 3)), tmp_path / "student")
    tas.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "student")
    with pytest.raises(BadNetwork, match="must be a Linear, the factory builds Conv2d"):
        tas.load(lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), tmp_path / "student")


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadNetwork, match="cannot load a student"):
        tas.load(Net, tmp_path)
    with pytest.raises(BadNetwork, match="must be a student folder"):
        exporting.facts(tmp_path)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    tas.save(nn.Linear(3, 2), tmp_path / "student")
    before = (tmp_path / "student" / "student.json").read_text()
    with pytest.raises(TypeError):
        tas.save(nn.Linear(3, 1), tmp_path / "student", metrics=object())
    assert (tmp_path / "student" / "student.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    exporting.write_json(tmp_path / "a" / "x.json", {"b": 1})
    with pytest.raises(TypeError):
        exporting.write_json(tmp_path / "a" / "x.json", {"b": object()})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"b": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]
