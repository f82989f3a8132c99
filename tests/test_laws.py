"""The laws hold for adversarial and for real networks; and each law can fail."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import adversarial_layers
import adversarial_streams
import adversarial_wiring
import pytest
import torch
from adversarial import Basic, Case, Net, conv_bn, head, images
from torch import Tensor, nn

import tas.tracing
from search_spaces.cifar_resnet import resnet20, resnet56
from tas import cost, sampling, supernet
from tas.distribution import Pick
from tas.errors import BadNetwork, Infeasible
from tas.extraction import extract
from tas.space import Budget, Factor, Term
from tas.testing import check_space, laws
from tas.tracing import Traced, costs, factors, folding, units
from tas.tracing.folding import Fold

# How many widths and depths must be found: a network that is kept whole would pass every law.
FOUND = {
    "tied_square_conv_used_twice": (1, 0),
    "square_conv_in_a_stream": (1, 2),
    "in_place_adds_and_relus": (1, 2),
    "out_arguments": (1, 0),
    "block_used_twice": (3, 1),
    "one_norm_after_two_convs": (1, 0),
    "weights_shared_by_two_blocks": (3, 1),
    "weight_shared_with_transposed_use": (1, 0),
    "pre_activation": (7, 2),
    "unrectified_trunk": (1, 1),
    "scaled_shortcut": (1, 1),
    "squeeze_and_excite": (5, 1),
    "excited_branch": (3, 1),
    "dropout_and_stochastic_depth": (3, 1),
    "blocks_with_arguments": (3, 1),
    "blocks_in_a_comprehension": (4, 2),
    "zero_initialised_branches": (3, 1),
    "layer_scale": (3, 1),
    "stages_with_projections": (6, 2),
    "option_a": (3, 2),
    "parallel_blocks": (3, 2),
    "run_with_a_reader_in_between": (3, 1),
    "block_fed_by_a_dead_block_of_another_run": (4, 2),
    "one_block_has_an_inner_stream": (5, 2),
    "conv_shared_by_blocks_of_two_runs": (3, 2),
    "readers_behind_and_before_an_operator": (2, 0),
    "one_layer_reads_with_and_without_the_factor": (2, 0),
    "depthwise_multiplier_with_bias": (3, 0),
    "depthwise_with_bias_between_norms": (2, 0),
    "grouped": (5, 0),
    "grouped_with_bias_without_norm": (4, 0),
    "transposed": (3, 0),
    "transposed_grouped": (4, 0),
    "transposed_depthwise": (2, 0),
    "norm_and_activation_in_one": (3, 0),
    "layer_norm_of_the_second_dimension": (2, 0),
    "norm_without_affine": (2, 0),
    "norm_with_cumulative_statistics": (2, 0),
    "norm_without_statistics": (2, 0),
    "instance_norm": (2, 0),
    "no_norm_with_bias": (2, 0),
    "norm_before_relu_before_conv": (2, 0),
    "two_norms_in_a_row": (2, 0),
    "group_norm": (2, 0),
    "parametric_relu": (2, 0),
    "sigmoid_before_conv": (3, 0),
    "shift_between_norm_and_conv": (3, 0),
    "hard_clamps": (3, 0),
    "reflect_padding_and_dilation": (3, 0),
    "one_dimension": (2, 0),
    "three_dimensions": (2, 0),
    "flatten_with_spatial": (2, 0),
    "channels_last_flatten": (1, 0),
    "conv_after_unflatten": (2, 0),
    "functional_convolution": (2, 0),
    "weight_normed": (2, 0),
    "weight_standardised": (2, 0),
    "spectrally_normed": (2, 0),
    "computed_weights": (4, 0),
    "computed_weight_with_a_shortcut_inside": (1, 0),
    "one_layer_of_computed_weights_called_with_and_without_the_factor": (2, 0),
    "modulated": (2, 0),
    "bias_with_another_use": (1, 0),
    "pruned_residual_blocks": (1, 0),
    "pruned_residual_blocks_with_a_norm": (1, 0),
    "one_parameter_scales_a_branch_along_both_dimensions": (1, 1),
    "maps_between_channels_given_to_a_computed_layer": (0, 0),
    "layer_that_appends_to_a_list_it_is_given": (2, 0),
    "standardised_with_a_gain": (2, 0),
    "norm_inside_every_head": (1, 0),
    "linear_network": (2, 0),
    "local_response": (2, 0),
    "channel_softmax_and_layer_norm": (2, 0),
    "batch_of_three": (2, 0),
    "sizes_equal_to_channels": (2, 0),
    "bilinear": (2, 0),
    "einsum_head": (1, 0),
    "parameter_without_gradient": (2, 0),
    "parameter_never_read": (1, 0),
    "unused_branch": (1, 0),
    "several_outputs": (1, 0),
    "tuple_of_feature_maps": (1, 0),
    "several_inputs": (1, 0),
    "concatenation_with_itself": (2, 0),
    "concatenation_behind_norms": (4, 0),
    "dense_block": (4, 0),
    "channel_slices": (2, 0),
    "chunk": (2, 0),
    "split_with_listed_sizes": (1, 0),
    "gated_linear_unit": (2, 0),
    "product_of_two_branches": (1, 0),
    "maximum_and_where": (1, 0),
    "negative_dims": (2, 0),
    "decoder": (3, 0),
    "channel_shuffle": (1, 0),
    "shuffle_of_two_halves": (4, 0),
    "pixel_shuffle": (2, 0),
    "modules_in_a_plain_list": (3, 2),
    "unregistered_layers": (0, 0),
    "lambda_layers": (2, 0),
    "loops_and_slice_assignment": (2, 0),
    "channel_slice_assignment": (1, 0),
    "in_place_on_a_slice_of_channels": (2, 0),
    "shift_of_channels": (1, 0),
    "constant_from_outside": (1, 0),
    "buffer_table": (2, 0),
    "dot_with_data": (1, 1),
    "width_from_a_hard_coded_number": (1, 0),
    "normalised_features": (1, 0),
    "mean_over_channels": (2, 0),
    "sum_over_channels": (1, 0),
    "maxout": (1, 0),
    "stack_and_mix": (3, 0),
    "relative_positions": (3, 0),
    "attention_by_einsum": (4, 0),
    "nothing_to_search": (0, 0),
    "channels_last_memory": (2, 0),
    "dynamic_convolution": (4, 0),
}


def cases() -> dict[str, Callable[[], Case]]:
    modules = (adversarial_streams, adversarial_layers, adversarial_wiring)
    found = [f for m in modules for f in vars(m).values() if inspect.isfunction(f) and f.__module__ == m.__name__]
    return {f.__name__: f for f in found if inspect.signature(f).return_annotation == "Case"}


def test_every_adversarial_network_is_checked() -> None:
    assert cases().keys() == FOUND.keys()


@pytest.mark.parametrize("name", FOUND)
def test_laws_hold_for_adversarial_networks(name: str) -> None:
    torch.manual_seed(0)
    case = cases()[name]()
    space = check_space(case.network, case.inputs).space
    kinds = [choice.kind for choice in space.choices]
    assert (kinds.count("width"), kinds.count("depth")) == FOUND[name]


@pytest.mark.parametrize("shortcut", ["A", "B", "tas"])
def test_laws_hold_for_cifar_resnet20(shortcut: str) -> None:
    space = check_space(resnet20(shortcut=shortcut), images(size=16), architectures=1).space
    assert cost.macs(space, space.smallest()) <= 0.25 * cost.macs(space, space.largest())
    assert [choice.size for choice in space.choices if choice.kind == "depth"] == [3, 2, 2]


@pytest.mark.slow
def test_laws_hold_for_cifar_resnet56() -> None:
    check_space(resnet56(), images(size=16), architectures=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "vgg16_bn", "densenet121", "squeezenet1_0"],
)
def test_laws_hold_for_torchvision(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    space = check_space(getattr(torchvision.models, name)(), images(size=64), architectures=2).space
    assert cost.macs(space, space.smallest()) <= 0.25 * cost.macs(space, space.largest())


# -- each law can fail -------------------------------------------------------------------------------------------------


def residual() -> Case:
    torch.manual_seed(0)
    layers = [conv_bn(3, 8), nn.ReLU(), Basic(8, 8), Basic(8, 8), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU()]
    return Case(nn.Sequential(*layers, head(6)), images())


def fails(law: str, case: Case | None = None) -> None:
    case = case or residual()
    with pytest.raises(AssertionError, match=f"^law {law}"):
        check_space(case.network, case.inputs)


def wrapped(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace owner.name by change(original result, arguments)."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: change(original(*a, **k), *a))


def test_law_1_fails_when_a_layer_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, costs, "macs", lambda layers, *_: layers[1:])
    fails("1")


def test_law_1_fails_when_parameters_are_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, costs, "params", lambda layers, *_: layers + layers[:1])
    fails("1")


def test_law_2_fails_when_a_power_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """w^2 counted as w x size: right for the largest architecture only."""

    def flat(terms: tuple[Term, ...], size: Any, *_: Any) -> tuple[Term, ...]:
        found = []
        for term in terms:
            squares = [f for f in term.factors if f.kind == "power" and f.number == 2]
            factors = tuple(Factor(f.choice, "power", 1) if f in squares else f for f in term.factors)
            found.append(Term(term.coefficient * 8 ** len(squares), factors))
        return tuple(found)

    wrapped(monkeypatch, costs, "terms", flat)
    fails("2", adversarial_streams.square_conv_in_a_stream())


def test_law_2_fails_when_dead_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def alive(terms: tuple[Term, ...], *_: Any) -> tuple[Term, ...]:
        return tuple(Term(t.coefficient, tuple(f for f in t.factors if f.kind == "power")) for t in terms)

    wrapped(monkeypatch, costs, "terms", alive)
    fails("2")


def test_law_3_fails_when_the_supernet_shares_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    case = residual()
    traced = tas.tracing.trace(case.network.double(), case.inputs.double())

    class Sharing(supernet.Supernet):
        def __init__(self, traced: Traced) -> None:
            super().__init__(traced)
            self.network = traced.network
            self._note_tensors()

    monkeypatch.setattr(laws, "Supernet", Sharing)
    with pytest.raises(AssertionError, match=r"^law 3: training a supernet changed"):
        laws.law_3(traced.network, traced, case.inputs.double(), laws.Close(1e-9))


def test_law_4_fails_when_other_units_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student keeps the last units, the supernet the first."""

    def extract_last(source: Any, architecture: Any, keep: Any = None) -> nn.Module:
        traced = source if isinstance(source, Traced) else source.current()
        return extract(source, architecture, {n: range(s - architecture[n], s) for n, s in traced.sizes.items()})

    monkeypatch.setattr(laws, "extract", extract_last)
    fails("4")


