"""What people see of synthesized images: a sheet of them, and how far they resemble real ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tas.reporting.tables import Table

FOLDER = "synthetic"
SHEET = f"{FOLDER}/sheet.png"
_WIDTH = 640  # pixels of the sheet, about: small images are shown larger
_ROWS, _GAP = 8, 2


def sheet(images: Tensor, classes: int) -> bytes:
    """uint8 [count, 1 or 3, height, width], whose classes come in turns, as one PNG: a column a class, for the
    first ten classes, eight of each at most."""
    from PIL import Image

    columns = min(classes, 10)
    kept = [index for index in range(len(images)) if index % classes < columns]
    images = images[kept[: min(_ROWS, len(kept) // columns) * columns]]
    scale = max(1, _WIDTH // columns // (images.shape[3] + _GAP))
    images = functional.pad(images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), [_GAP] * 4, value=255)
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    pixels = torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def resemblance_rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = ["images", "count", "distance of statistics", "cross-entropy", "original's top-1"]
    return header, [
        [row["images"], f"{row['count']:,}"] + [_number(row[key]) for key in ("distance", "cross_entropy", "top1")]
        for row in rows
    ]


def synthesis_parts(folder: Path, stage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """For the template: the sheet as a data URI, and the table; None where a run has made no images."""
    path = folder / SHEET
    if stage is None or not stage["done"] or not path.is_file():
        return None
    return {
        "uri": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
        "table": resemblance_rows(stage["rows"]),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
