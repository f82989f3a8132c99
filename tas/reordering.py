"""A permutation of units that leaves the function as it is: from then on every architecture is a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tas.tracing import Traced
from tas.tracing.copying import copy_sharing
from tas.tracing.identity import Array


def permute(traced: Traced, orders: Mapping[str, Any]) -> Traced:
    """The same network with the units of width choices in the given orders: unit j becomes what `orders[name][j]` was.

    Each order is a permutation of 0..size-1; choices without one stay as they are. Raises ValueError otherwise.
    """
    source = np.arange(traced.units + 1)
    for name, order in orders.items():
        order = np.asarray(order, dtype=int)
        if name not in traced.sizes or sorted(order.tolist()) != list(range(traced.sizes[name])):
            raise ValueError(f"an order permutes the units of a width choice, got {order.tolist()} for {name!r}")
        if name in traced.ordered and sorted(order.tolist()) != order.tolist():
            raise ValueError(f"an operator slides over {name!r}, whose units keep their order; got {order.tolist()}")
        first = traced.first[name]
        source[first : first + len(order)] = first + order
    network = copy_sharing(traced.network)
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}  # shared tensors once
    with torch.no_grad():
        for name, tensor in named.items():
            for dim, rows in enumerate(traced.rows.get(name, ())):
                if rows is not None and (source[rows] != rows).any():
                    positions = torch.from_numpy(_positions(rows, source)).to(tensor.device)
                    tensor.copy_(tensor.index_select(dim, positions))
    return replace(traced, network=network)


def _positions(rows: Array, source: Array) -> Array:
    """For every position, the position that holds its new content: the one whose units are the sources of its own; a
    combination of units that appears several times (a flattened picture) goes by order of appearance."""
    have, want = (np.lexsort(table.T[::-1]) for table in (rows, source[rows]))
    positions = np.empty(len(rows), int)
    positions[want] = have
    return positions