def test_law_4_fails_when_statistics_are_not_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernet.Supernet, "_write_back", lambda *_: None)
    fails("4.*running statistics", adversarial_wiring.concatenation_behind_norms())


def test_law_4_fails_when_a_forgotten_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = supernet.Supernet._as_drawn
    monkeypatch.setattr(supernet.Supernet, "_as_drawn", lambda self, attributes, dead: original(self, attributes, []))
    fails("4")


def test_law_5_fails_when_moments_are_products_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[w]^2 instead of E[w^2]."""

    def naive(space: Any, probabilities: Tensor, measure: str = "macs") -> Tensor:
        total = probabilities.new_zeros(())
        sizes = {
            c.name: (torch.tensor(c.candidates) * probabilities[k, : len(c.candidates)]).sum()
            for k, c in enumerate(space.choices)
        }
        for layer in (c for c in space.costs if c.measure == measure):
            for term in layer.terms:
                product = torch.as_tensor(float(term.coefficient)).double()
                for factor in term.factors:
                    row = probabilities[space.position[factor.choice]]
                    values = space.choices[space.position[factor.choice]].candidates
                    alive = sum(row[k] for k, value in enumerate(values) if value > factor.number)
                    product = product * (sizes[factor.choice] ** factor.number if factor.kind == "power" else alive)
                total = total + product
        return total

    monkeypatch.setattr(cost, "expected", naive)
    monkeypatch.setattr(sampling.cost, "expected", naive)
    fails("5: expected", adversarial_streams.square_conv_in_a_stream())


def test_law_5_fails_when_the_expectation_has_no_gradient_of_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cost.expected

    def cut_off(space: Any, probabilities: Tensor, measure: str = "macs") -> Tensor:
        return original(space, torch.cat([probabilities[:1].detach(), probabilities[1:]]), measure)

    monkeypatch.setattr(cost, "expected", cut_off)
    fails("5: gradient")


def test_law_6_fails_when_one_tensor_is_not_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tas.tracing._shared

    def forgetful(tensors: Any) -> Any:
        rows = original(tensors)
        return {name: (None,) if name == "5.running_mean" else dims for name, dims in rows.items()}

    case = residual()
    traced = tas.tracing.trace(case.network.double(), case.inputs.double())
    monkeypatch.setattr(tas.tracing, "_shared", forgetful)
    broken = Traced(**{**vars(traced), "rows": forgetful({n: list(r) for n, r in traced.rows.items()})})
    traced.network[5].running_mean.copy_(torch.arange(6))
    orders = {c.name: list(range(c.size))[::-1] for c in traced.space.choices if c.kind == "width"}
    with pytest.raises(AssertionError, match=r"^law 6"):
        laws.law_6(traced.network, broken, case.inputs.double(), laws.Close(1e-9), orders)
    laws.law_6(traced.network, traced, case.inputs.double(), laws.Close(1e-9), orders)


class Edges(nn.Module):
    """Messages along the edges of a graph: MACs by node, of which there are others than edges."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.edge, self.out = nn.Linear(7, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, index: Tensor, features: Tensor) -> Tensor:
        h = self.node(x)
        messages = torch.relu(h[index[0]] + self.edge(features))
        return self.out(torch.relu(h + torch.zeros_like(h).index_add(0, index[1], messages)))


