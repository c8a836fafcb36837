"""Block-wise logit distillation (Block-KD, arXiv 2411.01547) and the field around it.

The names below are the public ones. They load on first use, so that ``blockkd --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockkd.baselines.logits import KD, CrossEntropy
    from blockkd.block_kd import BlockKD
    from blockkd.blocks import Blocks, PartitionError
    from blockkd.connectors import connector
    from blockkd.distiller import Distiller, Losses
    from blockkd.export import load_student, save_student
    from blockkd.exporting.weights import load_exported
    from blockkd.partitioning import partition
    from blockkd.training import DistillationModule

_HOME = {
    "KD": "blockkd.baselines.logits",
    "BlockKD": "blockkd.block_kd",
    "Blocks": "blockkd.blocks",
    "CrossEntropy": "blockkd.baselines.logits",
    "DistillationModule": "blockkd.training",
    "Distiller": "blockkd.distiller",
    "Losses": "blockkd.distiller",
    "PartitionError": "blockkd.blocks",
    "connector": "blockkd.connectors",
    "load_exported": "blockkd.exporting.weights",
    "load_student": "blockkd.export",
    "partition": "blockkd.partitioning",
    "save_student": "blockkd.export",
}

__all__ = [
    "KD",
    "BlockKD",
    "Blocks",
    "CrossEntropy",
    "DistillationModule",
    "Distiller",
    "Losses",
    "PartitionError",
    "connector",
    "load_exported",
    "load_student",
    "partition",
    "save_student",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'blockkd' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
