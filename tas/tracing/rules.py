"""What a user may fix about a search space before it is worked out."""

from __future__ import annotations

from dataclasses import dataclass

_PAPER_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Rules:
    """What the user fixes about the widths: `ratios` of the original's size that are candidates (TAS: 0.3, 0.4 ... 1.0,
    rounded down), multiples of `divisor` only, names (globs over choice names) in `fix` that stay as they are."""

    ratios: tuple[float, ...] = _PAPER_RATIOS
    divisor: int = 1
    fix: tuple[str, ...] = ()
    depth: bool = True

    def candidates(self, size: int) -> tuple[int, ...]:
        cut = {int(size * ratio + 1e-9) // self.divisor * self.divisor for ratio in self.ratios}
        return tuple(sorted({n for n in cut if 0 < n < size} | {size}))
