"""Depth: blocks and halves of blocks that are left out, and what stands in for them."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adversarial import Basic, conv_bn, head, images
from torch import Tensor, nn
from torch.nn import functional as F

import tas
from tas import cost, exporting
from tas.initialization import student_at
from tas.stand_in import stand_in
from tas.testing import check_space


class Attention(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(*x.shape[:2], -1))


def mlp(width: int = 16, inner: int = 24) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Block(nn.Module):
    """Pre-norm; the layers of its MLP are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


class ParallelBehindOneNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        given = self.norm1(x)
        return x + self.attn(given) + self.mlp(given)


class ScaledStream(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WithMask(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=torch.ones(6, 6, dtype=torch.bool).tril())
        return x + self.mlp(self.norm2(x))


class Gated(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 24)

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


class Mixer(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attn = mlp(6, 8)  # over positions

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


class AskedForItsHeads(Block):
    """It reads an attribute of the attention, which nothing that stands in for it has: it is left out as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.attn.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        assert self.attn.scale
        return super().forward(x)


class Inline(Block):
    """The products of its attention are its own: they would go on without the layers around them."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Inverted(nn.Module):
    """A ConvNeXt block: one addition."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm, self.mlp = nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.depthwise(x.mT).mT))


class Net(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(5, 16), nn.Sequential(*[block() for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


class Lists(Net):
    """Halves in lists, added in the forward of the whole network."""

    def __init__(self) -> None:
        super().__init__(nn.Identity)
        pairs = [(nn.Sequential(nn.LayerNorm(16), Attention()), mlp()) for _ in range(2)]
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for attend, feed in self.blocks:  # type: ignore[misc]
            x = attend(x) + x
            x = feed(x) + x
        return self.head(self.norm(x).mean(1))


class ByKeyword(Block):
    """Tensors and others beside the stream, given by keyword; tuples with None come back."""

    class Attention(Attention):
        def forward(self, stream: Tensor, positions: Any = None, cache: Any = None) -> Any:  # type: ignore[override]
            return super().forward(stream * positions[0]), cache

    def __init__(self) -> None:
        super().__init__()
        self.attn = self.Attention()

    def forward(self, stream: Tensor, positions: Any, cache: Any = None) -> Any:  # type: ignore[override]
        stream = stream + self.attn(stream=self.norm1(stream), positions=positions)[0]
        return stream + self.mlp(self.norm2(stream)), cache


class Passing(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(stream=x, positions=[torch.linspace(0.5, 1, 6, dtype=x.dtype)[:, None]])[0]
        return self.head(self.norm(x).mean(1))


class WholeWithArguments(Block):
    """It can only be left out as a whole, and takes and gives more than its stream."""

    def forward(self, x: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, -1)
        return x + self.attn.proj(F.scaled_dot_product_attention(q, k, v)) * scale, None


class PassingAlong(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x, _ = block(x, x.new_ones(()))
        return self.head(self.norm(x).mean(1))


def tokens() -> Tensor:
    return torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


HALVES = ["blocks.0.attn..1.attn", "blocks.0.fc2..1.fc2"]
CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "pre-norm": (lambda: Net(Block), HALVES),
    "post-norm": (lambda: Net(PostNorm), HALVES),
    "parallel": (lambda: Net(Parallel), HALVES),
    "parallel behind one norm": (lambda: Net(ParallelBehindOneNorm), HALVES),
    "scaled stream": (lambda: Net(ScaledStream), HALVES),
    "attention with a mask": (lambda: Net(WithMask), HALVES),
    "gated": (lambda: Net(Gated), HALVES),
    "mixer": (lambda: Net(Mixer), HALVES),
    "lists": (Lists, ["blocks.0.0..1.0", "blocks.0.1..1.1"]),
    "by keyword": (lambda: Passing(ByKeyword), HALVES),
    "whole, with arguments": (lambda: PassingAlong(WholeWithArguments), ["blocks.0..1"]),
    "attributes of a half": (lambda: Net(AskedForItsHeads), ["blocks.0..1"]),
    "attention inline": (lambda: Net(Inline), ["blocks.0..1"]),
    "one addition": (lambda: Net(Inverted), ["blocks.0..1"]),
}


@pytest.mark.parametrize("name", CASES)
def test_laws_hold_and_halves_are_choices_where_modules_make_them(name: str) -> None:
    torch.manual_seed(0)
    factory, runs = CASES[name]
    space = check_space(factory(), tokens()).space
    assert [choice.name for choice in space.choices if choice.kind == "depth"] == [f"{run}.depth" for run in runs]
    assert {choice.size for choice in space.choices if choice.kind == "depth"} == {2}


def test_laws_hold_for_the_halves_of_vision_transformers() -> None:
    """timm's attention takes a mask by keyword, torchvision's gives a tuple."""
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    network = timm.models.vision_transformer.VisionTransformer(**size, num_classes=5, init_values=0.1)
    space = check_space(network, x).space
    names = [choice.name for choice in space.choices if choice.kind == "depth"]
    assert names == ["blocks.0.attn..2.attn.depth", "blocks.0.mlp..2.mlp.depth"]
    assert cost.macs(space, space.smallest()) < 0.05 * cost.macs(space, space.largest())
    space = check_space(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5), x).space
    names = [choice.name.rpartition("encoder_layer_1.")[2] for choice in space.choices if choice.kind == "depth"]
    assert names == ["self_attention.depth", "mlp.depth"]


def test_every_combination_of_halves_runs_and_costs_what_it_has() -> None:
    torch.manual_seed(0)
    traced = tas.trace(Net(WithMask), tokens())
    rates = []
    for attention, feed in itertools.product(range(3), range(3)):
        a = {**traced.space.largest(), f"{HALVES[0]}.depth": attention, f"{HALVES[1]}.depth": feed}
        student: Any = tas.extract(traced, a).eval()
        wanted: Any = copy.deepcopy(traced.network).eval()
        for index, block in enumerate(wanted.blocks):
            for keep, layer in ((attention, block.attn.proj), (feed, block.fc2)):
                nn.init.zeros_(layer.weight if index >= keep else torch.empty(0))
                nn.init.zeros_(layer.bias if index >= keep else torch.empty(0))
        assert torch.equal(student(tokens()), wanted(tokens()))
        rates.append(cost.macs(traced.space, a))
        assert cost.params(traced.space, a) == sum(p.numel() for p in student.parameters())
    assert len(set(rates)) == 9


def test_what_stands_in_is_torchs_own_and_the_other_names_stay() -> None:
    traced = tas.trace(Net(WithMask), tokens())
    a = {**traced.space.largest(), f"{HALVES[0]}.depth": 1, f"{HALVES[1]}.depth": 0}
    student: Any = tas.extract(traced, a)
    gone = ("blocks.1.norm1.", "blocks.1.attn.", *(f"blocks.{i}.{m}." for i in (0, 1) for m in ("norm2", "fc1", "fc2")))
    assert set(student.state_dict()) == {k for k in traced.network.state_dict() if not k.startswith(gone)}
    block = student.blocks[1]
    kinds = [type(m) for m in (block.norm1, block.norm2, block.fc1, block.fc2)]
    assert kinds == [nn.Identity, nn.Identity, nn.Identity, nn.Threshold]
    assert isinstance(block.attn, torch.fx.GraphModule)
    assert not [m for m in student.modules() if type(m).__module__.startswith("tas")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [{}, {"alone": False}, {"argument": "x"}, {"nones": 1}])
def test_stand_ins_give_zeros_or_what_they_are_given_and_no_gradient_through_zeros(
    dtype: torch.dtype, form: dict[str, Any]
) -> None:
    x = torch.tensor([[-3.0, 0.0, 5.0, float("inf"), -float("inf")]], dtype=dtype, requires_grad=True)
    for zeros, wanted in ((True, torch.zeros_like(x)), (False, x)):
        module = stand_in(zeros, **form)
        given = module(x=x) if "argument" in form else module(x, *([1] if "alone" in form else []))
        out, *rest = given if isinstance(given, tuple) else (given,)
        assert torch.equal(out, wanted)
        assert out.dtype == dtype
        assert rest == [None] * form.get("nones", 0)
        (gradient,) = torch.autograd.grad((out + x).sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 1.0 if zeros else 2.0))


@pytest.mark.parametrize("name", ["pre-norm", "attention with a mask", "by keyword"])
def test_students_without_halves_are_saved_loaded_and_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    factory = CASES[name][0]
    traced = tas.trace(factory(), tokens())
    depths = {choice.name: 1 for choice in traced.space.choices if choice.kind == "depth"}
    student = tas.extract(traced, {**traced.space.uniform(0.7), **depths}).eval()
    exporting.save(student, tmp_path / "student")
    loaded = exporting.load(factory, tmp_path / "student")
    assert torch.equal(loaded(tokens()), student(tokens()))
    for dtype in ("float32", "float16"):
        exporting.export(loaded, tmp_path / f"{dtype}.pt2", "torch", inputs=tokens(), dtype=dtype)  # it checks outputs
    pytest.importorskip("onnxruntime")
    exporting.export(loaded, tmp_path / "student.onnx", inputs=tokens())


class TorchsOwn(nn.Module):
    """torch's layers, whose eval mode has one operator for a whole layer, for an even number of heads."""

    def __init__(self, heads: int, norm_first: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 5)
        given: dict[str, Any] = {"batch_first": True, "norm_first": norm_first}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(12, heads, 16, **given) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize(("norm_first", "run"), [(True, "layers.0..1"), (False, "layers.0.linear2..1.linear2")])
def test_torchs_own_layers_lose_what_their_eval_mode_does_not_ask_for(
    heads: int, norm_first: bool, run: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 6)
    traced = tas.trace(TorchsOwn(heads, norm_first), x)
    assert [choice.name for choice in traced.space.choices if choice.kind == "depth"] == [f"{run}.depth"]
    groups = next(choice.name for choice in traced.space.choices if choice.name.endswith("groups"))
    for depth, kept in itertools.product((0, 1), range(1, heads + 1)):
        student = tas.extract(traced, {**traced.space.largest(), f"{run}.depth": depth, groups: kept}).eval()
        exporting.save(student, tmp_path / "student")
        loaded = exporting.load(lambda: TorchsOwn(heads, norm_first), tmp_path / "student")
        with torch.no_grad():
            assert torch.equal(loaded(x), student(x))
    check_space(TorchsOwn(heads, norm_first), x)


class Padded(nn.Module):
    """torch's encoder, which in eval mode without gradients packs the tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.encoder(self.words(words), src_key_padding_mask=words == 0)
        there = (words != 0)[..., None]
        return self.head((x * there).sum(1) / there.sum(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_students_of_torchs_encoder_run_with_padding_and_without_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = torch.randint(1, 20, (4, 6))
    words[0, 4:] = 0
    traced = tas.trace(Padded(), words)
    groups = next(choice.name for choice in traced.space.choices if choice.name.endswith("groups"))
    for kept in range(1, 5):
        a = {**traced.space.largest(), groups: kept}
        exporting.save(tas.extract(traced, a), tmp_path / "student")
        students = exporting.load(Padded, tmp_path / "student"), student_at(traced, a, "merge", 0, [words]).eval()
        for student in students:
            with torch.no_grad():
                without = student(words)
            assert torch.allclose(without, student(words), atol=1e-5)
    check_space(Padded(), words)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_students_of_torchs_encoder_itself_run_with_padding() -> None:
    torch.manual_seed(0)
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 2)
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[0, 4:] = True
    inputs = {"src": torch.randn(4, 6, 8), "src_key_padding_mask": padding}
    traced = tas.trace(network, inputs)
    assert "depth" in {choice.kind for choice in traced.space.choices}
    student = tas.extract(traced, traced.space.smallest()).eval()
    with torch.no_grad():
        without = student(**inputs)
    assert torch.allclose(without[~padding], student(**inputs)[~padding], atol=1e-5)


def test_a_block_without_its_relu_goes_on_rectifying() -> None:
    """The stream in front of the first block has negative numbers, and relu stays when the branch goes."""
    traced = tas.trace(nn.Sequential(conv_bn(3, 8), Basic(8, 8), Basic(8, 8), head(8)), images())
    names = [choice.name for choice in traced.space.choices if choice.kind == "depth"]
    assert names == ["1.conv2.depth", "2.depth"]
    student: Any = tas.extract(traced, {**traced.space.largest(), names[0]: 0})
    assert student[1].eval()(torch.tensor([[[[-1.0]]], [[[1.0]]]]).expand(2, 8, 3, 3)).min() == 0


class TwoNames(nn.Module):
    """The residual block `one` lies in `both`, too; `act` is shared by blocks that are otherwise their own."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.stem, self.one = conv_bn(3, 8), Basic(8, 8)
        self.both = nn.Sequential(self.one)
        self.two = nn.Sequential(conv_bn(8, 8), act, conv_bn(8, 8))
        self.three = nn.Sequential(conv_bn(8, 8), act, conv_bn(8, 8))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(self.stem(x))
        x = x + self.two(x)
        return self.head(x + self.three(x))


def test_modules_with_a_second_name_stay() -> None:
    traced = check_space(TwoNames(), images())
    assert [choice.name for choice in traced.space.choices if choice.kind == "depth"] == ["two.depth", "three.depth"]
