"""In which order to keep the channels of a width: one score a unit, the highest is kept longest.

A criterion is a function of the places where the units of one width choice live in the parameters (`Site`).
"""

from tas.importance.magnitude import Site, bn_scale, l1, l1_first, l2, random
from tas.importance.ordering import CRITERIA, order, orders, reorder, scores, sites

__all__ = [
    "CRITERIA",
    "Site",
    "bn_scale",
    "l1",
    "l1_first",
    "l2",
    "order",
    "orders",
    "random",
    "reorder",
    "scores",
    "sites",
]
