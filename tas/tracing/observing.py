"""The one observed forward: what a network and its example inputs must be like, and the user's rules of what stays."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import register_dataclass, tree_leaves

from tas.errors import BadNetwork, BadRecipe
from tas.tracing.copying import copy_sharing
from tas.tracing.identity import Rows
from tas.tracing.operators import HANDLERS, unknown
from tas.tracing.places import written
from tas.tracing.recording import Recorder, plain_attention
from tas.tracing.rules import Rules, inside, matches, require_match
from tas.tracing.undoing import buffers_unchanged, same_draws, unchanged
from tas.tracing.watching import Watching

# what dropout, drop path and the counters of batch norms are made of
_OF_MODES = {"bernoulli", "div", "mul", "empty", "empty_like", "new_empty", "add", "detach", "alias", "view", "copy"}


def require_module(network: Any) -> None:
    """`BadNetwork` for anything but an instance of a module, and where one inside runs its modules by itself."""
    if not isinstance(network, nn.Module):
        what = f"the class {network.__name__}: call it" if isinstance(network, type) else f"a {type(network).__name__}"
        raise BadNetwork(f"a network is an instance of torch.nn.Module, got {what}")
    for name, module in network.named_modules():
        place = f"module {name!r}" if name else "the network"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise BadNetwork(
                f"a network is traced without what spreads it over devices, {place} is a {type(module).__name__}: "
                f"put what that wraps in its place, network{'.' if name else ''}{name}.module"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise BadNetwork(
                f"a network is followed through its Python code, {place} is a program of torch.jit.script or "
                "torch.jit.trace: use the module that it was made of"
            )


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
    _check_inputs(args, kwargs)
    check_devices(network, args, kwargs)
    watched = copy_sharing(network, list(network.parameters())).eval()
    before = _structure(watched)
    recorder = Recorder(watched, HANDLERS, unknown, handlers)
    try:
        # once before: what a process keeps of a first call (index tables by window size) later calls take from there
        look_into(_output(watched, args, kwargs))
        with same_draws(network):
            output = recorder.run(args, kwargs)
    except Exception as error:
        if isinstance(error, BadNetwork):
            raise
        raise BadNetwork(
            f"the network must run on the example inputs {_shapes(args, kwargs)}, got {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not _numbers(output):
        raise BadNetwork(
            f"the network must give tensors, alone or in tuples, lists, dicts and dataclasses; got {_kind(output)}"
        )
    _check_steady(before, watched)
    recorder.written = written(network, watched)
    with _Operators() as seen:
        again = _output(watched, args, kwargs)
    _check_repeats(output, again)
    if recorder.unread or _trains_otherwise(watched, args, kwargs, seen.counted):
        _follow_training(recorder, args, kwargs)
    recorder.freeze_unneeded()
    _keep_constants(recorder)
    _protect(recorder, rules)
    _keep_outputs(recorder, rules)
    return recorder


class _Operators(Watching):
    """Counts the operators of a forward, without those that modes of norms and dropout change."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2].rstrip("_")
        if name not in _OF_MODES and "batch_norm" not in name and "dropout" not in name:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def _trains_otherwise(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], counted: Counter[str]) -> bool:
    """Whether train mode runs other operators than those `counted` in eval mode: noise on latents, an auxiliary
    output. (Not where it does not run on these inputs.)"""
    with _in_mode(network, True), suppress(Exception), torch.no_grad(), plain_attention(), _Operators() as seen:
        network(*args, **kwargs)
        return seen.counted != counted
    return False


def _follow_training(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What runs in train mode only, auxiliary heads say, reads what the rest makes: one forward in that mode says what
    it needs. A network that refuses that with these inputs (a detector without targets) is not trained on them."""
    training = recorder.also()
    with _in_mode(recorder.network, True), suppress(Exception):
        training.run(args, kwargs)
    recorder.outputs += training.outputs


@contextmanager
def _in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """In train or eval mode, with what a forward changes put back, and the same draws."""
    with buffers_unchanged(network), unchanged(network.modules()), same_draws(network):
        network.train(training)
        yield


# -- network and inputs ------------------------------------------------------------------------------------------------


def copied(network: nn.Module) -> nn.Module:
    """A deep copy; `BadNetwork` where none can be made: a lazy module, a kept result with gradients, a lock, a file."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise BadNetwork(
                f"{name!r} has no shape yet (a lazy module): run the network once on an example before it is traced"
            )
    try:
        return copy_sharing(network)
    except Exception as error:
        raise BadNetwork(f"the network must be such that it can be copied, got: {first_line(error)}") from error


