"""The laws that hold for every network: `check_space` asserts them, for the user's own network as for ours.

1 the cost of the largest architecture equals an independent count of the original
2 the costs of an architecture equal the independent counts of its student
3 the supernet at the largest architecture is the original, which stays bit-identical
4 the supernet at an architecture is its student, before and after training steps
5 the expected cost is the mean cost of sampled architectures, with the right gradient
6 reordering changes nothing
7 sampled architectures meet the budget; an infeasible budget raises
8 a draw of several candidates equals a slow full-width reference, outputs and gradients (where no operator mixes
  channels other than by a sum: the space's `notes` name those that do)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from tas import cost, sampling
from tas.distribution import ArchitectureDistribution, Draw, Pick
from tas.errors import Infeasible
from tas.extraction import extract
from tas.reordering import permute
from tas.space import Architecture, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Rules, Traced, as_call, trace


def check_space(
    network: nn.Module,
    example_inputs: Any,
    rules: Rules | None = None,
    architectures: int = 3,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Traced:
    """Assert the laws for a network on example inputs (batch of 2 or more); AssertionError names the law.

    Checked at the smallest architecture, `architectures` random ones and as many with one choice alone at its
    smallest. Parameters and buffers of a copy are made random first, since zero-initialised branches would let laws
    pass that do not hold. Returns the trace of that copy.
    """
    generator = torch.Generator().manual_seed(seed)
    original = copy.deepcopy(network).to(dtype)
    randomize(original, generator)
    inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, example_inputs)
    traced = trace(original, inputs, rules)
    chosen = _architectures(traced.space, architectures, generator)
    close = _Close(tolerance)
    _law_1(original, traced, inputs)
    _law_2(traced, chosen, inputs)
    _law_3(original, traced, inputs, close)
    _law_4(traced, chosen, inputs, close, generator)
    if traced.space.choices:
        _law_5(traced.space, generator)
        _law_7(traced.space, generator)
        if not traced.space.notes:  # the reference's norms would see all channels, the supernet's the drawn ones
            _law_8(traced, inputs, close, generator)
    _law_6(original, traced, inputs, close, generator)
    return traced


def randomize(network: nn.Module, generator: torch.Generator) -> None:
    """Scales in [0.5, 1.5], variances alike, everything else small noise beside what is there; in place."""
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            positive = name.endswith(("running_var", "weight")) and tensor.dim() == 1
            if positive or name.endswith(("gamma", "layer_scale", "scale")):
                tensor.copy_(0.5 + noise)
            elif tensor.dim() == 1:
                tensor.copy_((noise - 0.5) * 0.4)
            elif tensor.std() == 0 or tensor.dim() == 0:
                tensor.add_((noise - 0.5) * 0.4)


def independent_macs(network: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one example by torch's FlopCounterMode, in a forward with gradients on and the plain
    attention kernel (without either it misses attention products and fused encoders)."""
    args, kwargs = as_call(inputs)
    batch = next(x.shape[0] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(*args, **kwargs)
    return counter.get_total_flops() // 2 // batch


class _Close:
    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def __call__(self, law: str, got: Any, wanted: Any) -> None:
        pairs = zip(tree_leaves(got), tree_leaves(wanted), strict=True)
        for a, b in pairs:
            if isinstance(b, Tensor) and b.is_floating_point():
                scale = float(b.detach().abs().max()) if b.numel() else 0.0
                difference = float((a - b).detach().abs().max()) if b.numel() else 0.0
                assert difference <= self.tolerance * max(scale, 1e-3), (
                    f"{law}: differs by {difference:.2e} of {scale:.2e}"
                )


def _architectures(space: SearchSpace, count: int, generator: torch.Generator) -> list[Architecture]:
    chosen = [space.smallest()]
    largest = space.indices(space.largest())
    for _ in range(count if space.choices else 0):
        chosen.append(space.architecture([_integer(len(c.candidates), generator) for c in space.choices]))
        alone = list(largest)
        alone[_integer(len(alone), generator)] = 0
        chosen.append(space.architecture(alone))
    return chosen


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def _law_1(original: nn.Module, traced: Traced, inputs: Any) -> None:
    counted, formula = independent_macs(original.eval(), inputs), cost.macs(traced.space, traced.space.largest())
    assert formula == counted, f"law 1: the formula says {formula:,} MACs, an independent count {counted:,}"


def _law_2(traced: Traced, chosen: list[Architecture], inputs: Any) -> None:
    for architecture in chosen:
        student = extract(traced, architecture).eval()
        counted, formula = independent_macs(student, inputs), cost.macs(traced.space, architecture)
        assert formula == counted, f"law 2: {formula:,} MACs against {counted:,} at {dict(architecture)}"
        owned, formula = sum(p.numel() for p in student.parameters()), cost.params(traced.space, architecture)
        assert formula == owned, f"law 2: {formula:,} parameters against {owned:,} at {dict(architecture)}"
        layers = sum(cost.by_layer(traced.space, architecture).values())
        assert layers == counted, f"law 2: the layers add up to {layers:,} MACs, not {counted:,}"


def _law_3(original: nn.Module, traced: Traced, inputs: Any, close: _Close) -> None:
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    supernet = Supernet(traced).eval()
    args, kwargs = as_call(inputs)
    wanted = original.eval()(*args, **kwargs)
    close("law 3", supernet(inputs, traced.space.largest()), wanted)
    train_a_little(supernet.train(), inputs, [traced.space.largest(), traced.space.smallest()])
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, before[name]), f"law 3: training a supernet changed {name} of the original"


