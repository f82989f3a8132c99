"""Small encoders of `transformers`, for pictures, text and sound, built from configurations of a benchmark."""

import runpy
from pathlib import Path

import pytest
import torch
from promises import assert_promises

import tas

ENCODERS = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "benchmarks" / "encoders.py"))["NETWORKS"]


@pytest.mark.parametrize(
    "name",
    [
        *("vit", "dinov2", "swin", "convnext", "segformer", "segformerC", "beit", "poolformer", "pvt", "clipv"),
        *("bert", "bertmlm", "distilbert", "electra", "albert", "mpnet", "deberta", "modernbert", "t5"),
        "wav2vec2",
    ],
)
def test_laws_hold_for_small_encoders(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = ENCODERS[name]()
    assert_promises(network, inputs)


def test_students_give_the_outputs_of_their_originals_by_name() -> None:
    torch.manual_seed(0)
    network, inputs = ENCODERS["bertmlm"]()
    inputs = {**inputs, "labels": inputs["input_ids"], "output_hidden_states": True}
    traced = tas.trace(network, inputs)
    original = network.eval()(**inputs)
    student = tas.extract(traced, traced.space.smallest()).eval()(**inputs)
    assert type(student) is type(original)
    assert list(student) == list(original) == ["loss", "logits", "hidden_states"]
    assert [h.shape for h in student.hidden_states] == [h.shape for h in original.hidden_states]
    assert tas.Supernet(traced)(inputs, traced.space.smallest()).loss.requires_grad
