"""The student at an architecture: a plain module of the original's own class, smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from tas.tracing import Traced
from tas.tracing.regions import leave_out

if TYPE_CHECKING:
    from tas.supernet import Supernet


def extract(
    source: Traced | Supernet, architecture: Mapping[str, int], keep: Mapping[str, Any] | None = None
) -> nn.Module:
    """A new network at `architecture`, with weights taken over from `source`, its modules in the training mode that
    they have there.

    Of every width the first units are kept, or those whose indices `keep` lists by choice name (as many as the
    architecture says). Blocks that are left out become `nn.Identity`, the modules of left-out branches `nn.Threshold`,
    which gives zeros of the shape that it is given; where they take or return more than a tensor, a
    `torch.fx.GraphModule` does the same. The other names in the state dict stay.

    Raises ValueError where the architecture is not of the space, or `keep` does not fit it.
    """
    traced: Traced = source if isinstance(source, Traced) else source.current()
    traced.space.indices(architecture)
    student = traced.cut(traced.keep_mask(architecture, keep))
    leave_out(student, traced.dead(architecture))
    return student
