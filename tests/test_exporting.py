"""A student survives the disk: sizes, attributes, silenced blocks, ties; and the folder needs nothing of tas."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Net as Toy
from toys import network

import tas
from tas import exporting, loading
from tas.comparison import saved
from tas.errors import BadNetwork, BadRecipe


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
    assert exporting.facts(tmp_path / "student")["architecture"] == {"stem": 5}


NETWORKS = """
import collections
import torch
from torch import nn
from torch.nn import functional

Sizes = collections.namedtuple("Sizes", "inner label")

class Block(nn.Module):  # a wide inner width, a depthwise and a grouped convolution, a shortcut
    def __init__(self, width, inner, groups):
        super().__init__()
        self.sizes = Sizes(inner, "inner")
        self.widen = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner))
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.narrow = nn.Conv2d(inner, width, 1)

    def forward(self, x):
        h = self.grouped(self.depthwise(self.widen(x))).relu()
        return x + self.narrow(h.reshape(len(x), self.sizes.inner, *x.shape[2:]))

class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8, 16, 4) for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.options = {"heads": heads, "dropout": 0.0, "causal": False}
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        split = self.qkv(self.norm(x)).unflatten(2, (3, self.options["heads"], -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(Attention(16, 4) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.torch_attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        x = x + self.mlp(x)
        return self.head((x + self.torch_attention(x, x, x, need_weights=False)[0]).mean(1))
"""


def test_students_of_all_kinds_compute_the_same_in_a_process_without_tas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped, depthwise and attention layers, removed blocks, sizes in tuples and dicts; at several architectures."""
    (tmp_path / "unaided.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    import unaided

    torch.manual_seed(0)
    inputs = {"Convolutions": torch.randn(2, 3, 6, 6), "Tokens": torch.randn(2, 7, 6)}
    wanted, removed = {}, 0
    for name, x in inputs.items():
        traced = tas.trace(getattr(unaided, name)().eval(), x)
        space = traced.space
        assert {choice.kind for choice in space.choices} == {"width", "depth"}
        for number, architecture in enumerate((space.smallest(), space.uniform(0.5))):
            student = tas.extract(traced, architecture).eval()
            removed += sum(isinstance(module, nn.Identity) for module in student.modules())
            tas.save(student, tmp_path / f"{name}{number}")
            with torch.no_grad():
                wanted[f"{name}{number}"] = (x, student(x))
    assert removed > 0
    torch.save(wanted, tmp_path / "wanted.pt")
    script = (
        "import sys; sys.modules['tas'] = None; sys.path.insert(0, '.'); sys.path.insert(0, 'Tokens0')\n"
        "import torch, unaided; from load import load; torch.set_grad_enabled(False)\n"
        "for name, (x, wanted) in torch.load('wanted.pt').items():\n"
        "    assert torch.equal(load(getattr(unaided, name[:-1]), name)(x), wanted), name"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loader_is_short_and_asks_for_torch_and_safetensors_alone() -> None:
    lines = Path(loading.__file__).read_text().splitlines()
    found = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert len(lines) <= 60
    assert found - sys.stdlib_module_names == {"torch", "safetensors"}


def test_a_saved_student_trains_further_and_is_traced_again(tmp_path: Path) -> None:
    x = torch.randn(4, 1, 8, 8)
    traced = tas.trace(network(), x)
    tas.save(tas.extract(traced, traced.space.uniform(0.7)), tmp_path / "student")
    student = tas.load(Toy, tmp_path / "student").train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in student.parameters()]
    student(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    again = tas.trace(student.eval(), x)
    smaller = tas.extract(again, again.space.uniform(0.5))
    assert again.space.largest() == traced.space.uniform(0.7)
    assert tas.params(again.space, again.space.uniform(0.5)) == sum(p.numel() for p in smaller.parameters())
    assert smaller(x).shape == (4, 4)


def test_half_precision_and_channels_last_students_come_back(tmp_path: Path) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).half().to(memory_format=torch.channels_last)
    tas.save(student, tmp_path / "student")
    loaded = tas.load(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)), tmp_path / "student")
    assert torch.equal(loaded[0].weight, student[0].weight)
    assert loaded[0].weight.dtype == torch.float16


def test_the_card_says_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    known = {"network": {"name": "my.nets:build", "kwargs": {"classes": 4}}, "architecture": {"stem": 5}}
    metrics = {"metrics": {"top1": 93.21, "macs": 1234567}, "original": {"top1": 94.5, "macs": 7654321}}
    tas.save(smaller(), tmp_path / "student", **known, **metrics, provenance={"seed": 3})
    text = (tmp_path / "student" / "README.md").read_text()
    assert "| student | 93.21 | 1,234,567 |" in text
    assert "| original | 94.5 | 7,654,321 |" in text
    assert 'load(lambda: build(classes=4), ".")' in text
    assert "| `stem` | 5 |" in text
    assert "| `seed` | 3 |" in text
    assert "Exports" not in text
    exporting.note(tmp_path / "student", exports=[{"file": "student.onnx", "format": "onnx", "opset": 20}])
    assert "| student.onnx | onnx | 20 |" in (tmp_path / "student" / "README.md").read_text()
    tas.save(smaller(), tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "## " in text
    assert "What it reaches" not in text
    assert "Where it comes from" not in text


def test_what_a_student_was_cut_from_is_asked_for_in_words(tmp_path: Path) -> None:
    given: Any = "package:build"
    with pytest.raises(BadRecipe, match="network says how the original is built"):
        tas.save(nn.Linear(3, 2), tmp_path / "student", network=given)
    assert not (tmp_path / "student").exists()
    tas.save(nn.Linear(3, 2), tmp_path / "student")
    with pytest.raises(BadNetwork, match="does not say which network its student was cut from"):
        saved(tmp_path / "student")
    instance: Any = nn.Linear(3, 2)
    with pytest.raises(BadNetwork, match="a function or class that builds the original, got a Linear"):
        tas.load(instance, tmp_path / "student")


def test_only_a_students_own_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadRecipe, match="holds something else"):
        tas.save(nn.Linear(3, 2), tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(BadRecipe, match="cannot write a student"):
        tas.save(nn.Linear(3, 2), tmp_path / "thesis.txt" / "student")


def test_a_truncated_or_pickled_student_is_refused(tmp_path: Path) -> None:
    tas.save(smaller(), tmp_path / "student")
    weights, record = tmp_path / "student" / "student.safetensors", tmp_path / "student" / "student.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(BadNetwork, match="cannot load a student"):
        tas.load(Net, tmp_path / "student")
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(BadNetwork, match="cannot load a student"):
        tas.load(Net, tmp_path / "student")
    weights.write_bytes(whole)
    record.write_text(record.read_text()[:200])
    with pytest.raises(BadNetwork, match="cannot load a student"):
        tas.load(Net, tmp_path / "student")


def test_another_factory_is_refused(tmp_path: Path) -> None:
    tas.save(smaller(), tmp_path / "student")
    with pytest.raises(BadNetwork, match="no module 'stem'"):
        tas.load(lambda: nn.Sequential(nn.Linear(3, 3)), tmp_path / "student")
    tas.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "student")
    with pytest.raises(BadNetwork, match="'0' must be a Linear, is a Conv2d"):
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
