"""Small encoders of `transformers`, for pictures, text and sound, built from configurations of a benchmark."""

import runpy
from pathlib import Path

import pytest
import torch
from promises import assert_promises

ENCODERS = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "benchmarks" / "encoders.py"))["NETWORKS"]


@pytest.mark.parametrize(
    "name",
    [
        *("vit", "dinov2", "swin", "convnext", "segformerC", "poolformer", "pvt", "clipv"),
        *("bert", "bertmlm", "distilbert", "electra", "albert", "mpnet", "deberta", "modernbert", "t5"),
        "wav2vec2",
    ],
)
def test_laws_hold_for_small_encoders(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = ENCODERS[name]()
    assert_promises(network, inputs)
