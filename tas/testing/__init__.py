"""The laws that hold for every network: `check_space` asserts them, for the user's own network as for ours.

1 the cost of the largest architecture equals an independent count of the original
2 the costs of an architecture equal the independent counts of its student
3 the supernet at the largest architecture is the original, which stays bit-identical
4 the supernet at an architecture is its student, before and after training steps, in outputs, running statistics and
  gradients of the weights
5 the expected cost is the mean cost of sampled architectures, with the right gradient
6 reordering changes nothing
7 sampled architectures meet the budget; an infeasible budget raises
8 a draw of several candidates equals a slow reference at full width, outputs and gradients; at a draw of one candidate
  that reference is the student (where no operator mixes channels other than by a sum: the space's `notes` name those
  that do, and the reference then has the width of the widest candidates)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tas.calibration import modes_restored
from tas.errors import BadNetwork
from tas.space import Architecture, SearchSpace
from tas.supernet import without_checkpointing
from tas.testing import laws
from tas.testing.reference import randomize, same_noise
from tas.tracing import Rules, Traced, as_call, trace
from tas.tracing.copying import copy_sharing
from tas.tracing.dynamic import decisions_of, hold
from tas.tracing.fitness import first_line
from tas.tracing.observing import look_into
from tas.tracing.undoing import parameters_unchanged, unchanged
from tas.tracing.watching import Watching

__all__ = ["check_space", "randomize"]

_IN_FLOAT32 = "float32 (dtype=torch.float32, tolerance=1e-4)"
_DRAWS = 20  # of random weights, until some output is not 0


def check_space(
    network: nn.Module,
    example_inputs: Any,
    rules: Rules | None = None,
    architectures: int = 3,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-9,
    seed: int = 0,
    handlers: Mapping[str, Callable[..., None]] | None = None,
) -> Traced:
    """Assert the laws for a network on example inputs (batch of 2 or more); AssertionError names the law.

    Where sizes follow from data (a detector keeps any number of boxes), all networks take the decisions that the
    original takes on these inputs (`tas.tracing.dynamic`): which boxes, in which order. Compared are then the
    detections, or in train mode the losses, together with the numbers that were decided on, such as all class scores;
    with another number of boxes, costs could not be compared. Train mode needs targets beside the pictures.

    Checked at the smallest architecture, `architectures` random ones and as many with one choice alone at its smallest.
    Parameters and buffers of a copy are made random first, since zero-initialised branches would let laws pass that do
    not hold. `tolerance` is relative to the largest number of an output; a network that computes in another precision
    inside (norms that cast to float32) is held to 100 times the rounding of that; BadNetwork where it gives NaN or
    nothing but zeros, or cannot be trained on these inputs. Noise of the forward in train mode (dropout, drop path) has
    to come from torch's global generator. `rules` and `handlers` as in `trace`. Returns the trace of that copy.
    """
    generator = torch.Generator().manual_seed(seed)
    look_into(example_inputs)
    inputs = tree_map(lambda x: _as(x, dtype) if isinstance(x, Tensor) else x, example_inputs)
    original = _at_random(network, inputs, dtype, generator)
    try:
        traced = trace(original, inputs, rules, handlers)
    except BadNetwork as error:
        if dtype == torch.float64 and not _runs(original, inputs) and _runs(network, example_inputs):
            raise BadNetwork(f"{error}; as it was given it runs: check it in {_IN_FLOAT32}") from error
        raise
    _require_numbers(original, traced.space, inputs, dtype)
    _require_trainable(original, inputs)
    chosen = _architectures(traced.space, architectures, generator)
    close = laws.Close(max(tolerance, 100 * _rounding(original, inputs)))
    release = _under_one_decision(original, traced, inputs)
    laws.law_1(original, traced, inputs)
    laws.law_2(traced, chosen, inputs)
    laws.law_3(original, traced, inputs, close)
    laws.law_4(traced, chosen, inputs, close, generator)
    if traced.space.choices:
        laws.law_5(traced.space, generator)
        laws.law_7(traced.space, generator)
        laws.law_8(traced, chosen, inputs, close, generator)
    orders = laws.orders(traced, generator)
    try:
        laws.law_6(original, traced, inputs, close, orders)
        release()
    except AssertionError:  # decisions about channels come in the order of these: then each takes its own
        release()
        laws.law_6(original, traced, inputs, close, orders)
    return traced


def _runs(network: nn.Module, inputs: Any) -> bool:
    with suppress(Exception), torch.no_grad():
        laws.outputs_of(copy_sharing(network, list(network.parameters())), inputs)
        return True
    return False


def _at_random(network: nn.Module, inputs: Any, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    """A copy with random weights. Others where all outputs are 0, as they may be behind a last ReLU: nothing that is
    left out would then be missed."""
    for _ in range(_DRAWS):
        drawn = copy_sharing(network)._apply(lambda t: _as(t, dtype))
        randomize(drawn, generator)
        zero = False
        with suppress(Exception), modes_restored(drawn), torch.no_grad():  # the trace says why it does not run
            zero = _all_zero(laws.outputs_of(drawn, inputs))
        if not zero:
            break
    return drawn


def _all_zero(outputs: Any) -> bool:
    tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.numel()]
    return bool(tensors) and not any(bool(x.any()) for x in tensors)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In this precision: complex numbers stay complex, whole ones whole."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _under_one_decision(original: nn.Module, traced: Traced, inputs: Any) -> Callable[[], None]:
    """Where sizes follow from data, let the original, the supernet and all students take the original's decisions."""
    if not traced.decisions.sized:
        return lambda: None
    args, kwargs = as_call(inputs)
    training = decisions_of(copy_sharing(original).train(), args, kwargs)
    ends = [hold(network, {False: traced.decisions, True: training}) for network in (original, traced.network)]

    def release() -> None:
        for end in ends:
            end()

    return release


