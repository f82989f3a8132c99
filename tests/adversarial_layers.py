"""Adversarial networks: single layers and how channels pass through them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from adversarial import Case, Net, conv, conv_bn, head, images
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


def depthwise_multiplier_with_bias() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 6, 1)]
    return Case(nn.Sequential(*layers, head(6)), images())


def depthwise_with_bias_between_norms() -> Case:
    layers = [conv_bn(3, 8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 1)]
    return Case(nn.Sequential(*layers, head(6)), images())


def grouped() -> Case:
    layers = [conv_bn(3, 12), nn.ReLU(), conv_bn(12, 18, groups=3), nn.ReLU(), conv_bn(18, 12, groups=6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(12)), images())


def grouped_with_bias_without_norm() -> Case:
    layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 6, 1)]
    return Case(nn.Sequential(*layers, nn.Sigmoid(), head(6)), images())


def transposed() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 10, 3)]
    return Case(nn.Sequential(*layers, nn.BatchNorm2d(10), nn.ReLU(), head(10)), images())


def transposed_grouped() -> Case:
    layers = [conv_bn(3, 12), nn.ReLU(), nn.ConvTranspose2d(12, 18, 2, 2, groups=3), nn.ReLU(), conv(18, 6, 1)]
    return Case(nn.Sequential(*layers, head(6)), images())


def transposed_depthwise() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.ReLU(), conv(8, 6, 1)]
    return Case(nn.Sequential(*layers, head(6)), images())


class NormAct(nn.BatchNorm2d):
    """A norm that ends in an activation: scaling behind the module is not scaling its affine."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the second dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


def norm_and_activation_in_one() -> Case:
    layers = [conv(3, 8), NormAct(8), conv(8, 6), NormAct(6), conv(6, 10)]
    return Case(nn.Sequential(*layers, head(10)), images())


def layer_norm_of_the_second_dimension() -> Case:
    layers = [conv(3, 8), ChannelNorm(8), nn.GELU(), conv(8, 6), ChannelNorm(6)]
    return Case(nn.Sequential(*layers, head(6)), images())


def norm_without_affine() -> Case:
    layers = [conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv_bn(8, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def norm_with_cumulative_statistics() -> Case:
    layers = [conv(3, 8), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), conv_bn(8, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def norm_without_statistics() -> Case:
    layers = [conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), conv_bn(8, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images(batch=3))


def instance_norm() -> Case:
    layers = [conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 6), nn.InstanceNorm2d(6, affine=True)]
    return Case(nn.Sequential(*layers, nn.ReLU(), head(6)), images())


def no_norm_with_bias() -> Case:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return Case(nn.Sequential(*layers, head(10)), images())


def norm_before_relu_before_conv() -> Case:
    layers = [conv(3, 8, bias=True), nn.ReLU(), nn.BatchNorm2d(8), conv(8, 6, bias=True), nn.ReLU(), nn.BatchNorm2d(6)]
    return Case(nn.Sequential(*layers, head(6)), images())


def two_norms_in_a_row() -> Case:
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU(), conv_bn(8, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def group_norm() -> Case:
    layers = [conv(3, 12), nn.GroupNorm(3, 12), nn.ReLU(), conv(12, 12), nn.GroupNorm(1, 12), nn.ReLU()]
    return Case(nn.Sequential(*layers, conv(12, 8), nn.GroupNorm(8, 8), nn.ReLU(), head(8)), images())


def parametric_relu() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.PReLU(8), conv_bn(8, 6), nn.PReLU(), head(6)), images())


def sigmoid_before_conv() -> Case:
    layers = [conv_bn(3, 8), nn.Sigmoid(), conv(8, 10), nn.Softplus(), conv(10, 6, bias=True), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def shift_between_norm_and_conv() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x) + 1
        x = m.b(x) * 2 - 0.5
        return m.head(1 - m.c(x))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 10), c=conv(10, 6), head=head(6)), images())


def hard_clamps() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).clamp(0.1, 2)
        x = torch.clamp(m.b(x), max=0.5)
        return m.head(F.hardtanh(m.c(x), 0.0, 6.0))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 10), c=conv(10, 6), head=head(6)), images())


def reflect_padding_and_dilation() -> Case:
    layers = [conv_bn(3, 8, padding_mode="reflect"), nn.ReLU(), conv_bn(8, 10, dilation=2, padding=2), nn.ReLU()]
    layers += [nn.ReplicationPad2d(1), nn.Conv2d(10, 6, 3, padding="same", padding_mode="circular"), nn.ZeroPad2d(1)]
    return Case(nn.Sequential(*layers, head(6)), images())


def one_dimension() -> Case:
    layers = [nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 10, 1), nn.ReLU()]
    return Case(nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(10, 3)), images(4, 12, 2, 1))


def three_dimensions() -> Case:
    layers = [nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(8, 6, 1), nn.ReLU()]
    return Case(nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)), images(2, 6, 2, 3))


def flatten_with_spatial() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 10), nn.BatchNorm1d(10)]
    return Case(nn.Sequential(*layers, nn.ReLU(), nn.Linear(10, 4)), images())


