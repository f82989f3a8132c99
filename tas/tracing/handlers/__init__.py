"""The one table of operator handlers. A handler gives the output its identities (`put`), merges identities that must go
together (`unify`), and notes what multiplies and what scales. An operator that is not here freezes what reaches it."""

from __future__ import annotations

from typing import Any

from tas.tracing.handlers import comparisons, lines, pieces, pointwise, products, recurrent, spatial, transforms, views
from tas.tracing.leaves import tensors_of
from tas.tracing.recording import Handler, Recorder

HANDLERS: dict[str, Handler] = {
    **pointwise.HANDLERS,
    **products.HANDLERS,
    **views.HANDLERS,
    **pieces.HANDLERS,
    **spatial.HANDLERS,
    **lines.HANDLERS,
    **comparisons.HANDLERS,
    **transforms.HANDLERS,
    **recurrent.HANDLERS,
}


def unknown(t: Recorder, out: Any, *args: Any, **options: Any) -> None:
    """No handler: everything that reaches the operator stays as it is."""
    inputs = tensors_of((args, options))
    if not inputs:
        for tensor in tensors_of(out):
            if tensor.dtype.is_floating_point:
                views.counted(t, tensor)
        return
    for tensor in inputs:
        t.freeze(*t.rows(tensor), why=f"tas has no handler for {t.current.operator}")
    for tensor in tensors_of(out):
        t.put(tensor, [None] * tensor.dim())