def _require_numbers(network: nn.Module, space: SearchSpace, inputs: Any, dtype: torch.dtype) -> None:
    """BadNetwork where outputs are NaN, or all 0: nothing could then be compared. (CANINE multiplies a mask in float32
    by the least number of float64, which is infinite there.)"""
    outputs = tree_leaves(laws.outputs_of(network, inputs))
    if space.choices and _all_zero(outputs):
        raise BadNetwork(
            f"the laws need outputs that tell networks apart, with {_DRAWS} draws of random weights all of them are 0 "
            "(behind a last ReLU?): check it with another seed, or on other example inputs"
        )
    if any(isinstance(x, Tensor) and x.is_floating_point() and bool(x.isnan().any()) for x in outputs):
        other = _IN_FLOAT32 if dtype == torch.float64 else "other example inputs"
        raise BadNetwork(
            f"the laws need outputs that are numbers, with random weights in {str(dtype).removeprefix('torch.')} the "
            f"network gives NaN: check it in {other}"
        )


def _require_trainable(network: nn.Module, inputs: Any) -> None:
    """BadNetwork where the network itself, without anything of ours, raises in train mode or in its backward."""
    alone, (args, kwargs) = copy_sharing(network, list(network.parameters())).train(), as_call(inputs)
    step, mend = "forward", "give example inputs that it can be trained on, with targets say"
    try:
        with parameters_unchanged(alone), same_noise(), without_checkpointing():
            output = alone(*args, **kwargs)
        step, mend = "backward", "mend that first; a tensor may be changed in place that the backward needs"
        laws.gradients(output, [p for p in alone.parameters() if p.requires_grad])
    except BadNetwork:
        raise
    except Exception as error:
        raise BadNetwork(
            f"the laws train the network, the original itself raises {type(error).__name__} in a {step} of train mode: "
            f"{first_line(error)}; {mend}"
        ) from error


class _Precisions(Watching):
    """Notes the coarsest rounding among the real numbers that a network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.rounding = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.is_floating_point() and args[0].is_floating_point():
            self.rounding = max(self.rounding, torch.finfo(out.dtype).eps)
        return out


def _rounding(network: nn.Module, inputs: Any) -> float:
    args, kwargs = as_call(inputs)
    with modes_restored(network), torch.no_grad():
        network.eval()
        with unchanged(network.modules()), _Precisions() as noted:
            network(*args, **kwargs)
    return noted.rounding


def _architectures(space: SearchSpace, count: int, generator: torch.Generator) -> list[Architecture]:
    """The smallest, then in turn a random one and the largest with one choice at its smallest."""
    chosen = [space.smallest()]
    for _ in range(count if space.choices else 0):
        chosen.append(space.architecture([_integer(len(c.candidates), generator) for c in space.choices]))
        alone = space.choices[_integer(len(space.choices), generator)]
        chosen.append(Architecture.of({**space.largest(), alone.name: alone.candidates[0]}))
    return chosen


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