def test_costs_by_example_may_end_in_a_half() -> None:
    """12 edges by 8 nodes: 15.5 MACs a unit. What is reported is a budget that can be met, one less is not."""
    torch.manual_seed(0)
    graph = torch.randn(8, 7), torch.randint(0, 8, (2, 12)), torch.randn(12, 3)
    space = check_space(Edges(), graph, architectures=1).space
    for width in space.choices[0].candidates:
        architecture = space.architecture([space.choices[0].candidates.index(width)])
        macs = cost.macs(space, architecture)
        assert macs == math.ceil(15.5 * width - 0.5)
        indices = torch.tensor(space.indices(architecture))
        assert cost.feasible(space, indices, Budget((("macs", macs),)))
        assert not cost.feasible(space, indices, Budget((("macs", macs - 1),)))


def ending_in(run: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda m, x: run(m.h(m.a(x))), a=conv_bn(3, 8), h=head(8, 1))


def test_weights_are_drawn_again_where_a_last_relu_gives_zeros() -> None:
    torch.manual_seed(0)
    network = ending_in(lambda x: (x.abs().sqrt() + 10 * x).relu())  # 0 at every second draw
    for seed in range(4):
        check_space(network, images(), architectures=1, seed=seed)


def test_outputs_that_are_always_zero_are_named() -> None:
    with pytest.raises(BadNetwork, match=r"20 draws of random weights all of them are 0 \(behind a last ReLU\?\)"):
        check_space(ending_in(lambda x: (x - 100).relu()), images())