def _check_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    tensors = _tensors((args, dict(kwargs)))
    if not tensors:
        raise BadNetwork(f"example inputs must hold a tensor, got {_shapes(args, kwargs) or 'nothing'}")
    first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
    if first is not None and first.dim() and first.shape[0] < 2:
        raise BadNetwork(
            f"example inputs need a batch of 2 or more (the first dimension of the first tensor), got "
            f"{tuple(first.shape)}: a batch of 1 cannot be told from a size of 1"
        )


def check_devices(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """`BadNetwork` unless network and inputs lie on one device, which holds numbers."""
    ours = {tensor.device for tensor in (*network.parameters(), *network.buffers())}
    theirs = {tensor.device for tensor in _tensors((args, dict(kwargs)))}
    if any(device.type == "meta" for device in ours | theirs):
        raise BadNetwork("tensors on the meta device hold no numbers: give the network and its inputs on a real device")
    if len(ours) == len(theirs) == 1 and ours != theirs:
        raise BadNetwork(
            f"the network lies on {_only(ours)}, the example inputs on {_only(theirs)}: move one of them to the other"
        )


def _structure(network: nn.Module) -> dict[str, object]:
    """The very modules and parameters, by name."""
    modules = {f"module {name!r}": module for name, module in network.named_modules(remove_duplicate=False)}
    parameters = network.named_parameters(remove_duplicate=False)
    return modules | {f"parameter {name!r}": parameter for name, parameter in parameters}


def _check_steady(before: Mapping[str, object], network: nn.Module) -> None:
    after = _structure(network)
    changed = [key for key in {**before, **after} if before.get(key) is not after.get(key)]
    if changed:
        raise BadNetwork(
            f"a forward must leave the network's modules and parameters as they are, it changed {changed[0]}"
            + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            + ": where layers are built on first use, run the network once before it is traced"
        )


def _check_repeats(output: Any, again: Any) -> None:
    """What torch's global generators draw is the same in a second call; what others draw is not."""
    for a, b in zip(_numbers(output), _numbers(again), strict=False):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * _largest(b), equal_nan=True):
            raise BadNetwork(
                "the network must give the same output for the same input in eval mode, two runs differ: does its "
                "forward draw random numbers outside torch, or keep something from earlier calls?"
            )


