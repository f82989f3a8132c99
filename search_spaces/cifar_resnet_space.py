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

from search_spaces.cifar_resnet import BasicBlock, CifarResNet, from_widths, widths
from tas.errors import BadNetwork
from tas.space import Choice, Factor, LayerCost, SearchSpace, Term

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Factors = tuple[Factor, ...]


def width_candidates(channels: int) -> tuple[int, ...]:
    """floor(channels x ratio), the float product truncated as in the paper's code, each once, at least 1."""
    return tuple(sorted({max(1, int(channels * ratio)) for ratio in RATIOS}))


def depth_candidates(blocks: int) -> tuple[int, ...]:
    """How many leading blocks a stage may keep: all numbers up to 3 blocks, else the odd ones and all blocks."""
    return tuple(range(1, blocks + 1)) if blocks <= 3 else tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def search_space(network: CifarResNet, image: int = 32) -> SearchSpace:
    """The paper's space around `network` for square images of `image` pixels; counts "macs" and "params"."""
    return _Description.of(network, image).space(published=False)


def published_estimate(network: CifarResNet, image: int = 32) -> SearchSpace:
    """The same choices, priced as the paper's differentiable E: `tas.cost.expected(published_estimate(...), p)`.

    E is a product of expectations: width before x width after x chance that the block is kept. That is the exact
    expectation of what it counts, for these are distinct choices; but it leaves out the projections of the final
    network, and the first block of a stage reads the *nominal* last block of the stage before, however many blocks are
    kept. (The paper's count F of the most probable architecture has the projections, but the same nominal last block:
    a bug, which makes it up to 8 % lower than the network that is then built. `search_space` has neither gap.)
    """
    return _Description.of(network, image).space(published=True)


def student(network: CifarResNet, architecture: Mapping[str, int]) -> CifarResNet:
    """The final network at an architecture of `search_space(network)`, freshly initialized."""
    _, stages = widths(network)
    chosen = [
        [[architecture[name] for name in _convolutions(s, b, len(block))] for b, block in enumerate(stage)]
        for s, stage in enumerate(stages)
    ]
    kept = [stage[: architecture[_depth(s)]] for s, stage in enumerate(chosen)]
    head, stem = network.linear, network.conv1
    return from_widths(architecture["conv1"], kept, head.out_features, in_channels=stem.in_channels)


def _depth(stage: int) -> str:
    return f"layer{stage + 1}.depth"


def _convolutions(stage: int, block: int, count: int) -> list[str]:
    return [f"layer{stage + 1}.{block}.conv{index + 1}" for index in range(count)]


def _width(choice: str) -> Factor:
    return Factor(choice, "power", 1)


