"""The TAS paper's search space for CIFAR residual networks: a width for every convolution, a depth for every stage.

Nothing is tied: inside a stage the blocks may end in different widths. In the search network they are added on their
first channels (`cifar_resnet_supernet`); in the final network a 1x1 convolution joins them (`cifar_resnet`). The cost
counted here is that of the final network, projections and truncated stages included, so that
`tas.macs(space, a) == macs of student(network, a)` for every architecture, and the expectation is exact.

Choices: `conv1` (the stem), `layer1.0.conv1` ... (state-dict names of the convolutions) and `layer1.depth` ...; the
shortcut's convolution has no choice, its outputs are those of the block's last convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from search_spaces.cifar_resnet import CifarResNet, from_widths, widths
from tas.errors import BadNetwork
from tas.space import Choice, Factor, LayerCost, SearchSpace, Term

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Factors = tuple[Factor, ...]
Inputs = list[tuple[Factors, Choice]]  # the widths that a layer may read, each under its condition: one of them holds


def width_candidates(channels: int) -> tuple[int, ...]:
    """floor(channels x ratio), the float product truncated as in the paper's code, each once, at least 1."""
    return tuple(sorted({max(1, int(channels * ratio)) for ratio in RATIOS}))


def depth_candidates(blocks: int) -> tuple[int, ...]:
    """How many leading blocks a stage may keep: all numbers up to 3 blocks, else the odd ones and all blocks."""
    return tuple(range(1, blocks + 1)) if blocks <= 3 else tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def search_space(network: CifarResNet, image: int = 32) -> SearchSpace:
    """The paper's space around `network` for square images of `image` pixels; counts "macs" and "params".

    Raises `BadNetwork` for networks with other shortcuts than the paper's.
    """
    return _space(network, image, published=False)


def published_estimate(network: CifarResNet, image: int = 32) -> SearchSpace:
    """The same choices, priced as the paper's differentiable E: `tas.cost.expected(published_estimate(...), p)`.

    E is a product of expectations: width before x width after x chance that the block is kept. That is the exact
    expectation of what it counts, for these are distinct choices; but it leaves out the projections of the final
    network, and the first block of a stage (and the head) reads the *nominal* last block before it, however many blocks
    are kept. The paper's count F of the most probable architecture has the projections, but the same nominal last
    block: a bug that makes it up to 8 % lower than the network which is then built. `search_space` has neither gap.
    """
    return _space(network, image, published=True)


def student(network: CifarResNet, architecture: Mapping[str, int]) -> CifarResNet:
    """The final network at an architecture of `search_space(network)`, freshly initialized."""
    stages = [
        [[architecture[conv.name] for conv in block.convs] for block in stage[: architecture[depth.name]]]
        for depth, stage in _stages(network, image=32)
    ]
    inputs, classes = network.conv1.in_channels, network.linear.out_features
    return from_widths(architecture["conv1"], stages, classes, in_channels=inputs)


@dataclass(frozen=True)
class _Block:
    name: str
    convs: tuple[Choice, ...]
    alive: Factors  # 1 where the block is kept
    side: int  # pixels of its output
    halves: bool  # whether its input has twice as many


def _stages(network: CifarResNet, image: int) -> list[tuple[Choice, list[_Block]]]:
    """Depth and blocks of every stage."""
    stages = []
    for s, stage in enumerate(widths(network)[1]):
        depth = Choice(f"layer{s + 1}.depth", "depth", depth_candidates(len(stage)))
        blocks = []
        for b, block in enumerate(stage):
            name = f"layer{s + 1}.{b}"
            convs = tuple(Choice(f"{name}.conv{i}", "width", width_candidates(c)) for i, c in enumerate(block, start=1))
            alive = (Factor(depth.name, "above", b),) if b >= depth.candidates[0] else ()
            blocks.append(_Block(name, convs, alive, image >> s, halves=s > 0 and b == 0))
        stages.append((depth, blocks))
    return stages


