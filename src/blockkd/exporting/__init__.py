"""The student leaves: as safetensors, ONNX, a program of torch.export, or a folder for timm and transformers."""

from blockkd.data.preprocessing import Preprocessing
from blockkd.exporting.bare import check_nothing_of_teacher, check_only_students, teachers_tensors
from blockkd.exporting.building import build, describe, describe_transformers
from blockkd.exporting.card import Facts, Written
from blockkd.exporting.errors import ExportError, NotBareError
from blockkd.exporting.exporter import FORMATS, Exported, Student, export
from blockkd.exporting.fresh import difference_in_fresh_process
from blockkd.exporting.hub import write_hub
from blockkd.exporting.int8 import write_int8
from blockkd.exporting.onnx_file import write_onnx
from blockkd.exporting.preparation import load_preprocessing
from blockkd.exporting.program import write_pt2
from blockkd.exporting.weights import load_exported

__all__ = [
    "FORMATS",
    "ExportError",
    "Exported",
    "Facts",
    "NotBareError",
    "Preprocessing",
    "Student",
    "Written",
    "build",
    "check_nothing_of_teacher",
    "check_only_students",
    "describe",
    "describe_transformers",
    "difference_in_fresh_process",
    "export",
    "load_exported",
    "load_preprocessing",
    "teachers_tensors",
    "write_hub",
    "write_int8",
    "write_onnx",
    "write_pt2",
]
