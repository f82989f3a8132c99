"""What leaves `tas`: student folders, ONNX files and `torch.export` programs, none of which needs `tas` afterwards."""

from tas.exporting.programs import SUFFIXES, Exported, Mismatch, export
from tas.exporting.students import facts, load, note, save

__all__ = ["SUFFIXES", "Exported", "Mismatch", "export", "facts", "load", "note", "save"]