@dataclass(frozen=True)
class _Description:
    stem: int
    stages: list[list[list[int]]]
    basic: bool
    in_channels: int
    num_classes: int
    image: int

    @classmethod
    def of(cls, network: CifarResNet, image: int) -> _Description:
        if network.shortcut_kind != "tas":
            raise BadNetwork(
                f"the paper's space is that of networks with the paper's shortcuts, got {network.shortcut_kind!r}; "
                'build the network with shortcut="tas"'
            )
        basic = isinstance(network.layer1[0], BasicBlock)
        return cls(*widths(network), basic, network.conv1.in_channels, network.linear.out_features, image)

    def space(self, published: bool) -> SearchSpace:
        return SearchSpace(tuple(self._choices()), tuple(self._costs(published)))

    def _choices(self) -> Iterator[Choice]:
        yield Choice("conv1", "width", width_candidates(self.stem))
        for s, stage in enumerate(self.stages):
            yield Choice(_depth(s), "depth", depth_candidates(len(stage)))
            for b, block in enumerate(stage):
                for name, channels in zip(_convolutions(s, b, len(block)), block, strict=True):
                    yield Choice(name, "width", width_candidates(channels))

    def _costs(self, published: bool) -> Iterator[LayerCost]:
        yield from _convolution("conv1", 3, self.image, [()], self.in_channels, _width("conv1"))
        yield LayerCost("bn1", "params", (Term(2, (_width("conv1"),)),))
        inputs: list[Factors] = [(_width("conv1"),)]  # what may feed the next layer: exactly one of these is not 0
        for s, stage in enumerate(self.stages):
            for b in range(len(stage)):
                yield from self._block(s, b, inputs, published)
                inputs = [(_width(self._last(s, b)),)]
            if not published:
                kept = depth_candidates(len(stage))
                inputs = [(Factor(_depth(s), "equal", depth), _width(self._last(s, depth - 1))) for depth in kept]
        head = tuple(Term(self.num_classes, factors) for factors in inputs)
        yield LayerCost("linear", "macs", head)
        yield LayerCost("linear", "params", (*head, Term(self.num_classes)))

    def _last(self, s: int, b: int) -> str:
        return _convolutions(s, b, len(self.stages[s][b]))[-1]

    def _block(self, s: int, b: int, inputs: list[Factors], published: bool) -> Iterator[LayerCost]:
        always = b < depth_candidates(len(self.stages[s]))[0]
        alive: Factors = () if always else (Factor(_depth(s), "above", b),)
        halves = s > 0 and b == 0
        side = self.image >> s
        names = _convolutions(s, b, len(self.stages[s][b]))
        sources = [alive + source for source in inputs]
        for index, name in enumerate(names):
            kernel = 3 if self.basic or index == 1 else 1
            # Only the convolutions before a bottleneck's 3x3 see the larger image.
            pixels = 2 * side if halves and not self.basic and index == 0 else side
            yield from _convolution(name, kernel, pixels, sources, 1, _width(name))
            yield LayerCost(name.replace("conv", "bn"), "params", (Term(2, (*alive, _width(name))),))
            sources = [(*alive, _width(name))]
        shortcut = f"layer{s + 1}.{b}.shortcut"
        if halves or (published and self._widens(s, b)):
            sources = [alive + source for source in inputs]
            yield from _convolution(shortcut, 1, side, sources, 1, _width(names[-1]))
        elif not published:
            yield from self._projection(shortcut, side, alive, inputs[0][0].choice, names[-1])

    def _widens(self, s: int, b: int) -> bool:
        before = self.stages[s][b - 1][-1] if b else self.stem
        return before != self.stages[s][b][-1]

    def _projection(self, layer: str, side: int, alive: Factors, before: str, after: str) -> Iterator[LayerCost]:
        """Between a != b channels: a b weights, and in basic blocks 2 b for a norm. Each choice may stand in a term
        once, and 1[a != b] f(a, b) = f(a, b) - sum over v of f(v, v) 1[a = v] 1[b = v]."""
        space = {choice.name: choice.candidates for choice in self._choices()}
        common = sorted(set(space[before]) & set(space[after]))

        def unequal(coefficient: int, factors: Factors, power: int) -> list[Term]:
            both = [(Factor(before, "equal", v), Factor(after, "equal", v)) for v in common]
            equal = [Term(-coefficient * v**power, alive + pair) for v, pair in zip(common, both, strict=True)]
            return [Term(coefficient, alive + factors), *equal]

        pair = (_width(before), _width(after))
        norm = unequal(2, (_width(after),), 1) if self.basic else []
        yield LayerCost(layer, "macs", tuple(unequal(side * side, pair, 2)))
        yield LayerCost(layer, "params", (*unequal(1, pair, 2), *norm))


def _convolution(
    layer: str, kernel: int, side: int, inputs: list[Factors], in_channels: int, outputs: Factor
) -> Iterator[LayerCost]:
    weights = tuple(Term(kernel * kernel * in_channels, (*factors, outputs)) for factors in inputs)
    yield LayerCost(layer, "params", weights)
    yield LayerCost(layer, "macs", tuple(Term(side * side * w.coefficient, w.factors) for w in weights))
