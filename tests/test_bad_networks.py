"""What cannot be searched is told in one line or kept; it never becomes a wrong student."""

import functools
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from adversarial import Basic, Net, conv, conv_bn, head, images
from torch import Tensor, nn
from torch.ao import quantization

import tas
from tas.errors import BadNetwork
from tas.initialization import require_same
from tas.testing import check_space
from tas.tracing import Traced
from tas.tracing.fitness import check_devices


def net(run: Callable[..., Any], **members: Any) -> Net:
    return Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8), **members)


def plain() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), head(8))


def refused(network: nn.Module, inputs: Any = None) -> str:
    with pytest.raises(BadNetwork) as problem:
        tas.trace(network, images() if inputs is None else inputs)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def sound(network: nn.Module, inputs: Any = None) -> Traced:
    """The trace, after its smallest student has been compared with the supernet."""
    traced = tas.trace(network, images() if inputs is None else inputs)
    require_same(traced, traced.space.smallest(), tas.extract(traced, traced.space.smallest()))
    return traced


def kept(traced: Traced) -> dict[str, str]:
    return {size.name: size.reason for size in traced.space.kept}


def names(traced: Traced) -> list[str]:
    return [choice.name for choice in traced.space.choices]


# -- the forward -------------------------------------------------------------------------------------------------------


def test_a_forward_that_raises() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        raise ValueError("no such thing\nand more")

    told = refused(net(run))
    assert told == "the network must run on the example inputs (2, 3, 6, 6), got ValueError: no such thing"


