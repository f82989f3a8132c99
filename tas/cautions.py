"""What to say where the data, the original or the latency table make figures less worth than they look."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tas.data import Data, Split
from tas.errors import Caution
from tas.files import is_number
from tas.latency.table import TOO_NOISY, Table
from tas.objectives import Objective
from tas.scoring import search_splits

_FEW = 10  # examples that judge


def chance(split: Split, objective: Objective, reached: float | None) -> str:
    """A warning where the original's top-1 on `split` is what `_guessing` says it is; empty otherwise."""
    guessed = _guessing(split, objective, reached)
    what = "check its weights, and mean and std of the data. Scores of its parts mean nothing."
    return f"The original classifies {guessed}: {what}" if guessed else ""


def untaught(split: Split, objective: Objective, row: str, reached: float | None) -> str:
    """The same of a network that was distilled, by its row in the table."""
    guessed = _guessing(split, objective, reached)
    what = "its training has taught it nothing. Lower distill.lr, or train longer."
    return f"The row {row!r} classifies {guessed}: {what}" if guessed else ""


def _guessing(split: Split, objective: Objective, reached: float | None) -> str:
    """What to say where a top-1 (percent) is that of always naming the most frequent class of `split`, or within three
    standard errors above; empty otherwise."""
    if objective.name != "top1" or split.targets is None or not is_number(reached):
        return ""
    often = int(split.targets.bincount().max()) / len(split)
    if reached > 100 * (often + 3 * math.sqrt(often * (1 - often) / len(split))):
        return ""
    many = f"{reached:.1f} % of {len(split):,} {split.name} images"
    return f"{many}, within three standard errors of guessing ({100 * often:.1f} %)"


def few(split: Split) -> str:
    """A warning where so few examples judge networks that a single one decides; empty otherwise."""
    if len(split) >= _FEW:
        return ""
    return (
        f"{split.name!r} has only {len(split)} example{'s' * (len(split) > 1)}: each is {100 / len(split):.0f} % of "
        "every figure on it, so one alone may set networks apart. Give more, or hold out more."
    )


def unsteady(table: Table) -> str:
    """A warning where a latency table is too noisy to rest a search or a budget on; empty otherwise."""
    if not table.too_noisy:
        return ""
    return (
        f"The latency table is too noisy: half the distance of its quartiles is {table.spread:.1%} of the median, it "
        f"should be at most {TOO_NOISY:.0%}. Latencies, and what a search makes of them, hold to about that: measure "
        f"more rounds than {table.rounds} (tas latency with latency.rounds goes on with the table), or anew on a "
        "quieter machine."
    )


@contextmanager
def cautioned(say: Callable[[str], None]) -> Iterator[None]:
    """`say` what is a `Caution` inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Caution)
        yield
    for one in caught:
        if issubclass(one.category, Caution):
            say(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def few_images(data: Data, images: int, calibration_images: int, seed: int) -> list[str]:
    """What to say where the halves of the training images hold fewer than a search asks for."""
    asked = {"search.calibration_images": calibration_images, "search.images": images}
    parts = search_splits(data, seed)
    halves = zip(asked.items(), parts, strict=True)
    return [said for said in (few(parts[1]),) if said] + [
        f"{key} asks for {count:,} images; all {len(half):,} of the {half.name} half of the training images are used."
        for (key, count), half in halves
        if len(half) < count
    ]
