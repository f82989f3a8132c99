import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tas import elastic


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (4, 6), (6, 8), (19, 64), (57, 64), (8, 8), (9, 4), (64, 19)])
def test_interpolation_is_adaptive_mean_pooling_over_channels(inputs: int, outputs: int) -> None:
    x = values(2, inputs, 3, 5)
    pooled = F.adaptive_avg_pool3d(x, (outputs, 3, 5))
    torch.testing.assert_close(elastic.interpolate(x, outputs), pooled, rtol=0, atol=1e-12)
    if inputs <= outputs:
        assert int((elastic.interpolation(inputs, outputs) > 0).sum(1).max()) <= 2


def test_interpolation_takes_the_channels_of_the_formula() -> None:
    expected = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(elastic.interpolation(3, 4), expected)


def test_stacked_interpolations_read_nothing_behind_their_own_width() -> None:
    stack = elastic.interpolations((4, 6, 9), torch.float64, torch.device("cpu"))
    x = values(2, 9, 3, 3)
    for width, matrix in zip((4, 6, 9), stack, strict=True):
        expected = elastic.interpolate(x[:, :width], 9)
        torch.testing.assert_close(elastic.mix_channels(x, matrix, x.new_zeros(9)), expected, rtol=0, atol=1e-12)


def test_sliced_convolution_equals_the_full_one_on_zeros() -> None:
    x, weight = values(2, 5, 8, 8), values(12, 7, 3, 3, seed=1)
    full = F.conv2d(elastic.extend(x, 7), weight, stride=2, padding=1)[:, :9]
    torch.testing.assert_close(elastic.sliced_conv2d(x, weight, 9, stride=2, padding=1), full)


def test_sliced_linear_equals_the_full_one_on_zeros() -> None:
    x, weight, bias = values(4, 5), values(3, 7, seed=1), values(3, seed=2)
    torch.testing.assert_close(elastic.sliced_linear(x, weight, bias), F.linear(elastic.extend(x, 7), weight, bias))


def test_extension_mask_is_the_mixture_of_zero_extended_prefixes() -> None:
    x, weights = values(2, 6, 3), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mixed = sum(w * elastic.extend(x[:, :c], 6) for w, c in zip(weights, (2, 3, 6), strict=True))
    torch.testing.assert_close(x * elastic.extension_mask((2, 3, 6), weights)[:, None], mixed)


@pytest.mark.parametrize(("left", "right"), [(5, 3), (3, 5), (4, 4)])
def test_prefix_add_sums_the_common_channels_and_keeps_the_rest(left: int, right: int) -> None:
    x, y = values(2, left, 3, 3).requires_grad_(), values(2, right, 3, 3, seed=1).requires_grad_()
    total = elastic.prefix_add(x, y)
    torch.testing.assert_close(total, elastic.extend(x, max(left, right)) + elastic.extend(y, max(left, right)))
    g = torch.autograd.grad(total.square().sum(), (x, y))
    for gradient, operand in zip(g, (x, y), strict=True):
        torch.testing.assert_close(gradient, 2 * total[:, : operand.shape[1]].detach())