def _law_4(traced: Traced, chosen: list[Architecture], inputs: Any, close: _Close, generator: torch.Generator) -> None:
    supernet = Supernet(traced)
    args, kwargs = as_call(inputs)
    whole = _flat(traced.network.eval()(*args, **kwargs))
    for trained in (False, True):
        if trained:
            train_a_little(supernet.train(), inputs, chosen[:2])
        for architecture in chosen:
            for training in (False, True):
                supernet.train(training)
                student = extract(supernet, architecture)
                assert type(student) is type(traced.network), "law 4: the student has a class of its own"
                with plain_dropout(supernet), plain_dropout(student):
                    close(f"law 4 (training {training})", supernet(inputs, architecture), student(*args, **kwargs))
            student = extract(supernet, architecture).eval()
            if architecture != traced.space.largest():
                same = [torch.equal(a, b) for a, b in zip(_flat(student(*args, **kwargs)), whole, strict=True)]
                assert not all(same), f"law 4 is vacuous: nothing changes at {dict(architecture)}"
        _keep_is_a_prefix_of_the_permuted(supernet.current(), chosen[-2], inputs, close, generator)


def _keep_is_a_prefix_of_the_permuted(
    traced: Traced, architecture: Architecture, inputs: Any, close: _Close, generator: torch.Generator
) -> None:
    orders = {name: torch.randperm(size, generator=generator).tolist() for name, size in traced.sizes.items()}
    keep = {name: sorted(order[: architecture[name]]) for name, order in orders.items()}
    arranged = {name: keep[name] + [u for u in range(traced.sizes[name]) if u not in keep[name]] for name in orders}
    args, kwargs = as_call(inputs)
    picked = extract(traced, architecture, keep=keep).eval()(*args, **kwargs)
    leading = extract(permute(traced, arranged), architecture).eval()(*args, **kwargs)
    close("law 4 (keep)", picked, leading)