def channels_last_flatten() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(torch.relu(m.a(x)).permute(0, 2, 3, 1).reshape(len(x), -1))

    return Case(Net(run, a=conv_bn(3, 8), fc=nn.Linear(8 * 36, 4)), images())


def conv_after_unflatten() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.fc(torch.relu(m.a(x)).flatten(1))).view(len(x), 6, 3, 3)
        return m.head(m.b(x))

    return Case(Net(run, a=conv_bn(3, 4), fc=nn.Linear(4 * 36, 54), b=conv_bn(6, 8), head=head(8)), images())


def functional_convolution() -> Case:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.shift = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
            self.second = nn.Parameter(torch.randn(6, 8, 3, 3))
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("var", torch.ones(6))
            self.head = head(6)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel, self.shift, padding=1).relu()
            x = F.batch_norm(F.conv2d(x, self.second), self.mean, self.var, training=self.training)
            return self.head(x)

    return Case(Functional(), images())


def weight_normed() -> Case:
    layers = [weight_norm(conv(3, 8, bias=True)), nn.ReLU(), weight_norm(conv(8, 6, bias=True)), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def weight_standardised() -> Case:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)

    layers = [Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def spectrally_normed() -> Case:
    """A factor on their weights would be normalised away."""
    layers = [spectral_norm(nn.Conv2d(3, 8, 3)), nn.LeakyReLU(), old_spectral_norm(nn.Conv2d(8, 6, 3)), nn.LeakyReLU()]
    return Case(nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(24, 3))), images())


def computed_weights() -> Case:
    """A matrix of low rank on top, noise, a mask: the factor goes to what these layers are given."""

    class Adapted(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.down, self.up = nn.Parameter(torch.randn(4, inputs)), nn.Parameter(torch.randn(outputs, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight + self.up @ self.down, self.bias)

    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), self.weight * self.weight.detach().abs().sigmoid(), self.bias)

    pruned = nn.Linear(8, 7)
    prune.l1_unstructured(pruned, "weight", 0.5)
    layers = [nn.Linear(5, 8), nn.ReLU(), pruned, nn.GELU(), Adapted(7, 6), nn.Sigmoid(), Masked(6, 3)]
    return Case(nn.Sequential(*layers), torch.randn(4, 5))


def computed_weight_with_a_shortcut_inside() -> Case:
    """What the layer is given is summed over, but also passed on: only the function inside can take the factor."""

    class Mixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.tanh() + self.weight, self.bias).sigmoid() + x

    return Case(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Mixed(8, 8), nn.Sigmoid(), nn.Linear(8, 3)), torch.randn(4, 5)
    )


def one_layer_of_computed_weights_called_with_and_without_the_factor() -> Case:
    """Gamma of a norm could scale what its second call is given, nothing the first: both take it with what they
    are given."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).sigmoid()
        return net.head(net.twice(x) + net.twice(net.norm(x)))

    twice = spectral_norm(nn.Linear(8, 6))
    return Case(
        Net(forward, stem=nn.Linear(5, 8), norm=nn.BatchNorm1d(8), twice=twice, head=nn.Linear(6, 3)), torch.randn(4, 5)
    )


def modulated() -> Case:
    """Weights that follow a style, one group an example (StyleGAN2)."""

    class Modulated(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.style, self.outputs = nn.Linear(4, inputs), outputs
            self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))

        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            batch, channels, *size = x.shape
            weight = (self.weight * self.style(style).view(batch, 1, channels, 1, 1)).view(-1, channels, 3, 3)
            x = F.conv2d(x.reshape(1, batch * channels, *size), weight, padding=1, groups=batch)
            return x.view(batch, self.outputs, *size)

    def forward(net: Net, x: Tensor, style: Tensor) -> Tensor:
        return net.last(F.leaky_relu(net.first(F.leaky_relu(net.stem(x)), style=style)), style=style)

    net = Net(forward, stem=nn.Conv2d(3, 8, 1), first=Modulated(8, 6), last=Modulated(6, 3))
    return Case(net, (images(), torch.randn(2, 4)))


def bias_with_another_use() -> Case:
    """Added apart, and read once more: it cannot take the factor, nor can anything before it alone."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = x @ net.weight + net.bias
        return net.head(y.relu()) + net.bias.sigmoid().mean()

    net = Net(forward, head=nn.Linear(6, 3))
    net.weight, net.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
    return Case(net, torch.randn(4, 5))


