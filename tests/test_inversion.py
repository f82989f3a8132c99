"""Images from batch-norm statistics: the losses by hand, and what the images are good for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_task import TinyNet, write_data
from torch import Tensor, nn
from torch.nn import functional

import tas
from tas.calibration import recalibrate
from tas.data import Data, InMemory, Split, load, noise
from tas.distillation.inversion import (
    Settings,
    bounds_of,
    divergence,
    invert,
    loss,
    statistics_distances,
    total_variation,
)
from tas.distillation.synthesis import beside, resemblance
from tas.errors import BadData, BadNetwork, BadRecipe
from tas.objectives import default_objective
from tas.training import TrainingPlan, evaluate, train

SHAPE, MEAN, STD = (1, 8, 8), (0.3,), (0.25,)
QUICK = Settings(images=12, batch=6, steps=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load("npz", write_data(tmp_path_factory.mktemp("data") / "data.npz"), mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def teacher(data: Data) -> nn.Module:
    torch.manual_seed(0)
    network = TinyNet()
    train(network, data, TrainingPlan(epochs=10, batch=32, lr=0.1), default_objective(), seeded())
    network.zero_grad(set_to_none=True)
    return network.eval()


def make(network: nn.Module, settings: Settings = QUICK, seed: int = 0, **options: object) -> Split:
    return tas.synthesize(network, SHAPE, 3, MEAN, STD, settings, generator=seeded(seed), **options)  # type: ignore[arg-type]


def pixels(split: Split) -> Tensor:
    assert isinstance(split.source, InMemory)
    return split.source.inputs


def smooth() -> nn.Sequential:
    """Two batch norms and no kinks, in float64, with statistics that no batch has."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 6)
    )
    network.extend([nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)])
    for norm in (network[1], network[5]):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return network.double().eval()


def test_the_distance_of_statistics_is_the_equation_by_numpy() -> None:
    network, images = smooth(), torch.randn(5, 2, 6, 6, generator=seeded(), dtype=torch.float64)
    with statistics_distances(network) as found:
        network(images)
    entering = [network[0](images).detach().numpy(), network[:5](images).detach().numpy()]
    values, norms = torch.stack(found).tolist(), (network[1], network[5])
    for value, norm, x, axes in zip(values, norms, entering, ((0, 2, 3), 0), strict=True):
        mean, variance = np.mean(x, axes) - norm.running_mean.numpy(), np.var(x, axes) - norm.running_var.numpy()
        expected = np.sqrt((mean**2).sum()) + np.sqrt((variance**2).sum())
        assert value == pytest.approx(expected, rel=1e-9)
    network(images)
    assert len(found) == 2  # nothing is left behind


def test_total_variation_by_loops() -> None:
    images = torch.randn(2, 3, 4, 5, generator=seeded(), dtype=torch.float64)
    squares, sizes = 0.0, 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        differences = [
            float(images[n, c, i, j] - images[n, c, i + down, j + right])
            for n in range(2)
            for c in range(3)
            for i in range(4 - down)
            for j in range(5)
            if 0 <= j + right < 5
        ]
        squares += np.linalg.norm(differences)
        sizes += np.abs(differences).mean()
    norm, mean = total_variation(images)
    assert float(norm) == pytest.approx(squares, rel=1e-12)
    assert float(mean) == pytest.approx(sizes, rel=1e-12)


def test_divergence_is_jensen_shannon_between_0_and_log_2() -> None:
    one, other = torch.randn(2, 4, 5, generator=seeded(), dtype=torch.float64) * 3
    p, q = (functional.softmax(logits / 3, 1).numpy() for logits in (one, other))
    m = (p + q) / 2
    expected = ((p * np.log(p / m) + q * np.log(q / m)) / 2).sum(1).mean()
    assert float(divergence(one, other)) == pytest.approx(expected, rel=1e-9)
    assert float(divergence(one, one)) == pytest.approx(0, abs=1e-12)
    apart = 1e3 * torch.eye(2, dtype=torch.float64)
    assert float(divergence(apart, apart.flip(0))) == pytest.approx(np.log(2), rel=1e-9)


def test_the_gradient_of_the_whole_loss_is_that_of_finite_differences() -> None:
    network, student = smooth(), smooth()
    student[7].weight.data.neg_()
    images = torch.randn(3, 2, 6, 6, generator=seeded(), dtype=torch.float64, requires_grad=True)
    settings = Settings(statistics=0.7, variation=0.01, variation_l1=0.2, l2=0.05, competition=0.8)
    targets = torch.tensor([0, 2, 1])
    assert torch.autograd.gradcheck(lambda x: loss(network, x, targets, settings, student), [images])