def _law_5(space: SearchSpace, generator: torch.Generator) -> None:
    distribution = ArchitectureDistribution(space, generator, std=1.0).double()
    sampled = distribution.sample(generator, 20_000)
    for measure in ("macs", "params"):
        costs = cost.count(space, sampled, measure)
        expected = cost.expected(space, distribution.probabilities(), measure)
        error = float((costs.mean() - expected.detach()).abs() / (costs.std() / len(costs) ** 0.5 + 1e-9))
        assert error < 5, (
            f"law 5: expected {measure} {float(expected.detach()):,.0f}, mean of samples {float(costs.mean()):,.0f}"
        )
        expected.backward()
        row = _integer(len(space.choices), generator)
        gradient, step = float(distribution.logits.grad[row, 0]), 1e-4  # type: ignore[index]
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                distribution.logits[row, 0] += sign * step
                sides.append(float(cost.expected(space, distribution.probabilities(), measure)))
                distribution.logits[row, 0] -= sign * step
        slope = (sides[0] - sides[1]) / (2 * step)
        assert abs(slope - gradient) <= 1e-5 * float(expected.detach()), (
            f"law 5: gradient {gradient}, finite difference {slope}"
        )
        distribution.logits.grad = None


def _law_6(original: nn.Module, traced: Traced, inputs: Any, close: _Close, generator: torch.Generator) -> None:
    orders = {name: torch.randperm(size, generator=generator).tolist() for name, size in traced.sizes.items()}
    args, kwargs = as_call(inputs)
    reordered = permute(traced, orders).network.eval()
    close("law 6", reordered(*args, **kwargs), original.eval()(*args, **kwargs))


