"""One function a law. Each raises AssertionError, with the number of the law first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from tas import cost, sampling
from tas.calibration import modes_restored
from tas.distribution import ArchitectureDistribution, Draw, Pick, one_hot
from tas.errors import Infeasible
from tas.extraction import extract
from tas.reordering import permute
from tas.space import Architecture, SearchSpace
from tas.supernet import Supernet
from tas.testing.reference import drawn_wide, independent_macs, same_noise, without_noise
from tas.tracing import Traced, as_call
from tas.tracing.leaves import tensors_of
from tas.tracing.undoing import unchanged


class Close:
    """Asserts that two outputs agree, floating point to `tolerance` of the largest number, everything else exactly."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def __call__(self, law: str, got: Any, wanted: Any) -> None:
        for a, b in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
            if not isinstance(b, Tensor):
                continue
            assert a.shape == b.shape, f"{law}: {tuple(a.shape)} instead of {tuple(b.shape)}"
            if not b.is_floating_point():
                assert torch.equal(a, b), f"{law}: whole numbers differ"
            elif b.numel():
                a, b = a.detach(), b.detach()
                scale = float(b.nan_to_num(posinf=0.0, neginf=0.0).abs().max())  # a score of -inf is never chosen
                difference = float((a - b).masked_fill(a == b, 0.0).abs().max())
                enough = difference <= self.tolerance * max(scale, 1e-3)
                assert enough, f"{law}: differs by {difference:.2e} of {scale:.2e}"


def law_1(original: nn.Module, traced: Traced, inputs: Any) -> None:
    counted, formula = independent_macs(original.eval(), inputs), cost.original(traced.space, "macs")
    assert formula == counted, f"law 1: the formula says {formula:,} MACs, an independent count {counted:,}"
    owned, formula = _owned(original), cost.original(traced.space, "params")
    assert formula == owned, f"law 1: the formula says {formula:,} parameters, the original has {owned:,}"


def law_2(traced: Traced, chosen: list[Architecture], inputs: Any) -> None:
    for architecture in chosen:
        student = extract(traced, architecture).eval()
        counted, formula = independent_macs(student, inputs), cost.macs(traced.space, architecture)
        assert formula == counted, f"law 2: {formula:,} MACs against {counted:,} at {dict(architecture)}"
        owned, formula = _owned(student), cost.params(traced.space, architecture)
        assert formula == owned, f"law 2: {formula:,} parameters against {owned:,} at {dict(architecture)}"
        layers = cost.whole("macs", sum(cost.by_layer(traced.space, architecture).values()))
        assert layers == counted, f"law 2: the layers add up to {layers:,} MACs, not {counted:,}"
        _runs_where_it_is_used(student, inputs, architecture)


def _runs_where_it_is_used(student: nn.Module, inputs: Any, architecture: Architecture) -> None:
    """In eval mode and without gradients, where torch's own layers take other operators."""
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad(), unchanged(student.modules()), same_noise():
            student(*args, **kwargs)
    except Exception as error:
        raise AssertionError(f"law 2: without gradients the student fails at {dict(architecture)}: {error}") from error


def _owned(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def law_3(original: nn.Module, traced: Traced, inputs: Any, close: Close) -> None:
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    supernet = Supernet(traced).eval()
    with same_noise():
        whole = supernet(inputs, one_hot(traced.space.original()))
    close("law 3", whole, outputs_of(original, inputs))
    train_a_little(supernet.train(), inputs, [traced.space.largest(), traced.space.smallest()])
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, before[name]), f"law 3: training a supernet changed {name} of the original"


def law_4(traced: Traced, chosen: list[Architecture], inputs: Any, close: Close, generator: torch.Generator) -> None:
    whole = tensors_of(outputs_of(traced.network, inputs))
    supernet = Supernet(traced)
    for architecture in chosen:
        output = _is_its_student(supernet, architecture, inputs, close, "law 4")
        alike = all(_same(a, b) for a, b in zip(tensors_of(output), whole, strict=True))
        if architecture == traced.space.smallest() != traced.space.largest():
            assert not alike, f"law 4 is vacuous: nothing changes at {dict(architecture)}"
    train_a_little(supernet.train(), inputs, chosen[:2])
    for architecture in chosen[:3]:
        _is_its_student(supernet, architecture, inputs, close, "law 4 after training")
    _keep_is_a_prefix_of_the_permuted(supernet.current(), chosen[min(1, len(chosen) - 1)], inputs, close, generator)


def outputs_of(network: nn.Module, inputs: Any) -> Any:
    """In eval mode, with the same random numbers, leaving nothing behind: a cache of results with gradients could not
    be copied any more."""
    args, kwargs = as_call(inputs)
    with modes_restored(network):
        network.eval()
        with unchanged(network.modules()), same_noise():
            return network(*args, **kwargs)


