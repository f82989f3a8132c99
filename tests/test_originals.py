"""What the user names becomes a network with its weights, or one clear line says why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tas.errors import BadNetwork
from tas.originals import build, check_runs, load_weights


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("torch.nn", {}, "package.module:attribute"),
        ("no_such_package:net", {}, "cannot import 'no_such_package'"),
        ("torch.nn:Linnear", {}, "no attribute 'Linnear'"),
        ("math:pi", {}, "is a float"),
        ("torch.nn:Linear", {"in_features": 3}, "cannot build 'torch.nn:Linear' with {'in_features': 3}"),
        ("builtins:dict", {}, "gives a dict"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name: str, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(BadNetwork) as caught:
        build(name, kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def unreal() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 2)


def test_a_network_without_numbers_is_one_clear_line() -> None:
    with pytest.raises(BadNetwork, match=r"network\.name .*'weight' lies on the meta device: build it on the CPU"):
        build(f"{__name__}:unreal")


def test_a_module_beside_the_shell_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_network.py").write_text("from torch import nn\ndef build(n):\n    return nn.Linear(n, n)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    network = build("their_network:build", {"n": 3})
    assert isinstance(network, nn.Linear)
    assert network.in_features == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_read_from_both_formats(tmp_path: Path, suffix: str) -> None:
    source, network = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    load_weights(network, path)
    assert torch.equal(network.weight, source.weight)


def test_weights_of_an_older_torch_without_batch_counters_are_taken(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3)
    state = {name: torch.rand(3) for name in norm.state_dict() if name != "num_batches_tracked"}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(norm, tmp_path / "w.safetensors")
    taken = norm.state_dict()
    assert all(taken[name].equal(value) for name, value in state.items())
    assert taken["num_batches_tracked"] == 0


def test_foreign_weights_are_refused_and_leave_the_network_alone(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    cases = {
        "missing bias, unexpected other": {"weight": torch.ones(2, 3), "other": torch.ones(1)},
        "'weight' must be [2, 3], is [2, 4]": {"weight": torch.ones(2, 4), "bias": torch.ones(2)},
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(BadNetwork) as caught:
            load_weights(network, tmp_path / "w.safetensors")
        assert message in str(caught.value)
    assert torch.equal(network.weight, before)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(3)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # is meant so
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    for name, value in {"weight": torch.inf, "running_var": torch.nan}.items():
        wrong = {**network.state_dict(), name: torch.tensor([1.0, value, 1.0])}
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(BadNetwork, match=f"finite numbers, 1 of the 3 of '{name}' in .* are not"):
            load_weights(network, tmp_path / "w.safetensors")


def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadNetwork, match="there is none at"):
        load_weights(nn.Linear(3, 2), tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadNetwork, match="cannot read weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "broken.safetensors")
    torch.save(nn.Linear(3, 2), tmp_path / "pickled.pt")
    with pytest.raises(BadNetwork, match="holds more than tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "pickled.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(BadNetwork, match="must hold a state dict"):
        load_weights(nn.Linear(3, 2), tmp_path / "list.pt")


def test_a_shape_that_the_network_refuses_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    check_runs(network, torch.zeros(1, 3, 8, 8))
    assert network.training
    with pytest.raises(BadNetwork, match=r"refuses an input of shape \[1, 1, 8, 8\]"):
        check_runs(network, torch.zeros(1, 1, 8, 8))


def test_a_network_of_another_precision_is_told_how_to_change() -> None:
    with pytest.raises(BadNetwork, match=r"its parameters are float64: call \.float\(\) where it is made"):
        check_runs(nn.Linear(3, 2).double(), torch.randn(2, 3))
