"""What leaves `tas`: student folders, ONNX files and `torch.export` programs, none of which needs `tas` afterwards."""

from tas.exporting.programs import SUFFIXES, Exported, Mismatch, export
from tas.exporting.students import damage, facts, load, note, require_place, save

__all__ = ["SUFFIXES", "Exported", "Mismatch", "damage", "export", "facts", "load", "note", "require_place", "save"]