def _is_its_student(supernet: Supernet, architecture: Architecture, inputs: Any, close: Close, law: str) -> Any:
    """In train mode, then in eval mode with the statistics that the first left; the student's output there."""
    args, kwargs = as_call(inputs)
    for training in (True, False):
        supernet.train(training)
        student = extract(supernet, architecture)
        assert _kind(student) is _kind(supernet.network), f"{law}: the student has a class of its own"
        with same_noise():
            got = supernet(inputs, architecture)
        with same_noise():
            wanted = student(*args, **kwargs)
        close(f"{law} (training {training})", got, wanted)
        if training:
            after = dict(extract(supernet, architecture).named_buffers())
            close(f"{law} (running statistics)", after, dict(student.named_buffers()))
            close(f"{law} (gradients)", *_gradient_norms(supernet, got, student, wanted))
    return wanted


def _kind(network: nn.Module) -> type | None:
    """The class of a network; of a graph module what its class comes from: torch.fx makes one for every copy."""
    return type(network).__base__ if isinstance(network, fx.GraphModule) else type(network)


def _gradient_norms(supernet: Supernet, got: Any, student: nn.Module, wanted: Any) -> tuple[Tensor, Tensor]:
    """Of the loss by all weights: what the student does not have gets no gradient."""
    norms = []
    for network, output in ((supernet.network, got), (student, wanted)):
        weights = [p for p in network.parameters() if p.requires_grad]
        norms.append(_norm(gradients(output, weights)))
    return norms[0], norms[1]


def gradients(output: Any, weights: list[nn.Parameter]) -> list[Tensor | None]:
    loss = _square(output)
    if not weights or not loss.requires_grad:
        return [None] * len(weights)
    return [*torch.autograd.grad(loss, weights, allow_unused=True)]