class Result:
    """An output that torch does not know how to look into."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("run", "got"),
    [
        (lambda m, x: None, "got NoneType"),
        (lambda m, x: Result(m.h(m.a(x))), "got Result"),
        (lambda m, x: [1.5, "text"], "got [1.5, 'text']"),
    ],
)
def test_a_forward_without_tensors(run: Callable[..., Any], got: str) -> None:
    told = refused(net(run))
    assert told == f"the network must give tensors, alone or in tuples, lists, dicts and dataclasses; {got}"


def add_noise(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.h(m.b((x + torch.randn_like(x)).relu()))


def drop(m: Any, x: Tensor) -> Tensor:
    return m.h(m.b(nn.functional.dropout(m.a(x), 0.5, training=True).relu()))


@pytest.mark.parametrize(("run", "operator"), [(add_noise, "randn_like"), (drop, "bernoulli_")])
def test_what_random_numbers_of_torch_reach_in_eval_mode_is_kept(run: Callable[..., Any], operator: str) -> None:
    traced = sound(net(run))
    assert names(traced) == ["b.0"]
    assert (
        f"random numbers are drawn in eval mode: {operator} in the network (test_bad" in kept(traced)["a.0.weight[0]"]
    )


def test_random_numbers_from_elsewhere_are_told() -> None:
    own, plain, numpy = torch.Generator().manual_seed(0), random.Random(0), np.random.default_rng(0)  # no luck
    sources: list[Callable[[Tensor], Any]] = [
        lambda x: plain.random(),
        lambda x: torch.from_numpy(numpy.random(x.shape)).float(),
        lambda x: torch.randn(x.shape, generator=own),
    ]
    for source in sources:
        told = refused(net(lambda m, x, source=source: m.h(m.b(m.a(x) + source(x[:, :1])))))
        assert "the same output for the same input in eval mode, two runs differ" in told


def test_a_forward_that_counts_its_calls() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        x = m.a(x)
        return m.h(m.b(x) if m.calls % 2 else x)

    assert "two runs differ" in refused(net(run, calls=0))


def test_a_forward_that_counts_its_calls_elsewhere() -> None:
    calls: list[int] = []
    beside = SimpleNamespace(calls=0)

    def outside(m: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return m.h(m.b(m.a(x)) * (1 + len(calls) % 2))

    def in_an_object(m: Any, x: Tensor) -> Tensor:
        m.beside.calls += 1
        return m.h(m.b(m.a(x)) * (1 + m.beside.calls % 2))

    def in_a_list(m: Any, x: Tensor) -> Tensor:
        m.list.append(1)
        return m.h(m.b(m.a(x)) * len(m.list))

    def in_an_order(m: Any, x: Tensor) -> Tensor:
        factor = m.factors.pop(key := next(iter(m.factors)))
        m.factors[key] = factor
        return m.h(m.b(m.a(x)) * factor)

    def in_its_output(m: Any, x: Tensor) -> Tensor:
        m.total.add_(m.h(m.b(m.a(x))).detach())
        return m.total

    networks = (net(outside), net(in_an_object, beside=beside), net(in_a_list, list=[]))
    inside = (net(in_an_order, factors={"one": 1.0, "two": 2.0}), net(in_its_output, total=torch.zeros(2, 5)))
    for network in (*networks, *inside):
        assert "two runs differ" in refused(network)


def test_the_whole_network_runs_once_more_only_where_a_forward_leaves_something() -> None:
    """Before it is recorded, then, and in train mode if its code asks for it; once more if it left something."""
    sizes: list[int] = []

    def runs(m: Any, x: Tensor) -> Tensor:
        sizes.append(sum(p.numel() for p in m.parameters()))
        if hasattr(m, "last"):
            m.last = x.mean()
        return m.h(m.b(m.a(x)))

    @functools.lru_cache
    def table(size: int) -> Tensor:
        return torch.arange(size).sin()

    def fills_a_table(m: Any, x: Tensor) -> Tensor:
        return runs(m, x) + table(x.shape[-1]).sum() * 0

    def asks(m: Any, x: Tensor) -> Tensor:
        return fills_a_table(m, x + int(m.training))

    times = []
    for network in (net(runs), net(runs, last=None), net(fills_a_table), net(asks)):
        tas.trace(network, images())
        times.append(sizes.count(max(sizes)))
        sizes.clear()
        table.cache_clear()
    assert times == [2, 3, 2, 3]


def test_a_forward_that_builds_or_replaces_layers() -> None:
    def builds(m: Any, x: Tensor) -> Tensor:
        if not hasattr(m, "late"):
            m.late = conv_bn(8, 8)
        return m.h(m.late(m.a(x)))

    def replaces(m: Any, x: Tensor) -> Tensor:
        x = m.h(m.b(m.a(x)))
        m.b = conv_bn(8, 8)
        return x

    first = net(builds)
    told = refused(first)
    assert "must leave the network's modules and parameters as they are, it changed module 'late' and 5 more" in told
    assert "run the network once" in told
    assert not hasattr(first, "late")  # the copy was run
    assert "it changed module 'b'" in refused(net(replaces))
    first(images())
    assert names(sound(first)) == ["a.0", "h.2.in1"]  # the head stands before the layer whose channels it reads


# -- what the network holds --------------------------------------------------------------------------------------------


def test_lazy_modules() -> None:
    lazy = nn.Sequential(conv_bn(3, 8), nn.Flatten(), nn.LazyLinear(5))
    assert refused(lazy).startswith("'2.weight' has no shape yet (a lazy module): run the network once")
    assert "'1.weight' has no shape yet" in refused(nn.Sequential(conv(3, 8), nn.LazyBatchNorm2d(), head(8)))
    lazy(images())
    assert names(sound(lazy)) == ["0.0"]


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.quant, self.c, self.dequant = (
            conv(3, 8),
            quantization.QuantStub(),
            conv(8, 8),
            quantization.DeQuantStub(),
        )
        self.b, self.h = conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.b(self.dequant(self.c(self.quant(self.a(x).relu())))).relu())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_sizes_that_reach_quantised_layers_are_kept() -> None:
    network: Any = Quantized().eval()
    for part in (network.quant, network.c, network.dequant):
        part.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(network, inplace=True)
    network(images())
    traced = sound(quantization.convert(network))
    assert names(traced) == ["b.0"]
    assert "tas has no handler for quantize_per_tensor: quantize_per_tensor in quant" in kept(traced)["a.weight[0]"]
    layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5))
    traced = sound(quantization.quantize_dynamic(layers, {"3"}, dtype=torch.qint8))
    assert not names(traced)
    assert "tas has no handler for linear_dynamic" in kept(traced)["1.weight[0]"]


def test_another_device_than_the_inputs_lie_on() -> None:
    assert "tensors on the meta device hold no numbers" in refused(plain().to("meta"))
    assert "tensors on the meta device hold no numbers" in refused(plain(), images().to("meta"))


def test_devices_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two devices that hold numbers; one machine for tests has one."""
    network, inputs = nn.Linear(4, 3), torch.zeros(2, 4)
    monkeypatch.setattr(Tensor, "device", property(lambda t: torch.device("cpu" if t is inputs else "cuda:0")))
    with pytest.raises(BadNetwork, match="the network lies on cuda:0, the example inputs on cpu: move one"):
        check_devices(network, (inputs,), {})


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (images(batch=1), "need a batch of 2 or more (the first dimension of the first tensor), got (1, 3, 6, 6)"),
        (3, "example inputs must hold a tensor, got 3"),
        ((), "example inputs must hold a tensor, got nothing"),
    ],
)
def test_example_inputs_without_a_batch(inputs: Any, told: str) -> None:
    assert told in refused(plain(), inputs)