def _law_7(space: SearchSpace, generator: torch.Generator) -> None:
    smallest, largest = (cost.macs(space, a) for a in (space.smallest(), space.largest()))
    limits = cost.budget(space, macs=(smallest + largest) // 2)
    drawn = sampling.sample_many(space, generator, 50, limits)
    assert bool(cost.feasible(space, drawn, limits).all()), "law 7: a sampled architecture exceeds the budget"
    try:
        cost.budget(space, macs=smallest - 1)
    except Infeasible as error:
        assert f"{smallest:,}" in str(error), f"law 7: the message must name the smallest cost: {error}"
    else:
        raise AssertionError("law 7: a budget below the smallest architecture must raise Infeasible")


def _law_8(traced: Traced, inputs: Any, close: _Close, generator: torch.Generator) -> None:
    supernet = Supernet(traced)
    for training in (False, True):
        supernet.train(training)
        leaves, draw = _random_draw(traced.space, generator)
        leaves_too = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        draw_too = dict(draw)
        for (name, pick), leaf in zip(
            [(n, p) for n, p in draw.items() if p.weights is not None], leaves_too, strict=True
        ):
            draw_too[name] = Pick(pick.values, leaf.softmax(0))
        slow = copy.deepcopy(supernet.network)
        with plain_dropout(supernet), plain_dropout(slow):
            fast = supernet(inputs, draw)
            reference = full_width(slow, traced, draw_too, inputs)
        close(f"law 8 (training {training})", fast, reference)
        sums = [sum(t.square().sum() for t in _flat(output) if t.is_floating_point()) for output in (fast, reference)]
        ours = torch.autograd.grad(sums[0], leaves, allow_unused=True)  # type: ignore[arg-type]
        theirs = torch.autograd.grad(sums[1], leaves_too, allow_unused=True)  # type: ignore[arg-type]
        scale = max((float(g.abs().max()) for g in theirs if g is not None), default=1.0)
        for name, a, b in zip([n for n, p in draw.items() if p.weights is not None], ours, theirs, strict=True):
            a, b = (torch.zeros(1) if g is None else g for g in (a, b))
            difference = float((a - b).abs().max())
            assert difference <= 1e3 * close.tolerance * scale, (
                f"law 8: gradient of {name} differs by {difference:.2e} of {scale:.2e}"
            )


def _random_draw(space: SearchSpace, generator: torch.Generator) -> tuple[list[Tensor], dict[str, Pick]]:
    leaves, draw = [], {}
    for choice in space.choices:
        count = min(len(choice.candidates), 2 if choice.kind == "width" else len(choice.candidates))
        values = sorted(torch.randperm(len(choice.candidates), generator=generator)[:count].tolist())
        leaf = torch.randn(count, generator=generator, dtype=torch.float64).requires_grad_()
        if count == 1:
            draw[choice.name] = Pick((choice.candidates[values[0]],))
        else:
            leaves.append(leaf)
            draw[choice.name] = Pick(tuple(choice.candidates[v] for v in values), leaf.softmax(0))
    return leaves, draw


def full_width(network: nn.Module, traced: Traced, draw: Draw, inputs: Any) -> Any:
    """The slow reference of a draw: the whole network at full width and depth, in which hooks multiply each channel
    behind its affine (or before its reader) by the summed weight of the candidates that have it, and the end of each
    residual branch by the weight of the depths that keep its block. Nothing is sliced, no parameter is changed."""
    factors: dict[str, Tensor] = {}
    for name in traced.sizes:
        pick = draw[name]
        weights = pick.weights if pick.weights is not None else torch.ones(1, dtype=torch.float64)
        has = torch.tensor([[v > u for v in pick.values] for u in range(traced.sizes[name])], dtype=weights.dtype)
        factors[name] = has @ weights
    handles: list[Any] = []

    def multiply(module: nn.Module, factor: Tensor, behind: bool) -> None:
        channel = (
            1 if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)) else -1
        )

        def shaped(x: Tensor) -> Tensor:
            f = factor.to(x.dtype)
            return x * (f if f.dim() == 0 else f.reshape([-1 if d == channel % x.dim() else 1 for d in range(x.dim())]))

        if behind:
            handles.append(module.register_forward_hook(lambda _, __, out: shaped(out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _, given: (shaped(given[0]), *given[1:])))

    for choice, sites in traced.folds.items():
        for name, dim in sites:
            tensor, leaf = name.rpartition(".")[0], name.rpartition(".")[2]
            if leaf == "bias" and (f"{tensor}.weight", dim) in sites:
                continue
            rows, first = traced.rows[name][dim], traced.first[choice]
            assert rows is not None
            module = network.get_submodule(tensor)
            units = [[int(u) - first for u in row if first <= u < first + traced.sizes[choice]] for row in rows]
            ones = factors[choice].new_ones(())
            along = torch.stack([factors[choice][list(u)].prod() if u else ones for u in units])
            multiply(module, along, behind=dim == 0 or tensor_is_1d(module, leaf))
    for choice, modules in traced.runs.items():
        pick = draw[choice]
        for index, block in enumerate(modules):
            weights = pick.weights if pick.weights is not None else torch.ones(1, dtype=torch.float64)
            alive = torch.stack([weights[k] if v > index else weights[k] * 0 for k, v in enumerate(pick.values)]).sum()
            for name in dict.fromkeys(site.rpartition(".")[0] for site, _ in traced.branch_folds[block]):
                multiply(network.get_submodule(name), alive, behind=True)
    args, kwargs = as_call(inputs)
    try:
        return network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def tensor_is_1d(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name).dim() == 1)


def train_a_little(supernet: Supernet, inputs: Any, architectures: list[Architecture]) -> None:
    """One small step of gradient descent at each architecture."""
    optimizer = torch.optim.SGD(supernet.weight_parameters(), lr=1e-4)
    for architecture in architectures:
        optimizer.zero_grad()
        outputs = [t for t in _flat(supernet(inputs, architecture)) if t.is_floating_point()]
        loss: Any = sum(t.square().mean() for t in outputs)
        loss.backward()
        nn.utils.clip_grad_norm_(supernet.weight_parameters(), 1.0)
        optimizer.step()


@contextmanager
def plain_dropout(network: nn.Module) -> Iterator[None]:
    """Without dropout and stochastic depth, whose noise would differ between two runs, in train mode too."""
    noisy = [
        m for m in network.modules() if m.training and ("Drop" in type(m).__name__ or "Stochastic" in type(m).__name__)
    ]
    for module in noisy:
        module.training = False
    try:
        yield
    finally:
        for module in noisy:
            module.training = True


def _flat(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