def _norm(tensors: list[Tensor | None]) -> Tensor:
    return sum((t.detach().abs().square().sum() for t in tensors if t is not None), torch.zeros(())).sqrt()


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: 1e-12 of it in float64."""
    if a.shape != b.shape or not b.is_floating_point() or not b.numel():
        return a.shape == b.shape and torch.equal(a, b)
    a, b = a.detach(), b.detach()
    slack = 1e4 * torch.finfo(b.dtype).eps * float(b.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    return float((a - b).masked_fill(a == b, 0.0).abs().max()) <= slack


def _keep_is_a_prefix_of_the_permuted(
    traced: Traced, architecture: Architecture, inputs: Any, close: Close, generator: torch.Generator
) -> None:
    arrangement = orders(traced, generator)
    keep = {name: sorted(order[: traced.groups[name].kept(architecture)]) for name, order in arrangement.items()}
    arranged = {
        name: keep[name] + [u for u in range(traced.sizes[name]) if u not in keep[name]] for name in arrangement
    }
    picked = extract(traced, architecture, keep=keep)
    leading = extract(permute(traced, arranged), architecture)
    close("law 4 (keep)", outputs_of(picked, inputs), outputs_of(leading, inputs))


def orders(traced: Traced, generator: torch.Generator) -> dict[str, list[int]]:
    free = [(name, size) for name, size in traced.sizes.items() if name not in traced.ordered]
    return {name: torch.randperm(size, generator=generator).tolist() for name, size in free}


def law_5(space: SearchSpace, generator: torch.Generator) -> None:
    distribution = ArchitectureDistribution(space, generator, std=1.0).double()
    sampled = distribution.sample(generator, 10_000)
    for measure in ("macs", "params"):
        costs = cost.count(space, sampled, measure)
        expected = cost.expected(space, distribution.probabilities(), measure)
        wanted = float(expected.detach())
        error = abs(float(costs.mean()) - wanted) / (float(costs.std()) / len(costs) ** 0.5 + 1e-9)
        assert error < 5, f"law 5: expected {measure} {wanted:,.0f}, mean of samples {float(costs.mean()):,.0f}"
        (gradient,) = torch.autograd.grad(expected, distribution.logits)
        direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype) * 1e-4
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                distribution.logits.add_(sign * direction)
                sides.append(float(cost.expected(space, distribution.probabilities(), measure)))
                distribution.logits.sub_(sign * direction)
        slope, ours = (sides[0] - sides[1]) / 2, float((gradient * direction).sum())
        same = abs(slope - ours) <= 1e-9 * wanted + 1e-5 * abs(slope)
        assert same, f"law 5: gradient of {measure} {ours}, finite difference {slope}"


def law_6(original: nn.Module, traced: Traced, inputs: Any, close: Close, orders: dict[str, list[int]]) -> None:
    reordered = permute(traced, orders).network
    close("law 6", outputs_of(reordered, inputs), outputs_of(original, inputs))


def law_7(space: SearchSpace, generator: torch.Generator) -> None:
    smallest, largest = (cost.macs(space, a) for a in (space.smallest(), space.largest()))
    limits = cost.budget(space, slack=0.5, macs=(smallest + largest) // 2)  # a wide band: it is found at once
    drawn = sampling.sample_many(space, generator, 50, limits)
    assert bool(cost.feasible(space, drawn, limits).all()), "law 7: a sampled architecture exceeds the budget"
    message = ""
    try:
        cost.budget(space, macs=smallest - 1)
    except Infeasible as error:
        message = str(error)
    assert f"{smallest:,}" in message, f"law 7: below the smallest cost Infeasible must name it, got {message!r}"


def law_8(traced: Traced, chosen: list[Architecture], inputs: Any, close: Close, generator: torch.Generator) -> None:
    supernet = Supernet(traced)
    idle = set(traced.space.position)
    for training in (False, True):
        supernet.train(training)
        with without_noise(supernet.network):
            leaves, draw = _draw(traced, generator, extremes=not training)
            reference, theirs = _with_gradients(drawn_wide(supernet, traced, draw, inputs), leaves)
            with same_noise():
                fast, ours = _with_gradients(supernet(inputs, draw), leaves)
            if traced.exact:
                _reference_is_the_student(supernet, traced, chosen[1], inputs, close)
        close(f"law 8 (training {training})", fast, reference)
        scale = max((float(g.abs().max()) for g in theirs if g is not None), default=0.0)
        idle -= {name for name, g in zip(leaves, theirs, strict=True) if g is not None}  # dead units have zeros
        for name, a, b in zip(leaves, ours, theirs, strict=True):
            a, b = (torch.zeros(1) if g is None else g for g in (a, b))
            difference = float((a - b).abs().max())
            right = difference <= 1e3 * close.tolerance * scale
            assert right, f"law 8: gradient of {name} differs by {difference:.2e} of {scale:.2e}"
    assert not idle, f"law 8 is vacuous: no output depends on the weights of {sorted(idle)}"


@torch.no_grad()
def _reference_is_the_student(
    supernet: Supernet, traced: Traced, architecture: Architecture, inputs: Any, close: Close
) -> None:
    args, kwargs = as_call(inputs)
    student, wide = extract(supernet, architecture), drawn_wide(supernet, traced, one_hot(architecture), inputs)
    with same_noise():
        alone = student(*args, **kwargs)
    if traced.decisions.sized and traced.dead(architecture):  # what is left out decides nothing: outputs are left
        wide, alone = wide[0], alone[0]
    close(f"law 8 (one candidate, training {supernet.training})", wide, alone)


def _with_gradients(output: Any, leaves: Mapping[str, Tensor]) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """The tensors of an output, and the gradients of its loss; nothing of its graph is kept, a large network's fills
    the memory."""
    # what makes weights of the leaves belongs to both graphs
    found = torch.autograd.grad(_square(output), [*leaves.values()], allow_unused=True, retain_graph=True)
    return [tensor.detach() for tensor in tensors_of(output)], found


def _draw(traced: Traced, generator: torch.Generator, extremes: bool) -> tuple[dict[str, Tensor], Draw]:
    """Two candidates of every width, the extremes or random ones, and all of every depth: the leaves behind their
    weights, and the draw."""
    leaves: dict[str, Tensor] = {}
    draw = {}
    dtype = next((p.dtype for p in traced.network.parameters() if p.is_floating_point()), torch.float64)
    for choice in traced.space.choices:
        picked = torch.randperm(len(choice.candidates), generator=generator)[:2].sort().values.tolist()
        picked = [0, len(choice.candidates) - 1][: len(choice.candidates)] if extremes else picked
        values = choice.candidates if choice.kind == "depth" else tuple(choice.candidates[k] for k in picked)
        leaf = torch.randn(len(values), generator=generator, dtype=dtype).requires_grad_()
        leaves[choice.name] = leaf
        draw[choice.name] = Pick(values, leaf.softmax(0))
    return leaves, draw


def train_a_little(supernet: Supernet, inputs: Any, architectures: list[Architecture]) -> None:
    """One small step of gradient descent at each architecture."""
    weights = [p for p in supernet.weight_parameters() if p.requires_grad]
    for architecture in architectures:
        found = gradients(supernet(inputs, architecture), weights)
        step = -1e-2 / (1 + float(_norm(found)))
        with torch.no_grad():
            for weight, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    weight.add_(gradient, alpha=step)


def _square(output: Any) -> Tensor:
    return sum((t.square().sum() for t in tensors_of(output) if t.is_floating_point()), torch.zeros(()))
