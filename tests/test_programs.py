"""Exported files compute what the student computes, in their own runtime, or are not written."""

from __future__ import annotations

import copy
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import network

import tas
from tas.errors import BadNetwork, BadRecipe
from tas.exporting import Mismatch, formats, programs
from tas.exporting.norms import fold_norms


@pytest.fixture
def student() -> nn.Module:
    """With a block removed and widths cut."""
    traced = tas.trace(network(), torch.randn(2, 1, 8, 8))
    return tas.extract(traced, traced.space.uniform(0.5))


def images(count: int = 5, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(3))


class Small(nn.Module):
    """One layer, so that an export takes a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def small() -> nn.Module:
    torch.manual_seed(0)
    net = Small().eval()
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    nn.init.uniform_(net.norm.running_mean, -1, 1)
    return net


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fold": True, "opset": 18}, {"dtype": "float16"}], ids=str)
def test_an_onnx_file_is_whole_runs_at_any_batch_and_agrees(
    student: nn.Module, tmp_path: Path, options: dict[str, Any]
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "student.onnx"
    found = tas.export(student, path, inputs=images(), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["student.onnx"]  # no second file with the weights
    assert found.bytes == path.stat().st_size
    opset = next(entry.version for entry in onnx.load(path).opset_import if entry.domain == "")
    assert found.opset == opset == options.get("opset", 20)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [slot.shape[0] for slot in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    for count in (1, 3, 9):
        x = images(count)
        (ours,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            apart = (torch.from_numpy(ours) - student(x)).abs().max()
        assert apart <= found.allowed
    assert found.largest_difference <= found.allowed
    assert found.folded == (7 if options.get("fold") else 0)


@pytest.mark.slow
def test_an_attention_student_becomes_onnx(tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = tas.export(layer, tmp_path / "a.onnx", inputs=torch.randn(3, 5, 8))
    symbols = {size.dim_param for value in onnx.load(found.path).graph.value_info for size in formats._sizes(value)}
    assert "batch" in symbols
    assert not any(re.search(r"s\d+", symbol) for symbol in symbols)
    assert found.largest_difference <= found.allowed


def test_a_torch_program_agrees_at_other_batches_and_needs_no_code(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "new" / "student.pt2"
    before = copy.deepcopy(net.state_dict())
    found = tas.export(net, path, "torch", inputs=images(5, 3), fold=True, channels_last=True)
    assert (found.folded, found.opset, found.images) == (1, None, 5)
    program = formats.torch_runtime(path)
    with torch.no_grad():
        for count in (1, 7):
            assert (program(images(count, 3)) - net(images(count, 3))).abs().max() <= found.allowed
    weights = [value for value in program.state_dict().values() if value.dim() == 4]
    assert weights
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.skipif(
    torch.__version__.startswith("2.8."),
    reason="torch 2.8 cannot free the batch of inputs that a wrapper takes by name",
)
def test_half_precision_keeps_the_type_of_inputs_and_outputs(tmp_path: Path) -> None:
    found = tas.export(small(), tmp_path / "h.pt2", "torch", inputs={"x": images(5, 3)}, dtype="bfloat16")
    program = formats.torch_runtime(tmp_path / "h.pt2")
    assert program(x=images(2, 3)).dtype == torch.float32
    assert {value.dtype for value in program.parameters()} == {torch.bfloat16}
    assert 0 < found.largest_difference <= found.allowed


@pytest.mark.parametrize("wrong", [lambda y: y + 0.01, lambda y: y * float("nan"), lambda y: y[:, :2]])
def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    path, net = tmp_path / "student.pt2", small()
    path.write_text("an earlier export")
    monkeypatch.setattr(formats, "program", lambda *_: None)
    monkeypatch.setattr(formats, "write_torch", lambda _, part: part.write_text("half") and None)
    monkeypatch.setattr(formats, "torch_runtime", lambda _: lambda *args: wrong(net(*args)))
    with pytest.raises(Mismatch):
        tas.export(net, path, "torch", inputs=images(5, 3))
    assert path.read_text() == "an earlier export"
    assert [file.name for file in tmp_path.iterdir()] == ["student.pt2"]


def test_the_difference_is_the_largest_over_outputs_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "program", lambda *_: None)
    monkeypatch.setattr(formats, "write_torch", lambda _, part: part.write_text("program") and None)
    monkeypatch.setattr(formats, "torch_runtime", lambda _: lambda x: [2 * x, x + (0.25 if len(x) == 1 else 0.125)])

    class Two(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [2 * x, x]

    x = torch.tensor([[1.0], [-4.0]])
    found = tas.export(Two(), tmp_path / "a.pt2", "torch", inputs=x, tolerance=0.5)
    assert (found.largest_difference, found.allowed) == (0.25, 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "onnx or torch, got 'tflite'"),
        ({"dtype": "int8"}, "float32, float16, bfloat16, got 'int8'"),
        ({"format": "onnx", "channels_last": True}, "ONNX has none"),
        ({"format": "onnx", "dtype": "bfloat16"}, "cannot run convolutions in bfloat16"),
        ({"format": "onnx"}, "ends in .onnx"),
        ({"inputs": torch.randn(1, 3, 8, 8)}, "2 or more examples to be checked on, got 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"path": tmp_path / "a.pt2", "format": "torch", "inputs": images(5, 3), **options}
    with pytest.raises(BadRecipe, match=message):
        tas.export(small(), **given)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_and_an_unwritable_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    with pytest.raises(BadRecipe, match=r"needs onnxruntime; install the extra: pip install 'tas\[onnx\]'"):
        tas.export(small(), tmp_path / "a.onnx", inputs=images(5, 3))
    (tmp_path / "file").touch()
    with pytest.raises(BadRecipe, match="cannot write an export"):
        tas.export(small(), tmp_path / "file" / "a.pt2", "torch", inputs=images(5, 3))


def test_a_network_that_torch_cannot_follow_is_refused_with_its_reason(tmp_path: Path) -> None:
    class FixedBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(5, -1)

    with pytest.raises(BadNetwork, match="export with a fixed batch"):
        tas.export(FixedBatch(), tmp_path / "a.pt2", "torch", inputs=images(5, 3))
    assert not list(tmp_path.iterdir())
    found = tas.export(FixedBatch(), tmp_path / "a.pt2", "torch", inputs=images(5, 3), dynamic_batch=False)
    assert found.largest_difference == 0


class Mixed(nn.Module):
    """Norms that can be folded (four), one whose layer is read by somebody else too, and one after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.depthwise, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4, affine=False)
        self.shared, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.up, self.norm3 = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.sum_norm = nn.BatchNorm2d(6)
        self.linear, self.norm4 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.depthwise(self.norm(self.conv(x)).relu()))
        y = self.shared(x)
        x = self.norm3(self.up(self.norm2(y) + y))
        return self.norm4(self.linear(self.sum_norm(x + 1).mean((2, 3))))


def test_norms_fold_into_the_layers_before_them_and_nowhere_else() -> None:
    torch.manual_seed(0)
    net, x = Mixed(), images(6, 3)
    for _ in range(3):
        net(x)  # statistics that are not the initial ones
    net.eval()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        wanted = net(x)
        folded = fold_norms(net, (x,), {})
        assert sorted(folded) == ["norm", "norm1", "norm3", "norm4"]
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-4)
    assert isinstance(net.norm2, nn.BatchNorm2d)
    assert isinstance(net.sum_norm, nn.BatchNorm2d)
    assert isinstance(net.norm, nn.Identity)


@pytest.mark.slow
def test_an_opset_that_torch_cannot_convert_to_is_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disabled = logging.root.manager.disable
    with pytest.raises(BadNetwork, match="at opset 18 and cannot convert it to 5: ask for 18"):
        tas.export(small(), tmp_path / "student.onnx", inputs=images(5, 3), opset=5)
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err
    assert logging.root.manager.disable == disabled