def _space(network: CifarResNet, image: int, published: bool) -> SearchSpace:
    if network.shortcut_kind != "tas":
        raise BadNetwork(
            f"the paper's space is that of networks with the paper's shortcuts, got {network.shortcut_kind!r}; "
            'build the network with shortcut="tas"'
        )
    stem = Choice("conv1", "width", width_candidates(network.conv1.out_channels))
    choices, costs = [stem], list(_stem(stem, network.conv1.in_channels, image))
    inputs: Inputs = [((), stem)]
    for depth, blocks in _stages(network, image):
        choices += [depth, *(conv for block in blocks for conv in block.convs)]
        for block in blocks:
            costs += _block(block, inputs, published)
            inputs = [((), block.convs[-1])]
        if not published:
            inputs = [((Factor(depth.name, "equal", d),), blocks[d - 1].convs[-1]) for d in depth.candidates]
    return SearchSpace(tuple(choices), (*costs, *_head(inputs, network.linear.out_features)))


def _stem(stem: Choice, in_channels: int, image: int) -> Iterator[LayerCost]:
    weights = 9 * in_channels
    yield LayerCost("conv1", "macs", (Term(weights * image * image, (_width(stem),)),))
    yield LayerCost("conv1", "params", (Term(weights, (_width(stem),)),))
    yield _norm((), stem)


def _block(block: _Block, inputs: Inputs, published: bool) -> Iterator[LayerCost]:
    basic, last = len(block.convs) == 2, block.convs[-1]
    sources = inputs
    for index, conv in enumerate(block.convs):
        kernel = 3 if basic or index == 1 else 1
        # A bottleneck halves the image in its 3x3 convolution, so the 1x1 before it sees the larger one.
        side = 2 * block.side if block.halves and not basic and index == 0 else block.side
        yield from _convolution(conv.name, kernel, side, block.alive, sources, conv)
        yield _norm(block.alive, conv)
        sources = [((), conv)]
    before, shortcut = inputs[0][1], f"{block.name}.shortcut"
    if block.halves or (published and before.size != last.size):
        yield from _convolution(shortcut, 1, block.side, block.alive, inputs, last)
    elif not published:
        yield from _projection(shortcut, block.side, block.alive, before, last, norm=basic)


def _head(inputs: Inputs, classes: int) -> Iterator[LayerCost]:
    products = tuple(Term(classes, (*condition, _width(source))) for condition, source in inputs)
    yield LayerCost("linear", "macs", products)
    yield LayerCost("linear", "params", (*products, Term(classes)))


def _convolution(
    layer: str, kernel: int, side: int, alive: Factors, inputs: Inputs, outputs: Choice
) -> Iterator[LayerCost]:
    products = [(*alive, *condition, _width(source), _width(outputs)) for condition, source in inputs]
    for measure, pixels in (("macs", side * side), ("params", 1)):
        yield LayerCost(layer, measure, tuple(Term(kernel * kernel * pixels, factors) for factors in products))


def _projection(
    layer: str, side: int, alive: Factors, before: Choice, after: Choice, norm: bool
) -> Iterator[LayerCost]:
    """The convolution that joins a and b channels unless a = b: a b weights, and 2 b where a norm follows.

    A choice may stand in a term once, so 1[a != b] f(a, b) = f(a, b) - sum over v of f(v, v) 1[a = v] 1[b = v].
    """
    common = sorted(set(before.candidates) & set(after.candidates))

    def unless_equal(coefficient: int, factors: Factors) -> tuple[Term, ...]:
        """1[a != b] x coefficient x product of the factors, which are a and b, or b."""
        same = [(v, (Factor(before.name, "equal", v), Factor(after.name, "equal", v))) for v in common]
        taken = [Term(-coefficient * v ** len(factors), alive + equal) for v, equal in same]
        return (Term(coefficient, alive + factors), *taken)

    weights, affine = (_width(before), _width(after)), (_width(after),)
    yield LayerCost(layer, "macs", unless_equal(side * side, weights))
    yield LayerCost(layer, "params", unless_equal(1, weights) + (unless_equal(2, affine) if norm else ()))


def _norm(alive: Factors, conv: Choice) -> LayerCost:
    return LayerCost(conv.name.replace("conv", "bn"), "params", (Term(2, (*alive, _width(conv))),))


def _width(choice: Choice) -> Factor:
    return Factor(choice.name, "power", 1)