class PrunedBlocks(nn.Module):
    """Masked square layers in a stream: both dimensions of their weights are the stream's."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (nn.Linear(*size) for size in ((5, 8), (8, 8), (8, 8), (8, 3)))
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        for layer in (self.first, self.second):
            prune.l1_unstructured(layer, "weight", 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sigmoid()
        x = self.norm(x + self.first(x).relu())
        return self.head(x + self.second(x).relu())


def pruned_residual_blocks() -> Case:
    return Case(PrunedBlocks(norm=False), torch.randn(4, 5))


def pruned_residual_blocks_with_a_norm() -> Case:
    return Case(PrunedBlocks(norm=True), torch.randn(4, 5))


def one_parameter_scales_a_branch_along_both_dimensions() -> Case:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x + F.linear(x, self.weight) + F.linear(x.tanh(), self.weight.t())

    return Case(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Both(), nn.ReLU(), nn.Linear(6, 3)), torch.randn(4, 5))


def maps_between_channels_given_to_a_computed_layer() -> Case:
    """Both dimensions of what it is given are channels, and it sums over one of them."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).flatten(2)
        return net.head(net.read(x @ x.transpose(1, 2)).sigmoid().transpose(1, 2)).mean(1)

    members = {"stem": nn.Conv2d(3, 6, 1), "read": spectral_norm(nn.Linear(6, 4)), "head": nn.Linear(6, 3)}
    return Case(Net(forward, **members), images())


def layer_that_appends_to_a_list_it_is_given() -> Case:
    """What it is given beside its input has to be the caller's own list."""

    class Appends(nn.Linear):
        def forward(self, x: Tensor, made: list[Tensor]) -> None:
            made.append(F.linear(x, self.weight * 0.5 + self.weight.tanh(), self.bias))

    def forward(net: Net, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        net.appends(net.stem(x).sigmoid(), made)
        return net.head(made[0].relu())

    return Case(Net(forward, stem=nn.Linear(5, 6), appends=Appends(6, 4), head=nn.Linear(4, 3)), torch.randn(4, 5))


class DynamicConv(nn.Module):
    """Kernels mixed for every picture, by weights that are viewed as a matrix: a cut one does not lie in one piece."""

    def __init__(self, inputs: int, outputs: int, kernels: int = 3) -> None:
        super().__init__()
        self.inputs, self.outputs, self.mix = inputs, outputs, nn.Linear(inputs, kernels)
        self.weight = nn.Parameter(torch.randn(kernels, outputs, inputs, 3, 3))
        self.register_buffer("taps", torch.ones(kernels, outputs, inputs, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        shares, (n, _, h, w) = self.mix(x.mean((2, 3))).softmax(1), x.shape
        kernels = self.weight.view(len(self.weight), -1) * self.taps.view(len(self.taps), -1)
        kernels = (shares @ kernels).view(n * self.outputs, self.inputs, 3, 3)
        return F.conv2d(x.reshape(1, -1, h, w), kernels, padding=1, groups=n).view(n, self.outputs, h, w)


def dynamic_convolution() -> Case:
    layers = [conv(3, 8), nn.ReLU(), DynamicConv(8, 6), nn.ReLU(), conv(6, 5), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(5)), images())


class GainedConv(nn.Conv2d):
    """Standardised weights times a gain: a factor on its channels belongs on gain and bias."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat, gain = self.weight.reshape(1, len(self.weight), -1), (self.gain * 0.3).view(-1)
        weight = F.batch_norm(flat, None, None, gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised_with_a_gain() -> Case:
    layers = [GainedConv(3, 8), nn.SiLU(), GainedConv(8, 6), nn.SiLU(), GainedConv(6, 6, groups=6), nn.SiLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def norm_inside_every_head() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        x = (m.norm(q) @ m.norm(k).transpose(-2, -1)).softmax(-1) @ v
        return m.head(x.transpose(1, 2).flatten(2).mean(1))

    layers = {name: nn.Linear(6, 12) for name in "qkv"}
    return Case(Net(run, **layers, norm=nn.LayerNorm(4), head=nn.Linear(12, 3)), torch.randn(2, 5, 6))


def linear_network() -> Case:
    layers = [nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
    return Case(nn.Sequential(*layers), torch.randn(3, 9))


def local_response() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.LocalResponseNorm(3), conv_bn(8, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def channel_softmax_and_layer_norm() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).softmax(1)
        x = m.ln(m.b(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return m.head(torch.relu(x))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 10), ln=nn.LayerNorm(10), head=head(10)), images())


def batch_of_three() -> Case:
    layers = [conv_bn(3, 3), nn.ReLU(), conv_bn(3, 6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6, 3)), images(3, 3, 3))


def sizes_equal_to_channels() -> Case:
    layers = [conv_bn(6, 6), nn.ReLU(), conv_bn(6, 6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 6)]
    return Case(nn.Sequential(*layers), images(6, 6, 6))


def bilinear() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.a(x)).flatten(2)
        b = torch.relu(m.b(x)).flatten(2)
        return m.fc(torch.bmm(a, b.transpose(1, 2)).flatten(1))

    return Case(Net(run, a=conv_bn(3, 6), b=conv_bn(3, 4), fc=nn.Linear(24, 3)), images())


def einsum_head() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kc->nk", torch.relu(m.a(x)), m.w)

    return Case(Net(run, a=conv_bn(3, 12), w=nn.Parameter(torch.randn(5, 12))), images())


def channels_last_memory() -> Case:
    net = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.ReLU(), head(6))
    return Case(net.to(memory_format=torch.channels_last), images().to(memory_format=torch.channels_last))
