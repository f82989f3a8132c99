import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tas.calibration import has_batch_norm, modes_restored, recalibrate, statistics


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.last = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    network = Net()
    for norm in (network.norm, network.last):
        norm.running_mean.uniform_(-3, 3)
        norm.running_var.uniform_(2, 5)
    return network


def batches(count: int = 5, size: int = 8) -> list[Tensor]:
    return list(torch.randn(count, size, 2, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.7)


def test_statistics_become_averages_of_batch_means_and_unbiased_variances() -> None:
    network = net()
    recalibrate(network, iter(batches()))
    hidden = [network.conv(x).detach().numpy() for x in batches()]
    means = np.mean([h.mean((0, 2, 3)) for h in hidden], 0)
    variances = np.mean([h.transpose(1, 0, 2, 3).reshape(4, -1).var(1, ddof=1) for h in hidden], 0)
    np.testing.assert_allclose(network.norm.running_mean, means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.norm.running_var, variances, rtol=1e-4)


def test_the_last_norm_sees_batch_statistics_of_the_first_and_no_dropout() -> None:
    network = net()
    recalibrate(network, batches())
    seen = []
    for x in batches():
        h = network.conv(x).detach()
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        seen.append(h.relu().mean((2, 3)).mean(0))
    torch.testing.assert_close(network.last.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)


def test_momentum_and_training_flags_come_back_also_after_an_error() -> None:
    network = net().train()
    network.norm.eval()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}

    def check() -> None:
        assert (network.norm.momentum, network.last.momentum) == (0.3, 0.1)
        assert (network.training, network.norm.training, network.drop.training) == (True, False, True)
        assert all(parameter.equal(before[name]) for name, parameter in network.named_parameters())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())

    recalibrate(network, batches())
    check()
    with pytest.raises(RuntimeError):
        recalibrate(network, [torch.zeros(8, 99, 6, 6)])
    check()


def test_old_statistics_do_not_matter_and_repeating_gives_the_same() -> None:
    first, second = net(), net()
    first.norm.running_mean.fill_(1e6)
    recalibrate(first, batches())
    recalibrate(second, batches())
    recalibrate(second, batches())
    assert first.norm.running_mean.equal(second.norm.running_mean)
    assert first.last.running_var.equal(second.last.running_var)


def test_resuming_from_kept_statistics_is_bit_identical_to_one_pass() -> None:
    whole, part, later = net(), net(), net()
    recalibrate(whole, batches(5))
    recalibrate(part, batches(5)[:2])
    kept = statistics(part)
    assert len(kept) == 6
    later.load_state_dict(kept, strict=False)
    recalibrate(later, batches(5)[2:], resumed=True)
    assert all(value.equal(statistics(whole)[name]) for name, value in statistics(later).items())


def test_statistics_that_are_prefixes_of_larger_buffers_are_written_through_the_callable() -> None:
    network = net()
    whole = network.norm.running_mean.clone()

    def narrow(x: Tensor) -> Tensor:
        """Two of four channels, as a supernet runs an architecture."""
        sliced = {
            f"{module}.{name}": tensor[:2]
            for module, child in (("conv", network.conv), ("norm", network.norm), ("last", network.last))
            for name, tensor in child.state_dict(keep_vars=True).items()
            if tensor.dim()
        }
        return functional_call(network, sliced, x)

    recalibrate(network, batches(), narrow)
    expected = torch.stack([network.conv(x)[:, :2].detach().mean((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(network.norm.running_mean[:2], expected, rtol=1e-4, atol=1e-6)
    assert network.norm.running_mean[2:].equal(whole[2:])


def test_has_batch_norm_only_counts_norms_with_running_statistics() -> None:
    assert has_batch_norm(net())
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert not has_batch_norm(nn.BatchNorm1d(2, track_running_stats=False))


class Folds(nn.Linear):
    """Counts how often its own `train` changes the mode."""

    folded = False
    changes = 0

    def train(self, mode: bool = True) -> "Folds":
        if mode == self.folded:
            self.folded, self.changes = not mode, self.changes + 1
        return super().train(mode)


def test_modules_with_a_train_of_their_own_hear_that_the_mode_is_restored() -> None:
    network = nn.Sequential(Folds(2, 2), nn.BatchNorm1d(2), nn.Sequential(Folds(2, 2)))
    network[1].eval()
    network[2].eval()
    before = [module.training for module in network.modules()]
    with modes_restored(network):
        network.eval()
        assert network[0].folded
    assert not network[0].folded
    assert network[2][0].folded
    assert [module.training for module in network.modules()] == before
    with modes_restored(network):
        pass
    assert (network[0].changes, network[2][0].changes) == (2, 1)
