"""What people read of what pruning forgot: two tables and a gallery, parts of the page of a comparison."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tas.files import read_json
from tas.forgetting import ENOUGH
from tas.reporting.tables import Table

FILE = "forgetting.json"
PICTURES = "exemplars"
SHOWN = 24  # exemplars in a gallery
_SIDE = 96  # pixels of the longer side of a picture on the page
_CALLED = 0.05  # adjusted p below which a class is called


def read(place: Path) -> dict[str, Any]:
    """The content of `forgetting.json` in a folder `compare`."""
    found: dict[str, Any] = read_json(place / FILE)
    return found


def forgetting_parts(place: Path) -> dict[str, Any]:
    """For the template: the summary of all rows; classes and gallery of the first row, a search, of every budget."""
    found = read(place)
    firsts = {row["budget"]: row for row in reversed(found["rows"])}
    budgets = [
        {
            "title": f"{row['row']} at {budget}",
            "shown": gallery_line(row),
            "gallery": gallery(row, place / PICTURES),
            "classes": class_rows(row),
        }
        for budget, row in reversed(firsts.items())
    ]
    return {"summary": summary_rows(found), "explanation": explanation(found), "budgets": budgets}


def summary_rows(found: Mapping[str, Any]) -> Table:
    header = ["network", "budget", "n", "exemplars", "halves", "halves of originals"]
    header += ["originals on / off", "students on / off", "classes lost", "gained"]
    return header, [_summary(row) for row in found["rows"]]


def _summary(row: Mapping[str, Any]) -> list[str]:
    begin = [row["row"], row["budget"], f"{row['originals']} / {row['students']}"]
    if row["exemplars"] is None:
        middle = ["–"] * 5
    else:
        seen = row["exemplars"]
        middle = [str(len(seen["found"])), f"{seen['pruned']:.1f}", f"{seen['chance']:.1f}"]
        middle += [
            f"{_percent(seen[f'{who}_on'])} / {_percent(seen[f'{who}_off'])}" for who in ("originals", "students")
        ]
    if all(shift["p"] is None for shift in row["shifts"]):
        return [*begin, *middle, "–", "–"]
    called = [shift for shift in row["shifts"] if _word(shift)]
    sides = [[str(s["label"]) for s in called if _word(s) == word] for word in ("lost", "gained")]
    return [*begin, *middle, *(", ".join(labels) or "none" for labels in sides)]


def class_rows(row: Mapping[str, Any]) -> Table:
    header = ["class", "images", "recall, originals", "students", "shift", "p", "p, adjusted", ""]
    return header, [
        [str(s["label"]), str(s["images"]), f"{s['originals']:.2f}", f"{s['students']:.2f}", f"{s['shift']:+.2f}"]
        + [_p(s["p"]), _p(s["p_holm"]), _word(s)]
        for s in row["shifts"]
    ]


def explanation(found: Mapping[str, Any]) -> list[str]:
    """How the numbers are meant, and what they do not say."""
    rows = found["rows"]
    fewest, tested = min(min(row["originals"], row["students"]) for row in rows), len(rows[0]["shifts"])
    said = [
        f"Exemplars: of {found['images']:,} images, those whose most frequent label differs between originals and "
        "students (Hooker et al. 2019); on / off: top-1 on them and on the rest. Halves: how many there are between "
        "half of the originals and as many students, on average over 50 draws; halves of originals: between two "
        "halves of the originals, which is what chance gives.",
        "Shift of a class: how much its recall changed beyond the change of the whole, in points; so where one class "
        f"loses much, the others rise. Welch's t-test; p adjusted by Holm for {tested} classes of one row (not for "
        "the number of rows): lost and gained are below 5 % after that. – : no test, for there is no spread. Every "
        "student comes from the original of its own seed; the test does not use that, so it is cautious where the two "
        "are alike.",
    ]
    if fewest < ENOUGH:
        said.append(
            f"Populations of {fewest}: exemplars need {ENOUGH} networks of each kind, and "
            + ("a class test needs two." if fewest < 2 else "tests of so few find large shifts only.")
            + " Add seeds."
        )
    return said


def gallery_line(row: Mapping[str, Any]) -> str:
    if row["exemplars"] is None:
        return f"No gallery: exemplars need {ENOUGH} originals and {ENOUGH} students."
    count = len(row["exemplars"]["found"])
    if not count:
        return "No exemplar: the most frequent labels agree on every image."
    which = f"The {SHOWN} firmest of {count} exemplars" if count > SHOWN else f"All exemplars, {count}"
    return f"{which}: true label, then what originals and students say, and how many of them."


def gallery(row: Mapping[str, Any], pictures: Path) -> list[dict[str, Any]]:
    """Of each exemplar that is shown: its picture as a data URI ("" where inputs are no pictures) and its labels."""
    shown = []
    for each in (row["exemplars"] or {"found": []})["found"][:SHOWN]:
        path = pictures / f"{each['image']}.png"
        coded = base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""
        of = {"originals": row["originals"], "students": row["students"]}
        shown.append({**each, "of": of, "uri": f"data:image/png;base64,{coded}" if coded else ""})
    return shown


def png(pixels: Tensor) -> bytes | None:
    """An input [1 or 3, height, width] as a PNG: uint8 as it is, others stretched from their smallest to their largest
    value, since they are normalised already. None for what is no picture."""
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        return None
    from PIL import Image

    if pixels.dtype == torch.uint8:
        values = pixels
    else:
        low, high = pixels.float().min(), pixels.float().max()
        values = ((pixels.float() - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
    array = np.ascontiguousarray(values.permute(1, 2, 0).numpy())
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _word(shift: Mapping[str, Any]) -> str:
    if shift["p_holm"] is None or shift["p_holm"] >= _CALLED:
        return ""
    return "lost" if shift["shift"] < 0 else "gained"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
