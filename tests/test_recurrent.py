"""Recurrent layers: hidden and input sizes are choices, and the laws hold, however the layers are called."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tas
from tas.testing import check_space

STEPS = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))  # batch, time, features


class Reader(nn.Module):
    """Features, a recurrent layer, a head on its output or on its last state."""

    def __init__(self, kind: str = "LSTM", reads_state: bool = False, time_first: bool = False, **options: object):
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.rnn = getattr(nn, kind)(10, 8, batch_first=not time_first, **options)
        self.reads_state, self.time_first = reads_state, time_first
        width = options.get("proj_size", 8) * (2 if options.get("bidirectional") and not reads_state else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.embed(x))
        out, state = self.rnn(y.transpose(0, 1) if self.time_first else y)
        state = state[0] if isinstance(state, tuple) else state
        last = out[-1] if self.time_first else out[:, -1]
        return self.head(state[-1] if self.reads_state else last)


LAYERS = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 4}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "reads_state": True}),
    ("LSTM", {"num_layers": 2, "time_first": True, "bias": False}),
    ("GRU", {"reads_state": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"num_layers": 2, "dropout": 0.5}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu", "reads_state": True}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=lambda value: str(value))
def test_laws(kind: str, options: dict) -> None:
    space = check_space(Reader(kind, **options), STEPS, architectures=2).space

    assert [choice.candidates[-1] for choice in space.choices] == [10, options.get("proj_size", 8)]
    assert tas.macs(space, space.smallest()) < 0.2 * tas.macs(space, space.largest())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_both_directions_take_the_factor_of_what_a_gate_gives(kind: str) -> None:
    """A gate lets no factor through, so the columns of all that read it have to take it."""
    reader = Reader(kind, bidirectional=True)
    reader.embed = nn.Sequential(nn.Linear(6, 20), nn.GLU())
    traced = check_space(reader, STEPS, architectures=2)

    directions = [("rnn.weight_ih_l0", 1), ("rnn.weight_ih_l0_reverse", 1)]
    assert [list(fold.sites) for fold in traced.folds.values()].count(directions) == 1


def test_laws_in_single_precision() -> None:
    """There, a fused kernel runs on CPUs."""
    check_space(Reader(num_layers=2), STEPS, architectures=1, dtype=torch.float32, tolerance=1e-4)


class Cells(nn.Module):
    """Two cells, one after the other, step by step; the state of the first is made by the network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.width = 8
        self.first, self.second = getattr(nn, kind)(6, 8), getattr(nn, kind)(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(len(x), self.width, dtype=x.dtype)
        long = isinstance(self.first, nn.LSTMCell)
        one, two = (zeros, zeros) if long else zeros, None
        for step in x.unbind(1):
            one = self.first(step, one)
            two = self.second(one[0] if long else one, two)
        return self.head(two[0] if long else two)


class Translator(nn.Module):
    """The state of one layer starts another."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.encode = nn.GRU(6, 8, layers, batch_first=True)
        self.decode = nn.GRU(6, 8, layers, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(x.flip(1), self.encode(x)[1])[0])


class Caption(nn.Module):
    """Linear layers make the first state; one of them has another reader, which can carry its factor."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.cell = nn.Linear(6, 8), nn.Linear(6, 8)
        self.rnn, self.head, self.other = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = self.hidden(x[:, 0]), self.cell(x[:, 0])
        return self.head(self.rnn(x, (hidden[None], cell[None]))[0]), self.other(hidden)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList([nn.GRU(8, 4, batch_first=True, bidirectional=True) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.head(x)


class Stacked(nn.Module):
    """Both directions of a layer read the other layer's output, each with columns of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = (getattr(nn, kind)(n, 8, batch_first=True, bidirectional=True) for n in (6, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0])


class Packed(nn.Module):
    """Sequences of several lengths, of words."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=both)
        self.head, self.other = nn.Linear(16 if both else 8, 3), nn.Linear(8, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        out, (hidden, _) = self.rnn(packed)
        return self.head(pad_packed_sequence(out, batch_first=True)[0]), self.other(hidden)


class Squashed(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.tanh(super().forward(x)[0])


class Lines(nn.Module):
    """Columns of a picture, read as a sequence: channels and rows together are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.rnn, self.head = nn.LSTM(8 * 4, 10, bidirectional=True), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.rnn(x.flatten(1, 2).permute(2, 0, 1))[0])


WORDS = torch.arange(15).reshape(3, 5), torch.tensor([3, 5, 4])
NETWORKS = {
    "long cells": (lambda: Cells("LSTMCell"), STEPS),
    "gated cells": (lambda: Cells("GRUCell"), STEPS),
    "plain cells": (lambda: Cells("RNNCell"), STEPS),
    "state handed on": (Translator, STEPS),
    "state computed": (Caption, STEPS),
    "residual": (Residual, STEPS),
    "stacked, long": (lambda: Stacked("LSTM"), STEPS),
    "stacked, gated": (lambda: Stacked("GRU"), STEPS),
    "packed": (lambda: Packed(False), WORDS),
    "packed, both directions": (lambda: Packed(True), WORDS),
    "subclass": (lambda: nn.Sequential(nn.Linear(6, 4), Squashed(4, 8), nn.Linear(8, 2)), STEPS),
    "without a batch": (lambda: nn.Sequential(nn.Linear(6, 4), Squashed(4, 8), nn.Linear(8, 2)), STEPS[0]),
    "after a convolution": (Lines, torch.randn(2, 1, 4, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_of_networks(name: str) -> None:
    build, inputs = NETWORKS[name]
    space = check_space(build(), inputs, architectures=2).space
    assert tas.macs(space, space.smallest()) <= 0.25 * tas.macs(space, space.largest())
    assert not any("handler" in kept.reason for kept in space.kept)


def test_macs_from_the_equations() -> None:
    space = tas.trace(Reader(num_layers=2, bidirectional=True), STEPS).space
    wanted = {**space.largest(), "rnn": 5, "embed": 7}
    step = 7 * 6 + 2 * (4 * 5 * (7 + 5)) + 2 * (4 * 5 * (10 + 5))  # embedding, two directions of two layers
    assert tas.macs(space, wanted) == 4 * step + 10 * 5


def test_long_sequences_cost_no_time() -> None:
    """One record a call: the trace of 2,000 steps is as large as that of 4."""
    from tas.tracing.handlers import HANDLERS, unknown
    from tas.tracing.recording import Recorder

    counts = []
    for steps in (4, 2000):
        recorder = Recorder(Reader().eval(), HANDLERS, unknown, {})
        recorder.run((torch.randn(2, steps, 6),), {})
        counts.append(len(recorder.records))
    assert counts[0] == counts[1] < 20


def test_layers_have_units_of_their_own() -> None:
    """Their number is one attribute. Where all states are read as one tensor, their units are the same, too."""
    own = tas.trace(Reader(num_layers=2), STEPS)
    assert len(own.space.choices) == 2
    assert {name: group.choices for name, group in own.groups.items() if name.startswith("rnn")} == {
        "rnn": (("rnn", 1),),
        "rnn#2": (("rnn", 1),),
    }
    shared = tas.trace(Reader(num_layers=2, reads_state=True), STEPS)
    assert [name for name in shared.groups if name.startswith("rnn")] == ["rnn"]


def test_a_projected_layer_never_looks_unprojected() -> None:
    """torch takes it for one without projection where both sizes are equal, so the one is a multiple of the other."""
    traced = tas.trace(Reader(proj_size=4).double(), STEPS.double())
    for number in traced.space.choices[1].candidates:
        student = tas.extract(traced, {**traced.space.largest(), "rnn.in1": number})
        assert (student.rnn.hidden_size, student.rnn.proj_size) == (2 * number, number)
    kept = {k.name: k.reason for k in tas.trace(Reader(proj_size=3).double(), STEPS.double()).space.kept}
    assert "differ from the size it is projected to" in kept["rnn.weight_ih_l0[0]"]


def test_students_are_whole_layers() -> None:
    traced = tas.trace(Reader(num_layers=2, bidirectional=True), STEPS)
    student = tas.extract(traced, traced.space.smallest())
    assert type(student.rnn) is nn.LSTM
    assert (student.rnn.input_size, student.rnn.hidden_size) == (3, 2)
    assert all(any(flat is p for p in student.rnn.parameters()) for flat in student.rnn._flat_weights)

    wanted = student(STEPS)
    assert torch.equal(pickle.loads(pickle.dumps(student))(STEPS), wanted)
    fresh = nn.LSTM(3, 2, 2, bidirectional=True, batch_first=True)
    fresh.load_state_dict(student.rnn.state_dict())
    out = fresh(torch.relu(student.embed(STEPS)))[0]
    assert torch.equal(student.head(out[:, -1]), wanted)


def test_training_in_the_supernet_changes_the_shared_weights() -> None:
    """torch keeps a list of the weights beside the parameters: it has to follow them from one architecture to the
    next, and back to the whole layer."""
    traced = tas.trace(Reader(num_layers=2), STEPS)
    supernet = tas.Supernet(traced)
    optimizer = torch.optim.SGD(supernet.weight_parameters(), 0.5)
    before = copy.deepcopy(supernet.network.state_dict())
    small, large = traced.space.smallest(), traced.space.largest()
    for architecture in (small, large, small):
        optimizer.zero_grad()
        supernet(STEPS, architecture).square().sum().backward()
        optimizer.step()
    for name, tensor in supernet.network.rnn.named_parameters():
        assert not torch.equal(tensor, before[f"rnn.{name}"])
    assert torch.equal(supernet(STEPS, large), copy.deepcopy(supernet.network)(STEPS))
    assert torch.equal(supernet.network(STEPS), supernet(STEPS, large))


def test_reordering_by_importance() -> None:
    network = Reader(num_layers=2, bidirectional=True).eval()
    traced = tas.reorder(tas.trace(network, STEPS), importance="l1")
    torch.testing.assert_close(traced.network(STEPS), network(STEPS))
