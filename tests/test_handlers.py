"""Operators of the user's own: what reaches them is kept, unless a handler says where channels go."""

from typing import Any

import pytest
import torch
from adversarial import Net, conv_bn, head, images
from torch import Tensor

import tas
from tas.testing import check_space
from tas.tracing.recording import Recorder


@torch.library.custom_op("tastest::swap_halves", mutates_args=())
def swap_halves(x: Tensor, scale: Tensor) -> Tensor:
    """The two halves of the channels change places; all are multiplied by `scale` [channels]."""
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], x[:, :half]], 1) * scale[None, :, None, None]


@torch.library.custom_op("tastest::softmax", mutates_args=())
def softmax(x: Tensor) -> Tensor:
    """Another thing than torch's operator of that name."""
    return x.flip(1) * 2


def _saved(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors
    half = x.shape[1] // 2
    scaled = gradient * scale[None, :, None, None]
    swapped = torch.cat([x[:, x.shape[1] - half :], x[:, : x.shape[1] - half]], 1)
    return torch.cat([scaled[:, half:], scaled[:, :half]], 1), (gradient * swapped).sum((0, 2, 3))


swap_halves.register_autograd(_backward, setup_context=_saved)
softmax.register_autograd(lambda ctx, gradient: gradient.flip(1) * 2)


def swapping() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.b(swap_halves(m.a(x).relu(), m.scale)).relu())

    return Net(run, a=conv_bn(3, 12), scale=torch.nn.Parameter(torch.rand(12)), b=conv_bn(12, 8), h=head(8))


def handler(recorder: Recorder, out: Tensor, x: Tensor, scale: Tensor) -> None:
    """A unit is one channel of the first half together with one of the second: they stay neighbours in the order."""
    rows, scales = recorder.rows(x), recorder.rows(scale)[0]
    half = x.shape[1] // 2
    if rows[1] is not None:
        recorder.unify(rows[1][:half], rows[1][half:])
        recorder.unify(rows[1], scales)
    recorder.put(out, rows)


def choices(traced: tas.Traced) -> dict[str, int]:
    return {choice.name: choice.size for choice in traced.space.choices}


def test_without_a_handler_what_reaches_the_operator_is_kept_and_the_reason_names_the_place() -> None:
    traced = check_space(swapping(), images(), architectures=1)
    assert choices(traced) == {"b.0": 8}
    line = swapping().run.__code__.co_firstlineno + 1
    (reason,) = (kept.reason for kept in traced.space.kept if kept.name == "a.0.weight[0]")
    told = f"tas has no handler for swap_halves: swap_halves in the network (test_handlers.py:{line})"
    assert reason == told


@pytest.mark.parametrize("name", ["swap_halves", "tastest::swap_halves"])
def test_with_a_handler_it_is_searched_and_obeys_the_laws(name: str) -> None:
    traced = check_space(swapping(), images(), architectures=1, handlers={name: handler})
    assert choices(traced) == {"scale": 6, "b.0": 8}  # six pairs of channels
    student = tas.extract(traced, {"scale": 2, "b.0": 8})
    assert student.scale.shape == (4,)


def test_the_handler_of_another_namespace_is_not_taken() -> None:
    found = tas.trace(swapping(), images(), handlers={"other::swap_halves": handler})
    assert choices(found) == {"b.0": 8}


def test_an_operator_that_is_named_like_one_of_torch_is_not_taken_for_it() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.b(softmax(m.a(x).relu())).relu())

    network = Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8))
    traced = check_space(network, images(), architectures=1)
    assert choices(traced) == {"b.0": 8}
    assert any("tas has no handler for softmax" in kept.reason for kept in traced.space.kept)


def test_a_wrong_handler_fails_the_laws_or_is_not_believed() -> None:
    def wrong(recorder: Recorder, out: Tensor, x: Tensor, scale: Tensor) -> None:
        recorder.unify(recorder.rows(x)[1], recorder.rows(scale)[0])
        recorder.put(out, recorder.rows(x))

    with pytest.raises(AssertionError, match="law"):
        check_space(swapping(), images(), handlers={"swap_halves": wrong})
