"""What channels are carried through: each operator between two convolutions, with the laws; and what keeps them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adversarial import Net, conv_bn, head, images
from torch import Tensor, nn
from torch.nn import functional as F

from tas.extraction import extract
from tas.testing import check_space
from tas.tracing import trace

Run = Callable[[Any, Tensor], Tensor]


def between(run: Run, channels: int = 8, **members: Any) -> Net:
    """conv, `run` from 8 channels to `channels`, conv, head."""
    torch.manual_seed(0)
    parts = {"a": conv_bn(3, 8), "b": conv_bn(channels, 8), "h": head(8)}
    return Net(lambda m, x: m.h(m.b(run(m, m.a(x))).relu()), **parts, **members)


def weight(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def pruned(m: Any, x: Tensor) -> Tensor:
    """The nine tokens with the highest scores, as a picture again."""
    best = m.score(x).flatten(1).topk(9, 1).indices
    kept = tokens(x).gather(1, best[..., None].expand(-1, -1, x.shape[1]))
    return kept.transpose(1, 2).reshape(2, -1, 3, 3)


def global_filter(m: Any, x: Tensor) -> Tensor:
    """Rao et al. 2021: a learned complex factor a channel and frequency."""
    return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(m.w), s=(6, 6), norm="ortho")


def spectral_convolution(m: Any, x: Tensor) -> Tensor:
    """Li et al. 2021: a complex matrix between channels at each frequency."""
    return torch.fft.irfft2(torch.einsum("bchw,cdhw->bdhw", torch.fft.rfft2(x), m.w), s=(6, 6))


def transformed(m: Any, x: Tensor) -> Tensor:
    """Jaderberg et al. 2015."""
    grid = F.affine_grid(m.t(x.mean((2, 3))).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def voxels(m: Any, x: Tensor) -> Tensor:
    x = F.pad(x[:, :, None].repeat(1, 1, 3, 1, 1), (1, 1, 1, 1, 1, 1), "replicate")
    return F.interpolate(x, scale_factor=2, mode="trilinear").mean(2)


def picked_per_row(m: Any, x: Tensor) -> Tensor:
    return x.gather(-1, torch.tensor([0, 1, 2]).expand(2, x.shape[1], 6, 3))


def summed_pairs(m: Any, x: Tensor) -> Tensor:
    index = torch.tensor([0, 0, 1, 1, 2, 2]).view(1, 1, 6, 1).expand_as(x)
    return torch.zeros_like(x).scatter_add(2, index, x)


def diagonals(m: Any, x: Tensor) -> Tensor:
    return torch.diag_embed(x.diagonal(dim1=2, dim2=3)) + x.tril() - x.triu(1)


def code_book(m: Any, x: Tensor) -> Tensor:
    """van den Oord et al. 2017: soft instead of hard, so that it has gradients."""
    near = (-torch.cdist(tokens(x), m.codes)).softmax(-1)
    return (near @ m.codes).transpose(1, 2).reshape(x.shape)


def losses(m: Any, x: Tensor) -> Tensor:
    y, p = x.roll(1, 2), x.roll(1, 2).sigmoid()
    whole = F.mse_loss(x, y) + F.smooth_l1_loss(x, y, reduction="sum") + F.huber_loss(x, y) + F.l1_loss(x, y)
    return x * (whole + F.binary_cross_entropy(x.sigmoid(), p) + F.binary_cross_entropy_with_logits(x, p))


FREE: dict[str, tuple[Run, int, dict[str, Any]]] = {
    "cumsum": (lambda m, x: x.cumsum(-1), 8, {}),
    "cumprod": (lambda m, x: x.cumprod(-1), 8, {}),
    "cummax": (lambda m, x: x.cummax(2).values, 8, {}),
    "sort": (lambda m, x: x.sort(-1).values, 8, {}),
    "topk": (lambda m, x: x.flatten(2).topk(9).values.reshape(2, -1, 3, 3), 8, {}),
    "median": (lambda m, x: x - x.median(-1, keepdim=True).values, 8, {}),
    "kthvalue": (lambda m, x: x.kthvalue(3, -1, keepdim=True).values, 8, {}),
    "quantile": (lambda m, x: x - x.flatten(2).quantile(0.5, -1)[..., None, None], 8, {}),
    "flip of channels": (lambda m, x: torch.cat([x, x.flip(1)], 1), 16, {}),
    "roll, rot90": (lambda m, x: x.roll(1, 2).rot90(1, (2, 3)), 8, {}),
    "gather": (picked_per_row, 8, {}),
    "tokens": (pruned, 8, {"score": nn.Conv2d(8, 1, 1)}),
    "take_along_dim": (lambda m, x: x.take_along_dim(x.argsort(-1), -1), 8, {}),
    "scatter": (lambda m, x: torch.zeros_like(x).scatter(-1, x.argsort(-1), x), 8, {}),
    "scatter_add": (summed_pairs, 8, {}),
    "index_add": (lambda m, x: torch.zeros_like(x).index_add(2, torch.tensor([0, 1, 2, 3, 4, 0]), x), 8, {}),
    "index_fill": (lambda m, x: x.index_fill(2, torch.tensor([0, 1]), 0.5), 8, {}),
    "slice_scatter": (lambda m, x: x.slice_scatter(x[:, :, :2] * 2, 2, 1, 3).select_scatter(x[:, :, 0], 2, 1), 8, {}),
    "diagonal": (diagonals, 8, {}),
    "cross": (lambda m, x: torch.linalg.cross(x[..., :3], x[..., 3:]), 8, {}),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(2, 1), 16, {}),
    "logsigmoid": (lambda m, x: F.logsigmoid(x), 8, {}),
    "aminmax": (lambda m, x: x - x.detach().aminmax(dim=-1, keepdim=True).min + x.nansum((2, 3), keepdim=True), 8, {}),
    "unpool": (lambda m, x: nn.MaxUnpool2d(2)(*F.max_pool2d(x, 2, return_indices=True)), 8, {}),
    "voxels": (voxels, 8, {}),
    "losses": (losses, 8, {}),
    "code book": (code_book, 8, {"codes": weight(6, 8)}),
    "bilinear": (lambda m, x: m.two(x.mean((2, 3)), x.amax((2, 3)))[..., None, None], 8, {"two": nn.Bilinear(8, 8, 8)}),
    "fft": (lambda m, x: torch.fft.ifft2(torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3))).abs(), 8, {}),
    "real pairs": (lambda m, x: torch.view_as_real(torch.fft.rfft2(x)).mean(-1), 8, {}),
    "complex": (lambda m, x: torch.complex(x, x.roll(1, 2)).abs(), 8, {}),
    "global filter": (global_filter, 8, {"w": weight(8, 6, 4, 2)}),
    "spectral convolution": (spectral_convolution, 8, {"w": weight(8, 8, 6, 4, dtype=torch.cfloat)}),
    "matrices": (lambda m, x: torch.matrix_exp(x * 0.1) + torch.linalg.solve(m.w, x), 8, {"w": weight(6, 6)}),
    "transformer of pictures": (transformed, 8, {"t": nn.Linear(8, 6)}),
    "local response norm": (lambda m, x: F.local_response_norm(x, 3), 8, {}),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_before_the_operator_are_searched_and_obey_the_laws(name: str) -> None:
    run, channels, members = FREE[name]
    space = check_space(between(run, channels, **members), images(), architectures=1).space
    kept = {kept.name for kept in space.kept}
    assert "a.0.weight[0]" not in kept
    assert "b.0.weight[1]" not in kept


KEPT: dict[str, tuple[Run, str]] = {
    "cumsum": (lambda m, x: x.cumsum(1), "all positions are needed: cumsum in the network"),
    "sort": (lambda m, x: x.sort(1).values, "all positions are needed: sort in the network"),
    "roll": (lambda m, x: x.roll(1, 1), "positions change places: roll in the network"),
    "gather": (
        lambda m, x: x.gather(1, torch.arange(8).flip(0)[None, :, None, None].expand(2, -1, 6, 6)),
        "positions are picked by an index: gather in the network",
    ),
    "prefix": (
        lambda m, x: x.gather(-1, torch.zeros(2, 8, 6, 6, dtype=torch.int64)[:, :7])[:, [0, 0, 1, 2, 3, 4, 5, 6]],
        "only its first positions are picked: gather in the network",
    ),
    "fft": (lambda m, x: torch.fft.fft(x, dim=1).real, "a Fourier transform mixes it: _fft_r2c in the network"),
    "class loss": (
        lambda m, x: x * F.cross_entropy(x, torch.zeros(2, 6, 6, dtype=torch.int64)),
        "classes are picked by an index: nll_loss2d_forward in the network",
    ),
    "mask": (lambda m, x: x * x.masked_select(x > 0).mean(), "picked by a mask: masked_select in the network"),
}


@pytest.mark.parametrize("name", KEPT)
def test_channels_that_an_operator_needs_as_a_whole_are_kept_and_the_reason_names_it(name: str) -> None:
    run, reason = KEPT[name]
    space = check_space(between(run), images(), architectures=1).space
    (told,) = (kept.reason for kept in space.kept if kept.name == "a.0.weight[0]")
    assert told.startswith(f"{reason} (test_operators.py:")


@pytest.mark.parametrize("name", ["losses", "code book", "local response norm"])
def test_what_is_computed_over_channels_is_told(name: str) -> None:
    run, channels, members = FREE[name]
    notes = trace(between(run, channels, **members), images()).space.notes
    assert any(word in note for note in notes for word in ("reduced over", "a distance over", "slides over"))


def test_neighbours_of_a_local_response_norm_keep_their_order() -> None:
    traced = trace(between(lambda m, x: F.local_response_norm(x, 3)), images())
    assert traced.ordered == {"a.0"}


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolutions(groups: int) -> None:
    ops = pytest.importorskip("torchvision.ops")
    layer = ops.DeformConv2d(8, 8, 3, padding=1, groups=groups)
    members = {"offset": nn.Conv2d(8, 18, 3, padding=1), "mask": nn.Conv2d(8, 9, 3, padding=1), "deformed": layer}
    net = between(lambda m, x: m.deformed(x, m.offset(x), m.mask(x).sigmoid()), **members)
    space = check_space(net, images(), architectures=1).space
    kept = {kept.name: kept.reason for kept in space.kept}
    assert not {"deformed.weight[0]", "deformed.weight[1]"} & kept.keys()
    assert kept["offset.weight[0]"].startswith("one position a tap of the kernel: deform_conv2d in deformed")


def test_embedding_bags_have_free_columns() -> None:
    bags = {"e": nn.EmbeddingBag(20, 16, mode="max"), "u": nn.EmbeddingBag(10, 16, mode="sum"), "f": nn.Linear(16, 5)}
    net = Net(lambda m, i, j: m.f((m.e(i) + m.u(j)).relu()), **bags)
    traced = check_space(net, (torch.randint(0, 20, (3, 4)), torch.randint(0, 10, (3, 2))), architectures=1)
    assert [(choice.name, choice.size) for choice in traced.space.choices] == [("e.in1", 16)]


class Decoder(nn.Module):
    """Learned queries that attend to themselves and to what a linear layer makes."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
        self.embed, self.queries = nn.Linear(5, 16), nn.Parameter(torch.randn(4, 16))
        self.decoder, self.out = nn.TransformerDecoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.decoder(self.queries.expand(x.shape[0], -1, -1), self.embed(x)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_embedding_of_a_decoder_with_cross_attention_is_searched(norm_first: bool) -> None:
    space = check_space(Decoder(norm_first), torch.randn(2, 6, 5), architectures=1).space
    assert not [kept for kept in space.kept if kept.size == 16]


class Shuffling(nn.Module):
    """Takes tokens in a random order, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).relu()[:, torch.multinomial(torch.ones(5), 5)]


def test_networks_that_draw_random_numbers_in_eval_mode_are_compared_at_the_same_ones() -> None:
    traced = check_space(Shuffling(), torch.randn(2, 5, 8), architectures=1)
    assert [choice.name for choice in traced.space.choices] == ["a"]


class Reattention(nn.Module):
    """Zhou et al. 2021: maps of all heads mixed, by an einsum that is no matrix product where one head is left."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(24, 72), nn.Linear(24, 5)
        self.mixed = nn.Parameter(torch.randn(heads, heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(2, 5, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        maps = torch.einsum("b h i j, h g -> b g i j", (q @ k.transpose(-1, -2)).softmax(-1), self.mixed)
        return self.out((maps @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads", [1, 4])
def test_a_sum_over_one_head_counts_as_the_product_that_it_is(heads: int) -> None:
    check_space(Reattention(heads), torch.randn(2, 5, 24))


class Tucker(nn.Module):
    """A weight made of three factors by one einsum: a rank of one is summed over midway."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.core, self.v = (nn.Parameter(torch.randn(shape)) for shape in ((20, 6), (6, 5), (16, 5)))
        self.stem, self.head = nn.Linear(3, 16), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("or, rs, is -> oi", self.u, self.core, self.v)
        return self.head(F.linear(self.stem(x), weight).relu())


def test_a_sum_over_one_position_amid_an_einsum_of_several_tensors_is_counted() -> None:
    traced = check_space(Tucker(), torch.randn(2, 3))
    assert [choice.size for choice in traced.space.choices if choice.candidates[0] == 1] == [6, 5]


class EinsumAttention(nn.Module):
    """A scale after an einsum, in a block that can be left out: at one channel a head einsum is made of others."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm, self.qkv, self.out = 4, nn.BatchNorm2d(16), nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.qkv(self.norm(x)).chunk(3, 1))
        maps = (torch.einsum("bhcn,bhcm->bhnm", q, k) / math.sqrt(q.shape[2])).softmax(-1)
        return x + self.out(torch.einsum("bhnm,bhcm->bhcn", maps, v).reshape(b, -1, h, w))


def test_a_scale_in_operators_that_cannot_be_compared_is_told_too() -> None:
    torch.manual_seed(0)
    after = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 1))
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), EinsumAttention(), *after)
    traced = check_space(network, torch.randn(2, 3, 16, 16))
    assert {choice.kind for choice in traced.space.choices} == {"width", "depth"}
    assert [note for note in traced.space.notes if "a number follows a width: div" in note]


def test_attention_that_asks_for_its_own_kernel_is_counted() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    check_space(Net(run, qkv=nn.Linear(6, 36), out=nn.Linear(12, 5)), torch.randn(2, 7, 6), architectures=1)


def test_decisions_about_channels_are_compared_in_the_order_of_the_channels() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        if bool((x > 100).any()):  # a number that the code reads: from there on networks take noted decisions
            return x
        return x * F.one_hot(x.flatten(2).argmax(-1), 36).view(x.shape)

    check_space(between(run), images(), architectures=1)


def attention(scores: Callable[[Any, Tensor, Tensor], Tensor]) -> Net:
    """Four heads of six, with a norm before them."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (m.heads, -1)).transpose(1, 2) for t in m.qkv(m.norm(m.embed(x))).chunk(3, -1))
        return m.out((scores(m, q, k).softmax(-1) @ v).transpose(1, 2).flatten(2))

    parts = {"embed": nn.Linear(5, 24), "norm": nn.LayerNorm(24), "qkv": nn.Linear(24, 72), "out": nn.Linear(24, 3)}
    return Net(run, heads=4, **parts)


def falling(m: Any, q: Tensor, k: Tensor) -> Tensor:
    """Press et al. 2022: how fast far tokens count less is another number in every head."""
    scores, slopes = q @ k.transpose(-1, -2), 2.0 ** -torch.arange(1, q.shape[1] + 1, dtype=q.dtype)
    place = torch.arange(q.shape[2], dtype=q.dtype)
    return scores - slopes[:, None, None] * (place[None] - place[:, None]).abs()


def rotated(m: Any, q: Tensor, k: Tensor) -> Tensor:
    """Su et al. 2021: frequencies by place in the head, computed in the forward."""
    width = q.shape[-1]
    angles = torch.outer(torch.arange(q.shape[2], dtype=q.dtype), 10.0 ** (-torch.arange(0, width, 2) / width).to(q))
    turn = torch.cat([angles, angles], -1)

    def rotary(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * turn.cos() + torch.cat([-b, a], -1) * turn.sin()

    return rotary(q) @ rotary(k).transpose(-1, -2)


def spread(m: Any, q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * torch.linspace(0.5, 1.5, q.shape[1], dtype=q.dtype)[:, None, None]


@pytest.mark.parametrize(("scores", "kept_in_order"), [(falling, ".groups"), (rotated, ""), (spread, ".groups")])
def test_units_that_numbers_by_place_belong_to_keep_their_order(scores: Any, kept_in_order: str) -> None:
    traced = check_space(attention(scores), torch.randn(2, 7, 5), architectures=1)
    if scores is not rotated:  # whole numbers that become real ones are followed no further: all is kept
        assert [name for name in traced.ordered if name.endswith(kept_in_order)]


def test_numbers_that_follow_from_a_width_are_told() -> None:
    notes = trace(attention(spread), torch.randn(2, 7, 5)).space.notes
    assert any("numbers follow a width: linspace" in note for note in notes)
    notes = trace(between(lambda m, x: x / x.shape[1]), images()).space.notes
    assert any("a number follows a width: div" in note for note in notes)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_fraction_of_the_channels_stays_one(parts: int) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        fold = x.shape[1] // parts
        return torch.cat([x[:, :fold].roll(1, -1), x[:, fold:]], 1)

    traced = check_space(between(run), images())
    choices = {choice.name: choice.size for choice in traced.space.choices}
    assert choices["a.0"] == 8 // parts


def test_attention_over_keys_of_another_width() -> None:
    layer = nn.MultiheadAttention(16, 4, kdim=8, vdim=12, batch_first=True)
    parts = {"i": nn.Linear(5, 16), "k": nn.Linear(5, 8), "v": nn.Linear(5, 12), "o": nn.Linear(16, 3)}
    net = Net(lambda m, x: m.o(m.a(m.i(x), m.k(x), m.v(x))[0]), a=layer, **parts)
    traced = check_space(net, torch.randn(2, 6, 5))
    assert not [kept for kept in traced.space.kept if kept.size in (8, 12, 16)]
    small: Any = extract(traced, traced.space.smallest()).a
    assert (small.embed_dim, small.kdim, small.vdim) == tuple(
        weight.shape[1] for weight in (small.q_proj_weight, small.k_proj_weight, small.v_proj_weight)
    )


def test_a_parameter_beside_channels_that_carry_a_factor_is_not_taken_for_one() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.i(x)
        return m.o(torch.cat([h, m.rows], 0)).sum(0) + m.other(h).sum(0)

    parts = {"i": nn.Linear(5, 16), "o": nn.Linear(16, 3), "other": nn.Linear(16, 3)}
    traced = check_space(Net(run, **parts, rows=weight(4, 16)), torch.randn(2, 5), architectures=1)
    assert [choice.size for choice in traced.space.choices] == [4, 16]  # the rows by what their sum is given


class Experts(nn.Module):
    """As in transformers 5: tokens in the order of their experts, a matrix an expert, one product for all of them."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product, self.router = product, nn.Linear(16, 3)
        self.up, self.down = weight(3, 48, 16), weight(3, 16, 24)

    def forward(self, x: Tensor) -> Tensor:
        chosen, order = self.router(x).argmax(-1).sort()
        ends = (chosen == torch.arange(3)[:, None]).sum(1).cumsum(0).int()
        gate, up = self.product(x[order], self.up.transpose(1, 2), ends).chunk(2, -1)
        return x + self.product(F.silu(gate) * up, self.down.transpose(1, 2), ends)[order.argsort()]


def experts(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), Experts(product), nn.Linear(16, 3))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no such product on a CPU")
def test_widths_of_experts_in_one_product_are_searched_in_steps_that_its_kernel_takes() -> None:
    network = experts(lambda x, matrices, ends: F.grouped_mm(x, matrices, offs=ends))
    traced = check_space(network, torch.randn(12, 5), dtype=torch.float32, tolerance=1e-4)  # it takes no float64
    found = {choice.name: choice.candidates for choice in traced.space.choices}
    assert found == {"0": (4, 8, 12, 16), "1.in1": (4, 8, 12, 16, 20, 24)}  # rows of whole 16 bytes
    assert {kept.name: kept.reason.split(":")[0] for kept in traced.space.kept}["1.up[0]"] == "rows are in groups"


def test_widths_of_experts_are_searched_where_transformers_makes_the_product() -> None:
    pytest.importorskip("transformers.integrations.moe")
    network = experts(lambda *given: torch.ops.transformers.grouped_mm_fallback(*given))
    traced = check_space(network, torch.randn(12, 5))
    assert {choice.name: choice.size for choice in traced.space.choices} == {"0": 16, "1.in1": 24}


def test_heads_of_grouped_queries_are_searched_whether_the_code_repeats_keys_or_the_kernel_does() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q = m.q(x).unflatten(-1, (m.heads, m.size)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (m.fewer, m.size)).transpose(1, 2) for f in (m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.out(y.transpose(1, 2).reshape(*x.shape[:2], m.heads * m.size))

    parts = {"q": nn.Linear(5, 24), "k": nn.Linear(5, 12), "v": nn.Linear(5, 12), "out": nn.Linear(24, 3)}
    traced = check_space(Net(run, heads=6, fewer=3, size=4, **parts), torch.randn(2, 7, 5), architectures=2)
    sizes = {choice.name: choice.size for choice in traced.space.choices}
    assert sizes == {"q.groups": 3, "q.inside": 2, "q.inside#2": 4}  # heads of keys, queries for each, and their size


def test_groups_of_a_norm_that_are_heads_go_with_these() -> None:
    """Sun et al. 2023 (retention): every head is normalised on its own."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for f in (m.q, m.k, m.v))
        y = (q @ k.transpose(2, 3) @ v).transpose(1, 2).flatten(2)
        return m.out(m.norm(y.flatten(0, 1)).view_as(y))

    parts = {"q": nn.Linear(5, 12), "k": nn.Linear(5, 12), "v": nn.Linear(5, 12), "norm": nn.GroupNorm(4, 12)}
    traced = check_space(Net(run, heads=4, out=nn.Linear(12, 3), **parts), torch.randn(2, 6, 5), architectures=2)
    assert sorted(choice.size for choice in traced.space.choices) == [3, 3, 4]
    assert extract(traced, traced.space.smallest()).norm.num_groups == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_heads_and_their_size_are_searched_in_attention_of_torch(heads: int, batch_first: bool) -> None:
    """Where its input is not in order in memory, the batch first, torch adds the bias of the projections apart."""
    attention = nn.MultiheadAttention(12, heads, batch_first=batch_first)
    net = Net(lambda m, x: m.o(m.a(*[m.i(x)] * 3)[0]), i=nn.Linear(5, 12), a=attention, o=nn.Linear(12, 3))
    traced = check_space(net, torch.randn(2, 6, 5), architectures=2)
    *own, made = [choice.size for choice in traced.space.choices]
    assert (own, made) == ([12] if heads == 1 else [4, 3], 12)
    small: Any = extract(traced, traced.space.smallest()).a
    assert (small.num_heads, small.embed_dim) == (1, small.head_dim)


def test_a_bias_apart_takes_the_factor_only_with_what_it_is_added_to() -> None:
    """Beside a layer whose channels go on without the bias, and beside what no parameter makes."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.i(x)
        return m.o((h + m.b).relu()) + m.other(h) + m.o((h.sigmoid() + m.b).relu())

    parts = {"i": nn.Linear(5, 16), "o": nn.Linear(16, 3), "other": nn.Linear(16, 3)}
    traced = check_space(Net(run, **parts, b=weight(16)), torch.randn(2, 5))
    assert [choice.size for choice in traced.space.choices] == [16]


def test_heads_are_searched_where_a_module_calls_the_attention_of_torch_itself() -> None:
    """Radford et al. 2021: pictures pooled by attention, with projections of the module's own."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.i(x).flatten(2).permute(2, 0, 1)
        biases = torch.cat([m.q.bias, m.k.bias, m.v.bias])
        projections = {f"{name}_proj_weight": getattr(m, name).weight for name in "qkv"}
        options = {**projections, "use_separate_proj_weight": True, "need_weights": False, "training": m.training}
        sizes = x.shape[-1], m.heads
        layers = None, biases, None, None, False, 0.0, m.out.weight, m.out.bias
        return F.multi_head_attention_forward(x.mean(0, keepdim=True), x, x, *sizes, *layers, **options)[0][0]

    parts = {**{name: nn.Linear(12, 12) for name in "qkv"}, "i": nn.Conv2d(3, 12, 3, 2), "out": nn.Linear(12, 5)}
    traced = check_space(Net(run, heads=4, **parts), images(), architectures=2)
    assert [choice.size for choice in traced.space.choices] == [4]
    assert extract(traced, {"q": 2}).i.out_channels == 6  # type: ignore[union-attr]