@torch.no_grad()
def test_every_weight_of_the_loss_counts_and_none_of_it_is_free() -> None:
    network, student = smooth(), smooth()
    student[7].weight.data.neg_()
    images, targets = torch.randn(3, 2, 6, 6, generator=seeded(), dtype=torch.float64), torch.tensor([0, 2, 1])
    nothing = dict.fromkeys(("statistics", "variation", "variation_l1", "l2", "competition"), 0.0)
    bare = loss(network, images, targets, Settings(**nothing), student)
    assert float(bare) == pytest.approx(float(functional.cross_entropy(network(images), targets)), rel=1e-12)
    with statistics_distances(network) as distances:
        network(images)
    expected = {
        "statistics": 10 * distances[0] + distances[1],
        "variation": total_variation(images)[0],
        "variation_l1": total_variation(images)[1],
        "l2": images.flatten(1).norm(dim=1).mean(),
        "competition": 1 - divergence(network(images), student(images)),
    }
    for name, term in expected.items():
        found = loss(network, images, targets, Settings(**{**nothing, name: 2.0}), student) - bare
        assert float(found) == pytest.approx(2 * float(term), rel=1e-9), name


def test_real_images_are_far_nearer_to_the_statistics_than_noise_and_synthesized_ones_as_near(
    teacher: nn.Module, data: Data
) -> None:
    made = make(teacher, Settings(images=60, batch=60, steps=300))
    start = Split("train", InMemory(noise(60, SHAPE, MEAN, STD, seeded(9)), torch.arange(60) % 3), MEAN, STD)
    rows = resemblance(teacher, {"real": data.train, "made": made, "noise": start}, 60)
    real, found, nothing = (row["distance"] for row in rows)
    assert nothing > 4 * real
    assert found < 1.5 * real
    assert rows[1]["top1"] > 90
    assert rows[2]["top1"] < 60


def test_the_logits_of_the_targets_rise(teacher: nn.Module) -> None:
    targets = torch.arange(12) % 3
    start = torch.randn(12, *SHAPE, generator=seeded()) * 0.5
    bounds = bounds_of(MEAN, STD, "cpu")
    settings = Settings(steps=30, statistics=0.0, jitter=0)
    after = invert(teacher, start, targets, bounds, settings, seeded())
    with torch.no_grad():
        logits = [teacher(images).gather(1, targets[:, None]).mean() for images in (start.clamp(*bounds), after)]
    assert logits[1] > logits[0] + 1
    assert after.min() >= bounds[0].min()
    assert after.max() <= bounds[1].max()


