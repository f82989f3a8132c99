"""What mixes channels other than by a sum over them is kept in order, or told in the space's notes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tas.importance import reorder
from tas.reordering import permute
from tas.testing import check_space
from tas.tracing import trace


class Sliding(nn.Module):
    """Efficient channel attention: a convolution along the channel axis (Wang et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        gate = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


class Attention(nn.Module):
    """One head whose scale is computed from the width in forward."""

    def __init__(self, as_tensor: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Linear(6, 12), nn.Linear(12, 36), nn.Linear(12, 5)
        self.as_tensor = as_tensor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x)).chunk(3, dim=-1)
        root = torch.sqrt(torch.tensor(q.shape[-1])) if self.as_tensor else q.shape[-1] ** 0.5
        scores = (q / root) @ k.transpose(1, 2)
        return self.head((scores @ v).mean(1))


def test_channels_that_an_operator_slides_over_keep_their_order() -> None:
    traced = trace(Sliding(), torch.randn(2, 3, 8, 8))
    (name,) = traced.ordered
    backwards = list(range(traced.sizes[name]))[::-1]
    with pytest.raises(ValueError, match="slides"):
        permute(traced, {name: backwards})
    with pytest.raises(ValueError, match="slides"):
        traced.keep_mask(traced.space.smallest(), {name: backwards[: traced.space.smallest()[name]]})
    before = traced.network.stem.weight.clone()
    assert torch.equal(reorder(traced).network.stem.weight, before)


def test_a_prefix_of_channels_under_a_sliding_operator_is_the_network_with_zeros_for_the_rest() -> None:
    check_space(Sliding(), torch.randn(2, 3, 8, 8))
    traced = trace(Sliding(), torch.randn(2, 3, 8, 8))
    assert any("slides over channels" in note for note in traced.space.notes)


@pytest.mark.parametrize(("as_tensor", "kwargs"), [(False, {}), (True, {"dtype": torch.float32, "tolerance": 1e-4})])
def test_a_scale_computed_from_a_width_is_told(as_tensor: bool, kwargs: dict[str, Any]) -> None:
    """As a tensor, it is the correlation volume of RAFT."""
    traced = check_space(Attention(as_tensor), torch.randn(2, 7, 6), **kwargs)
    operator = "lift_fresh" if as_tensor else "div"
    assert any(f"a number follows a width: {operator}" in note for note in traced.space.notes)