def test_law_7_fails_when_samples_exceed_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(space: Any, generator: torch.Generator, count: int, budget: Any = None) -> Tensor:
        return torch.tensor(space.indices(space.largest())).expand(count, -1)

    monkeypatch.setattr(sampling, "sample_many", careless)
    fails("7: a sampled")


def test_law_7_fails_when_an_impossible_budget_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cost.budget

    def lenient(space: Any, **limits: Any) -> Any:
        try:
            return original(space, **limits)
        except Infeasible:
            return None

    monkeypatch.setattr(cost, "budget", lenient)
    fails("7: below")


def test_law_8_fails_when_the_factor_sits_before_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the convolution instead of gamma and beta: normalised away in train mode, shifted by beta in eval."""

    def before(folded: Any, *_: Any) -> Any:
        folds, unmixable = folded
        moved = {"1.weight": "0.weight", "5.weight": "4.weight", "5.bias": "4.bias"}
        return {c: Fold(tuple((moved.get(n, n), d) for n, d in fold.sites)) for c, fold in folds.items()}, unmixable

    wrapped(monkeypatch, tas.tracing, "fold_widths", before)
    fails("8")


def test_law_8_fails_when_a_factor_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, tas.tracing, "fold_widths", lambda folded, *_: (dict.fromkeys(folded[0], Fold()), folded[1]))
    fails("8")


def test_law_8_fails_when_the_mask_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, supernet, "extension_mask", lambda factor, *_: factor.roll(1))
    fails("8")


def test_law_8_fails_when_depth_weights_are_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks: the first is kept by depths 1 and 2, the second by depth 2 alone."""
    original = supernet.Supernet._scale_branches

    def single(self: Any, tensors: Any, picks: Any) -> None:
        original(self, tensors, {n: p if p.weights is None else Pick(p.values, p.weights**2) for n, p in picks.items()})

    monkeypatch.setattr(supernet.Supernet, "_scale_branches", single)
    fails("8")


def test_law_8_fails_when_the_weights_of_a_pick_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, supernet, "extension_mask", lambda factor, *_: factor.detach())
    fails("8: gradient")


def test_a_choice_that_changes_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks for unread layers and for factors that nothing takes, `dead` could be searched."""
    monkeypatch.setattr(tas.tracing.Recorder, "freeze_unneeded", lambda *_: None)
    wrapped(monkeypatch, folding, "_fold_width", lambda found, *_: (found[0], "") if not found[0].sites else found)
    fails("8 is vacuous", adversarial_wiring.unused_branch())


def test_units_of_a_slice_taken_for_alike_break_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units.Recorder, "apart", property(lambda self: [], lambda self, value: None), raising=False)
    fails("6", adversarial_wiring.in_place_on_a_slice_of_channels())


def test_a_parameter_with_a_second_use_breaks_law_8_when_it_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(monkeypatch, factors, "uses_of", lambda uses, *_: type(uses)(set))
    fails("8", adversarial_streams.weight_shared_with_transposed_use())


def test_laws_hold_where_the_halves_of_a_grouped_layers_input_share_a_choice() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.grouped = nn.Conv2d(16, 16, 3, groups=2)
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(self.grouped(torch.cat([x, x.sigmoid()], 1)).mean((2, 3)))

    check_space(Halves(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