def test_the_networks_are_the_same_afterwards_bit_for_bit(teacher: nn.Module) -> None:
    student = TinyNet().train()
    teacher.stem.train()  # a module in train mode on purpose
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in (teacher, student)]
    make(teacher, student=student)
    for network, known in zip((teacher, student), before, strict=True):
        assert all(value.equal(known[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not any(module._forward_pre_hooks for module in network.modules())
    assert student.training
    assert teacher.stem.training
    assert not teacher.block.training
    teacher.eval()


def test_one_seed_gives_one_set_of_images_whatever_torch_draws_elsewhere(teacher: nn.Module) -> None:
    settings = Settings(images=12, batch=6, steps=4, coarse_steps=0, jitter=2, flip=True)
    first = pixels(make(teacher, settings))
    torch.rand(5)
    assert first.equal(pixels(make(teacher, settings)))
    assert not first.equal(pixels(make(teacher, settings, seed=1)))


def test_as_many_images_of_every_class_each_once(teacher: nn.Module) -> None:
    made = make(teacher, Settings(images=11, batch=6, steps=1))
    assert made.targets is not None
    assert made.targets.bincount().tolist() == [4, 4, 3]
    assert pixels(made).dtype == torch.uint8
    assert pixels(made).shape == (11, *SHAPE)


def test_an_interrupted_synthesis_goes_on_and_gives_the_same_images(teacher: nn.Module, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(step: int, steps: int, value: float) -> None:
        assert steps == 24
        if step > 12:
            raise Enough

    settings = Settings(images=12, batch=6, steps=12)
    with pytest.raises(Enough):
        make(teacher, settings, folder=tmp_path, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch-0000.npz", "synthesis.json"]
    kept = (tmp_path / "batch-0000.npz").stat().st_mtime_ns
    made = make(teacher, settings, folder=tmp_path)
    assert (tmp_path / "batch-0000.npz").stat().st_mtime_ns == kept
    assert pixels(made).equal(pixels(make(teacher, settings)))


def test_a_folder_of_other_images_is_refused(teacher: nn.Module, tmp_path: Path) -> None:
    make(teacher, folder=tmp_path)
    with pytest.raises(BadRecipe, match="holds images of other settings"):
        make(teacher, Settings(images=12, batch=6, steps=5), folder=tmp_path)
    with pytest.raises(BadRecipe, match="holds images of other network;"):
        make(TinyNet(), folder=tmp_path)
    with pytest.raises(BadRecipe, match="holds images of other student;"):
        make(teacher, folder=tmp_path, student=TinyNet())
    (tmp_path / "batch-0001.npz").write_bytes(b"half of a file")
    with pytest.raises(BadData, match=r"batch-0001.npz: .*remove it, and they are made again"):
        make(teacher, folder=tmp_path)
    np.savez(tmp_path / "batch-0001.npz", images=np.zeros((6, 1, 4, 4), np.uint8), labels=np.arange(6) % 3)
    with pytest.raises(BadData, match="not this batch"):
        make(teacher, folder=tmp_path)
    (tmp_path / "synthesis.json").write_text("{")
    with pytest.raises(BadRecipe, match="is not JSON"):
        make(teacher, folder=tmp_path)


def test_a_student_that_disagrees_draws_the_images_to_where_it_does(teacher: nn.Module, data: Data) -> None:
    torch.manual_seed(1)
    student = TinyNet()
    train(student, data, TrainingPlan(epochs=3, batch=32, lr=0.05), default_objective(), seeded())
    student.eval()
    apart = []
    for weight in (0.0, 20.0):
        made = make(teacher, Settings(images=60, batch=60, steps=150, competition=weight), student=student)
        inputs, _ = next(made.batches(60))
        with torch.no_grad():
            apart.append(float(divergence(teacher(inputs), student(inputs))))
    assert apart[1] > 1.5 * apart[0]


class HalfToo(TinyNet):
    sides: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.sides.append(x.shape[-1])
        return super().forward(x)


def test_coarse_steps_come_first_and_at_half_of_the_side() -> None:
    network = HalfToo()
    network.sides = []
    make(network, Settings(images=6, batch=6, steps=3, coarse_steps=2))
    assert network.sides == [4, 4, 8, 8, 8]


def test_statistics_of_a_cut_network_come_back_without_data(teacher: nn.Module, data: Data) -> None:
    network = TinyNet().eval()
    network.load_state_dict(teacher.state_dict())
    for norm in (network.stem[1], network.block.norm1, network.block.norm2):
        norm.reset_running_stats()
    before = evaluate(network, data.split("test"), default_objective())["top1"]
    made = make(teacher, Settings(images=60, batch=60, steps=150))
    recalibrate(network, (inputs for inputs, _ in made.batches(60)))
    assert evaluate(network, data.split("test"), default_objective())["top1"] > max(before + 10, 90)


def test_real_images_beside_synthesized_ones(teacher: nn.Module, data: Data) -> None:
    made = make(teacher)
    assert beside(data, made).train.targets.equal(made.targets)  # type: ignore[union-attr, arg-type]
    mixed = beside(data, made, 30)
    assert len(mixed.train) == 42
    assert mixed.train.targets.bincount().tolist() == [14, 14, 14]  # type: ignore[union-attr]
    assert pixels(mixed.train)[12:].equal(pixels(data.train.take(30)))
    assert mixed.test is data.test
    floats = Data("floats", Split("train", InMemory(torch.rand(6, *SHAPE), torch.arange(6) % 3)), classes=3)
    with pytest.raises(BadData, match="pixels of one shape"):
        beside(floats, made, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"batch": 1}, "batch must be at least 2, got 1"),
        ({"coarse_steps": -1}, "coarse_steps must be at least 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"statistics": -1.0}, "statistics must be at least 0"),
        ({"competition": float("inf")}, "competition must be at least 0, got inf"),
        ({"jitter": -1}, "jitter must be at least 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        Settings(**options)  # type: ignore[arg-type]


class Pair(TinyNet):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Broken(TinyNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.GroupNorm(1, 3), nn.Flatten()), BadNetwork, "batch norms, this network"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()), BadNetwork, "has none"),
        (Pair(), BadNetwork, r"logits \[batch, classes\]"),
        (Broken(), BadNetwork, "no number any more"),
    ],
)
def test_networks_that_images_cannot_be_made_of(network: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(network)


@pytest.mark.parametrize(
    ("shape", "classes", "mean", "settings", "message"),
    [
        ((8, 8), 3, MEAN, QUICK, r"\[channels, height, width\], got \[8, 8\]"),
        (SHAPE, 1, MEAN, QUICK, "two classes at least, got 1"),
        (SHAPE, 3, (0.1, 0.2), QUICK, "a number a channel"),
        (SHAPE, 30, MEAN, QUICK, "12 for 30 classes"),
        (SHAPE, 3, MEAN, Settings(images=7, batch=6, steps=1), "leave one"),
        ((1, 1, 8), 3, MEAN, Settings(images=6, batch=6, coarse_steps=1), "cannot be"),
    ],
)
def test_images_that_cannot_be_made(
    shape: tuple[int, ...], classes: int, mean: tuple[float, ...], settings: Settings, message: str
) -> None:
    with pytest.raises((BadData, BadRecipe), match=message):
        tas.synthesize(TinyNet(), shape, classes, mean, STD, settings, generator=seeded())
