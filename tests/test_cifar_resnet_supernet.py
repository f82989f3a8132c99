"""The search network against a slow one written from the equations: full convolutions on concatenated zeros, one
batch norm a picked candidate, adaptive mean pooling over channels, prefix addition, sum over depths."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.cifar_resnet import CifarResNet, from_widths, widths
from search_spaces.cifar_resnet_space import student
from search_spaces.cifar_resnet_supernet import CifarSupernet, ElasticBlock, ElasticConv
from tas.distribution import ArchitectureDistribution, Pick, one_hot

BASIC = (16, [[[16, 16]] * 3, [[32, 32]] * 4, [[24, 24]] * 1])
BOTTLENECK = (12, [[[8, 8, 20]] * 2, [[10, 12, 32]] * 3, [[10, 12, 28]] * 2])


def supernet_of(shape: tuple, seed: int = 0) -> tuple[CifarSupernet, ArchitectureDistribution]:
    """Nothing is at its initial value: all scales, shifts and statistics matter."""
    generator = torch.Generator().manual_seed(seed)
    supernet = CifarSupernet(from_widths(*shape), 16, generator).double()
    with torch.no_grad():
        for module in supernet.modules():
            if isinstance(module, ElasticConv):
                for tensor in (module.scale, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.shift, module.running_mean):
                    tensor.normal_(0, 0.5, generator=generator)
        supernet.linear.weight.normal_(generator=generator)
    distribution = ArchitectureDistribution(supernet.space, generator, std=0.5).double()
    return supernet, distribution


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Reference:
    """Equations of the paper, on the parameters of a search network; keeps the running statistics it would write."""

    def __init__(self, supernet: CifarSupernet, draw: Mapping[str, Pick]) -> None:
        self.supernet, self.draw, self.written = supernet, draw, {}

    def __call__(self, x: Tensor) -> Tensor:
        x = self.unit(x, "conv1", self.draw["conv1"], self.supernet.conv1).relu()
        for stage in ("layer1", "layer2", "layer3"):
            depths, ends = self.draw[f"{stage}.depth"], {}
            for b, block in enumerate(self.supernet.get_submodule(stage)):
                x = self.block(x, f"{stage}.{b}", block)
                ends[b + 1] = x
            picked = [ends[depth] for depth in depths.values]
            weights = [1.0] if depths.weights is None else depths.weights
            widest = max(end.shape[1] for end in picked)
            x = sum(weight * self.pool(end, widest) for weight, end in zip(weights, picked, strict=True))
        weight = self.supernet.linear.weight[:, : x.shape[1]]
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), weight, self.supernet.linear.bias)

    def block(self, x: Tensor, name: str, block: ElasticBlock) -> Tensor:
        y, last = x, len(block.convs) - 1
        for index, conv in enumerate(block.convs):
            y = self.unit(y, f"{name}.conv{index + 1}", self.draw[f"{name}.conv{index + 1}"], conv)
            y = y.relu() if index < last else y
        if block.shortcut is not None:
            source = F.avg_pool2d(x, 2) if block.halves else x
            x = self.unit(source, f"{name}.shortcut", self.draw[f"{name}.conv{last + 1}"], block.shortcut)
        channels = max(x.shape[1], y.shape[1])
        return (self.zeros(x, channels) + self.zeros(y, channels)).relu()

    def unit(self, x: Tensor, name: str, pick: Pick, layer: ElasticConv) -> Tensor:
        weight = layer.conv.weight
        y = F.conv2d(self.zeros(x, weight.shape[1]), weight, stride=layer.stride, padding=layer.padding)
        weights = [1.0] if pick.weights is None else pick.weights
        total = 0.0
        for value, share in zip(pick.values, weights, strict=True):
            row = layer.candidates.index(value)
            statistics = [table[row, :value].clone() for table in (layer.running_mean, layer.running_var)]
            affine = layer.scale[row, :value], layer.shift[row, :value]
            normed = F.batch_norm(y[:, :value], *statistics, *affine, self.supernet.training, 0.1, 1e-5)
            self.written[name, row] = statistics
            total = total + share * self.pool(normed, max(pick.values))
        return total

    @staticmethod
    def zeros(x: Tensor, channels: int) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])], 1)

    @staticmethod
    def pool(x: Tensor, channels: int) -> Tensor:
        return F.adaptive_avg_pool3d(x, (channels, *x.shape[2:]))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("candidates", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_and_gradients_equal_the_slow_reference(shape: tuple, candidates: int, training: bool) -> None:
    supernet, distribution = supernet_of(shape)
    supernet.train(training)
    generator = torch.Generator().manual_seed(1)
    inputs = [*supernet.parameters(), distribution.logits]
    for round in range(3):
        draw = distribution.draw(generator, 1.0, candidates=candidates)
        expected = Reference(supernet, draw)(images(round))
        slow = torch.autograd.grad(expected.square().sum(), inputs, retain_graph=True)
        actual = supernet(images(round), draw)
        fast = torch.autograd.grad(actual.square().sum(), inputs)
        close(actual, expected)
        assert max(float(gradient.abs().max()) for gradient in slow) > 1
        for one, other in zip(fast, slow, strict=True):
            close(one, other)


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_a_training_step_writes_the_running_statistics_of_the_picked_candidates_only(shape: tuple) -> None:
    supernet, distribution = supernet_of(shape)
    before = {name: tensor.clone() for name, tensor in supernet.named_buffers()}
    draw = distribution.draw(torch.Generator().manual_seed(3), 1.0)
    reference = Reference(supernet, draw)
    reference(images())
    supernet(images(), draw)
    layers = {name: module for name, module in supernet.named_modules() if isinstance(module, ElasticConv)}
    for name, layer in layers.items():
        stage, block, kind, *index = (*name.split("."), "", "")[:4]
        plain = f"{stage}.{block}.conv{int(index[0]) + 1}" if kind == "convs" else name
        for row in range(len(layer.candidates)):
            width = layer.candidates[row]
            old = [before[f"{name}.{table}"][row] for table in ("running_mean", "running_var")]
            new = reference.written.get((plain, row), [tensor[:width] for tensor in old])
            for table, statistics in zip((layer.running_mean, layer.running_var), new, strict=True):
                close(table[row, :width], statistics)
    assert len(reference.written) > len(layers)


def test_frozen_weights_leave_the_gradient_of_the_logits_as_it_is_and_compute_no_other() -> None:
    supernet, distribution = supernet_of(BASIC)
    draws = [distribution.draw(torch.Generator().manual_seed(3), 1.0) for _ in range(2)]
    supernet(images(), draws[0]).square().sum().backward()
    free = distribution.logits.grad.clone()
    supernet.zero_grad()
    distribution.zero_grad()
    with supernet.frozen_weights():
        supernet(images(), draws[1]).square().sum().backward()
    close(distribution.logits.grad, free)
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert all(parameter.requires_grad for parameter in supernet.weight_parameters())


def test_an_architecture_is_its_one_hot_draw_and_runs_only_the_kept_blocks() -> None:
    supernet, _ = supernet_of(BASIC)
    supernet.eval()
    smallest = supernet.space.smallest()
    dropped = supernet.get_submodule("layer1.1")
    dropped.register_forward_pre_hook(lambda module, inputs: pytest.fail("a dropped block ran"))
    close(supernet(images(), smallest), supernet(images(), one_hot(smallest)))


def test_the_trunk_is_added_on_its_first_channels_and_only_grows() -> None:
    supernet, _ = supernet_of(BASIC)
    x = supernet.conv1(images(), Pick((12,)))
    block = supernet.get_submodule("layer1.0")
    assert block(x, [Pick((4,)), Pick((8,))]).shape[1] == 12
    assert block(x, [Pick((4,)), Pick((4, 16), torch.tensor([0.5, 0.5], dtype=torch.float64))]).shape[1] == 16


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_the_student_has_the_widths_and_depths_of_its_architecture(shape: tuple) -> None:
    supernet, _ = supernet_of(shape)
    architecture = supernet.space.smallest()
    small: CifarResNet = supernet.student(architecture)
    stem, stages = widths(small)
    assert stem == architecture["conv1"]
    assert [len(stage) for stage in stages] == [architecture[f"layer{s}.depth"] for s in (1, 2, 3)]
    assert stages[1][0][0] == architecture["layer2.0.conv1"]
    assert widths(student(from_widths(*shape), supernet.space.largest())) == shape
