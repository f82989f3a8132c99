"""What the forwards of a network say about the sizes of its tensors, whichever of them says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tas.tracing.identity import Array, Identities, Rows, same
from tas.tracing.records import Axis, Site


@dataclass(eq=False)
class Findings:
    """counts: dimensions of which the code needs equally many positions, and why. ordered: those whose positions must
    keep their neighbours. joined: dimensions of parameters that a view joins to the one in front. steps: dimensions
    that a kernel takes in multiples of a number alone. apart: positions that were taken out of others: units in and
    outside are no longer alike. grouped: of grouped layers the input channels, and those of one group or head.
    inexact_where: why cut channels would matter other than by being zero, as long as any of these can be cut."""

    identities: Identities = field(default_factory=Identities)
    tensors: dict[str, tuple[Rows, ...]] = field(default_factory=dict)  # parameters and buffers
    counts: list[tuple[Array, Array, str]] = field(default_factory=list)
    ordered: list[Rows] = field(default_factory=list)
    joined: set[Site] = field(default_factory=set)
    steps: list[tuple[Rows, int]] = field(default_factory=list)
    apart: list[Rows] = field(default_factory=list)
    grouped: dict[str, tuple[Axis, Axis]] = field(default_factory=dict)
    inexact_where: list[tuple[str, tuple[Rows, ...]]] = field(default_factory=list)

    def tie_counts(self, left: Rows, right: Rows, why: str) -> bool:
        """The code needs as many kept positions of one as of the other: whether that was not known."""
        left, right = self.identities.canonical(left), self.identities.canonical(right)
        if left is None or right is None:
            self.identities.unify(left, right, why)
            return left is not right
        known = [(self.identities.canonical(a), self.identities.canonical(b)) for a, b, _ in self.counts]
        if same(left, right) or any(same(left, a) and same(right, b) for a, b in known):
            return False
        self.counts.append((left, right, why))
        return True

    def carries(self, rows: Rows) -> bool:
        return self.identities.canonical(rows) is not None

    def mark_inexact(self, why: str, *rows: Rows) -> None:
        """Cut channels would matter other than by being zero, as long as any of these dimensions can be cut."""
        self.inexact_where.append((why, rows))

    @property
    def inexact(self) -> tuple[str, ...]:
        found = (why for why, rows in self.inexact_where if not rows or any(map(self.carries, rows)))
        return tuple(dict.fromkeys(found))
