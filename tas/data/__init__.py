"""Data as one value, whatever it comes from: named sets, folders, arrays, Datasets, or the user's own batches.

`sources` finds the data (through `images` and `vision`), `holders` says what keeps the examples, `splits` what one can
do with them.
"""

from tas.data.holders import Answered, Batches, Examples, InMemory, WithAnswer
from tas.data.images import noise
from tas.data.sources import as_data, load
from tas.data.splits import Data, Split, halves, require_two
from tas.data.tensors import examples_in, map_tensors, nested, stratified

__all__ = [
    "Answered",
    "Batches",
    "Data",
    "Examples",
    "InMemory",
    "Split",
    "WithAnswer",
    "as_data",
    "examples_in",
    "halves",
    "load",
    "map_tensors",
    "nested",
    "noise",
    "require_two",
    "stratified",
]