def test_laws_on_a_network_that_overflows_in_float64() -> None:
    """As masks are in CANINE of transformers: 0 x the least number of the dtype, worked out in float32."""

    def run(m: Any, x: Tensor) -> Tensor:
        mask = torch.zeros(8) * torch.tensor(torch.finfo(x.dtype).min, dtype=torch.float32)
        return m.h(m.b(m.a(x) + mask[:, None, None].to(x.dtype)))

    with pytest.raises(BadNetwork, match=r"in float64 the network gives NaN: check it in float32"):
        check_space(net(run), images())
    check_space(net(run), images(), architectures=1, dtype=torch.float32, tolerance=1e-4)


def test_laws_on_a_network_that_does_not_run_in_float64() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.b(m.a(x)) @ torch.eye(6))

    with pytest.raises(BadNetwork, match=r"as it was given it runs: check it in float32 \(dtype="):
        check_space(net(run), images())
    check_space(net(run), images(), architectures=1, dtype=torch.float32, tolerance=1e-4)
    with pytest.raises(BadNetwork) as problem:
        check_space(net(lambda m, x: m.h(x)), images())
    assert "float32" not in str(problem.value)


def test_laws_on_a_network_that_cannot_be_trained() -> None:
    def changes_in_place(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).sigmoid()
        return m.h(m.b(y)) + y.mul_(2).mean()

    def needs_targets(m: Any, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if m.training and targets is None:
            raise ValueError("no targets")
        return m.h(m.b(m.a(x)))

    told = "the original itself raises RuntimeError in a backward of train mode: one of the variables needed for"
    with pytest.raises(BadNetwork, match=told):
        check_space(net(changes_in_place), images())
    with pytest.raises(BadNetwork, match="raises ValueError in a forward of train mode: no targets; give example"):
        check_space(net(needs_targets), images())


def test_sizes_of_integer_parameters_are_kept() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.b(torch.einsum("nchw,cd->ndhw", m.a(x), m.table.to(x.dtype))))

    table = nn.Parameter(torch.arange(64).reshape(8, 8), requires_grad=False)
    traced = check_space(net(run, table=table), images(), architectures=1)
    assert names(traced) == ["b.0"]
    assert tas.params(traced.space, traced.space.largest()) == sum(p.numel() for p in traced.network.parameters())


def test_sizes_that_meet_complex_parameters_are_searched() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.b((m.a(x) * m.phase[None, :, None, None]).abs()))

    phase = nn.Parameter(torch.randn(8, dtype=torch.complex128))
    traced = check_space(net(run, phase=phase), images(), architectures=1)
    assert len(names(traced)) == 2
    student = tas.extract(traced, traced.space.smallest())
    assert student.phase.dtype == torch.complex128
    assert len(student.phase) == student.a[0].out_channels < 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_searched_like_single(dtype: torch.dtype) -> None:
    traced = sound(plain().to(dtype), images().to(dtype))
    assert names(traced) == names(tas.trace(plain(), images()))
    assert {p.dtype for p in tas.extract(traced, traced.space.smallest()).parameters()} == {dtype}
    assert "got RuntimeError" in refused(plain().to(dtype))


def test_a_network_that_cannot_be_copied() -> None:
    network = plain()
    network.left = threading.Lock()  # type: ignore[assignment]
    assert refused(network).startswith("the network must be such that it can be copied, got: ")


def test_what_spreads_a_network_over_devices() -> None:
    assert refused(nn.DataParallel(plain())) == (
        "a network is traced without what spreads it over devices, the network is a DataParallel: put what that wraps "
        "in its place, network.module"
    )
    inside = refused(nn.Sequential(nn.DataParallel(conv_bn(3, 8)), head(8)))
    assert "module '0' is a DataParallel: put what that wraps in its place, network.0.module" in inside


def test_distributed_networks(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        told = refused(nn.parallel.DistributedDataParallel(plain()))
    finally:
        dist.destroy_process_group()
    assert "the network is a DistributedDataParallel: put what that wraps in its place, network.module" in told


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_programs_of_torch_jit() -> None:
    told = refused(nn.Sequential(conv_bn(3, 8), torch.jit.script(conv_bn(8, 8)), head(8)))
    assert "module '1' is a program of torch.jit.script or torch.jit.trace: use the module that it was made of" in told
    assert "the network is a program" in refused(torch.jit.trace(plain().eval(), images()))


def test_a_class_in_the_place_of_a_network() -> None:
    assert refused(nn.Conv2d) == "a network is an instance of torch.nn.Module, got the class Conv2d: call it"
    assert refused(torch.relu).startswith("a network is an instance of torch.nn.Module, got a ")
