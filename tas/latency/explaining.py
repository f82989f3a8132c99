"""Where the time goes, layer by layer, and where fewer MACs did not save any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tas import cost
from tas.latency.table import MEASURE
from tas.space import SearchSpace

_FELL, _STAYED = 0.8, 0.95  # parts kept: MACs at most, latency at least, to be told of


def by_layer(space: SearchSpace, architecture: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """A row a layer of the latency table, in the order of the forward: "ms", "of_latency" and "of_macs", parts of the
    original's. With an architecture also "ms_there", "macs_kept" and "latency_kept", parts of the layer's own (None
    where it has none), and "idle": whether it keeps at most 80 % of its MACs and at least 95 % of its latency."""
    before, counted = cost.by_layer(space, space.original(), MEASURE), cost.by_layer(space, space.original())
    rows: list[dict[str, Any]] = [
        {
            "layer": layer,
            "ms": took,
            "of_latency": took / max(sum(before.values()), 1e-12),
            "of_macs": counted.get(layer, 0) / max(sum(counted.values()), 1),
        }
        for layer, took in before.items()
    ]
    if architecture is None:
        return rows
    after, left = cost.by_layer(space, architecture, MEASURE), cost.by_layer(space, architecture)
    for row in rows:
        layer = row["layer"]
        row["ms_there"] = after[layer]
        row["macs_kept"] = left[layer] / counted[layer] if counted.get(layer) else None
        row["latency_kept"] = after[layer] / before[layer] if before[layer] else None
        fell = row["macs_kept"] is not None and row["macs_kept"] <= _FELL
        row["idle"] = fell and row["latency_kept"] is not None and row["latency_kept"] >= _STAYED
    return rows