def _output(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad(), plain_attention(), unchanged(network.modules()), same_draws(network):
        return network(*args, **kwargs)


def _largest(tensor: Tensor) -> float:
    finite = tensor[torch.isfinite(tensor)] if tensor.numel() else tensor
    return float(finite.abs().max()) if finite.numel() else 0.0


def _numbers(output: Any) -> list[Tensor]:
    return [t.detach().to(torch.float64) for t in _tensors(output) if not t.is_quantized and not t.is_complex()] or [
        torch.view_as_real(t.resolve_conj()).to(torch.float64) if t.is_complex() else t.dequantize()
        for t in _tensors(output)
    ]


# -- rules about what stays --------------------------------------------------------------------------------------------


def _protect(recorder: Recorder, rules: Rules) -> None:
    modules = [name for name, _ in recorder.network.named_modules() if name]
    require_match("protect", rules.protect, modules)
    for name, rows in recorder.tensors.items():
        owner = name.rpartition(".")[0]
        if inside(owner, rules.protect):
            for part in rows:
                recorder.identities.freeze(part, f"a rule protects {owner}")


def _keep_constants(recorder: Recorder) -> None:
    """What buffers hold and no parameter makes, a table of coordinates say, is no size that anybody would search."""
    parameters = dict(recorder.network.named_parameters(remove_duplicate=False))
    made = np.zeros(recorder.identities.capacity, bool)  # by atom
    for atoms in _makers(recorder, parameters).values():
        made[atoms] = True
    for name in recorder.tensors.keys() - parameters.keys():
        for part in map(recorder.identities.canonical, recorder.tensors[name]):
            if part is not None:
                why = f"{name} holds it, and no parameter makes it"
                recorder.identities.freeze(np.where(made[part], 0, part), why)


def _keep_outputs(recorder: Recorder, rules: Rules) -> None:
    """Outputs keep their sizes, but for those made by a layer that `rules.free` names."""
    identities = recorder.identities
    makers = _makers(recorder, recorder.tensors)
    found = [(path, identities.canonical(part)) for path, value in recorder.outputs for part in value.rows]
    out = np.zeros(identities.capacity, bool)  # by atom
    for _, part in found:
        if part is not None:
            out[part[part > 0]] = True
    made = {name: theirs[out[theirs]] for name, theirs in makers.items()}
    named = [name for name, theirs in made.items() if len(theirs)]
    require_match("free", rules.free, named)
    both = [name for name in named if matches(name, rules.free) and rules.fixes(name)]
    if both:
        raise BadRecipe(f"space.fix and space.free contradict each other about {both[0]!r}: name it in one of them")
    free = np.unique(np.concatenate([made[n] for n in named if matches(n, rules.free)] or [np.zeros(0, int)]))
    for path, part in found:
        if part is not None:
            where = f" ({'output' if path.startswith('[') else ''}{path})" if path else ""
            identities.freeze(np.where(np.isin(part, free), 0, part), f"it is an output of the network{where}")
    for _, value in recorder.outputs:
        if any(part is not None and np.isin(part, free).any() for part in map(identities.canonical, value.rows)):
            recorder.freed.append(value)
            recorder.ordered += [part for part in value.rows if part is not None]  # outputs change no places
            recorder.mark_inexact("an output is as wide as a choice, by a rule")


def _makers(recorder: Recorder, tensors: Iterable[str]) -> dict[str, np.ndarray]:
    """By layer, the identities of the channels that it makes: those that these of its parameters and buffers scale, as
    rows and bias or as gamma and beta; a parameter that makes none by itself under its own name."""
    sites = {site for record in recorder.records for site in record.scales}
    scaling = {name for name, _ in sites}
    found: dict[str, list[np.ndarray]] = {}

    def add(name: str, rows: Rows) -> None:
        known = recorder.identities.canonical(rows)
        if known is not None:
            found.setdefault(name, []).append(known[known > 0])

    for name in tensors:
        dims = recorder.tensors.get(name, ())
        for dim, rows in enumerate(dims):
            if (name, dim) in sites:
                add(name.rpartition(".")[0] or name, rows)
        if name not in scaling:
            for rows in dims:
                add(name, rows)
    return {name: np.unique(np.concatenate(parts)) for name, parts in found.items()}


# -- words -------------------------------------------------------------------------------------------------------------


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _only(devices: set[torch.device]) -> str:
    return str(next(iter(devices)))


def _kind(output: Any) -> str:
    return type(output).__name__ if not isinstance(output, (tuple, list, dict)) else repr(copy.copy(output))[:60]


def look_into(tree: Any) -> None:
    """Tell torch how to look into the dataclasses of the user's that hold inputs or outputs."""
    leaves = list(tree_leaves(tree))
    while kinds := {type(leaf) for leaf in leaves if is_dataclass(leaf) and not isinstance(leaf, nn.Module)}:
        for kind in kinds:
            register_dataclass(kind)
        leaves = list(tree_leaves(leaves))


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    named = [*(("", a) for a in args), *((f"{k}=", v) for k, v in kwargs.items())]
    return ", ".join(f"{k}{_shape(a)}" for k, a in named)


def _shape(value: Any) -> str:
    """Tensors by their shape, in containers too: a detector's pictures and targets are lists of them."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shape, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shape(part)}' for key, part in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
        return f"{type(value).__name__}({', '.join(f'{key}={_shape(part)}' for key, part in parts)})"
    return repr(value)


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
