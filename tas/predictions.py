"""What a network says about every image of a split, kept in a few bytes an image beside its cell."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from tas.data import Split
from tas.errors import BadData
from tas.files import write_bytes
from tas.objectives import Objective, top1, top5
from tas.training import evaluate

_FOR_TOP5 = 6  # classes: of five, all are among the five largest


@dataclass(frozen=True, eq=False)
class Predictions:
    """predicted, labels: int64 [images], in the order of the split. top5: in percent, None below six classes."""

    predicted: Tensor
    labels: Tensor
    top5: float | None = None


def predictions(network: nn.Module, split: Split, objective: Objective, device: torch.device | str) -> Predictions:
    """One pass over a split; for networks with outputs [batch, classes] and targets that are class labels."""
    predicted: list[Tensor] = []
    labels: list[Tensor] = []
    enough = True

    def noting(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal enough
        enough = outputs.shape[1] >= _FOR_TOP5
        predicted.append(outputs.argmax(1).cpu())
        labels.append(targets.cpu())
        return (top5 if enough else top1)(outputs, targets)

    found = evaluate(network, split, Objective(objective.loss, noting, "top5"), device=device)
    return Predictions(torch.cat(predicted), torch.cat(labels).long(), round(found["top5"], 4) if enough else None)


def write_predictions(path: Path, found: Predictions) -> None:
    """Whole or not at all, in the smallest whole numbers that hold the labels."""
    columns = {"predicted": found.predicted, "labels": found.labels}
    small = {name: each.numpy().astype(np.min_scalar_type(int(each.max()))) for name, each in columns.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **small)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    try:
        with path.open("rb") as raw, np.load(raw) as file:  # opened here: numpy leaves a broken one open
            predicted, labels = (torch.from_numpy(file[name].astype(np.int64)) for name in ("predicted", "labels"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as problem:
        raise BadData(
            f"cannot read the predictions in {path}: {problem}; remove {path.with_suffix('.json').name} beside it, and "
            "the network is trained and judged again"
        ) from problem
    return Predictions(predicted, labels)
