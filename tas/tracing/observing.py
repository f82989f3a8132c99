"""The observed forward of a copy of the network, and what is run beside it to see whether that says all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass, tree_leaves

from tas.errors import BadNetwork
from tas.tracing.copying import copy_sharing, has_own_modes
from tas.tracing.fitness import (
    check_devices,
    check_inputs,
    check_output,
    check_repeats,
    check_steady,
    first_line,
    numbers,
    shapes,
    structure,
)
from tas.tracing.freezing import freeze_fixed
from tas.tracing.handlers import HANDLERS, unknown
from tas.tracing.lookups import EVERYTHING, MODE, noting_lookups
from tas.tracing.places import written
from tas.tracing.recording import Recorder, is_real, plain_attention
from tas.tracing.rules import Rules
from tas.tracing.undoing import buffers_unchanged, held, holds_still, parameters_unchanged, same_draws, unchanged
from tas.tracing.watching import Watching

# what dropout and drop path are made of; the counters of batch norms are sums of whole numbers
_OF_MODES = {"bernoulli", "div", "mul", "empty", "empty_like", "new_empty", "detach", "alias", "view", "copy"}


def observe(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rules: Rules,
    handlers: Mapping[str, Callable[..., None]],
) -> Recorder:
    """Run a copy of the network once, and freeze what rules protect and the outputs that no rule frees.

    Raises `BadNetwork` where network or inputs are not fit to be traced, `BadRecipe` where a rule names nothing."""
    look_into((args, kwargs))
    check_inputs(args, kwargs)
    check_devices(network, args, kwargs)
    watched = copy_sharing(network, list(network.parameters())).eval()
    before = structure(watched)
    recorder = Recorder(watched, HANDLERS, unknown, handlers)
    try:
        with noting_lookups(watched) as recorder.lookups:
            # once before: what a process keeps of a first call (index tables by size) later calls take from there
            first = _output(watched, args, kwargs)
            look_into(first)
            one, kept = numbers(first), held(watched.modules())
            seen = _Operators()
            with same_draws(network):
                output = recorder.run(args, kwargs, seen)
    except BadNetwork:
        raise
    except Exception as error:
        raise BadNetwork(
            f"the network must run on the example inputs {shapes(args, kwargs)}, got {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    check_output(output)
    check_steady(before, watched)
    recorder.written = written(network, watched)
    again = numbers(output)
    if not holds_still(kept):  # another call goes on from what this one left, the first did not
        one, again = again, numbers(_output(watched, args, kwargs))
    check_repeats(one, again)
    if recorder.unread or (_asks_for_mode(recorder) and _trains_otherwise(watched, args, kwargs, seen.counted)):
        _follow_training(recorder, args, kwargs)
    recorder.freeze_unneeded()
    freeze_fixed(recorder, rules)
    return recorder


class _Operators(Watching):
    """Counts the operators of a forward, without those that modes of norms and dropout change."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2].rstrip("_")
        out = func(*args, **(kwargs or {}))
        whole = isinstance(out, Tensor) and not is_real(out)
        if (
            name not in _OF_MODES
            and "batch_norm" not in name
            and "dropout" not in name
            and not (whole and name == "add")
        ):
            self.counted[name] += 1
        return out


def _asks_for_mode(recorder: Recorder) -> bool:
    """Whether code could do otherwise in train mode, but for torch's own layers that drop or take other statistics."""
    asked = any(not names.isdisjoint((MODE, EVERYTHING)) for names in recorder.lookups.values())
    return asked or has_own_modes(recorder.network)


def _trains_otherwise(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], counted: Counter[str]) -> bool:
    """Whether train mode runs other operators than those `counted` in eval mode: noise on latents, an auxiliary
    output. (Not where it does not run on these inputs.)"""
    with _in_train_mode(network), suppress(Exception), torch.no_grad(), plain_attention(), _Operators() as seen:
        network(*args, **kwargs)
        return seen.counted != counted
    return False


def _follow_training(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What runs in train mode only, auxiliary heads say, reads what the rest makes: one forward in that mode says what
    it needs. A network that refuses that with these inputs (a detector without targets) is not trained on them."""
    training = recorder.also()
    with _in_train_mode(recorder.network), suppress(Exception):
        training.run(args, kwargs)
    recorder.outputs += training.outputs


@contextmanager
def _in_train_mode(network: nn.Module) -> Iterator[None]:
    """In train mode, with what a forward changes put back, and the same draws."""
    with (
        buffers_unchanged(network),
        parameters_unchanged(network),
        unchanged(network.modules()),
        same_draws(network),
    ):
        network.train()
        try:
            yield
        finally:
            network.eval()  # what was put elsewhere than in its modules, or folded back into weights


def _output(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad(), plain_attention(), unchanged(network.modules()), same_draws(network):
        return network(*args, **kwargs)


def look_into(tree: Any) -> None:
    """Tell torch how to look into the dataclasses of the user's that hold inputs or outputs."""
    leaves = list(tree_leaves(tree))
    while kinds := {type(leaf) for leaf in leaves if is_dataclass(leaf) and not isinstance(leaf, nn.Module)}:
        for kind in kinds:
            register_dataclass(kind)
        leaves = list(tree_leaves(leaves))
