"""Writes docs/partition.md: how sixty classifiers of timm and torchvision are cut.

python benchmarks/partition_table.py
"""

import sys
from pathlib import Path

import timm
import torch
import torchvision

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from blockkd import PartitionError, partition  # noqa: E402, I001
from blockkd.models import create_model  # noqa: E402
from tests.sixty import SIDES  # noqa: E402

HEAD = """# How networks are cut

`blockkd.partition(network, example)` on sixty classifiers of timm {timm} and torchvision {torchvision} (torch {torch}),
as `python benchmarks/partition_table.py` wrote it; `tests/test_sixty.py` checks on each that the blocks, one after the
other, give what the network gives, bit for bit, in evaluation and in training mode.

{whole} of {all} partition by themselves in both modes, {partly} in evaluation mode only, {none} not at all.

| network | side | cut after (shape of one example; `HWC` maps with channels last, `LD` tokens) |
|---|---|---|
"""


def outcome(name: str, side: int) -> tuple[str, str]:
    network = create_model(name, num_classes=10)
    try:
        blocks = partition(network, torch.zeros(2, 3, side, side))
    except PartitionError as error:
        return "none", f"not: {str(error).partition('. ')[0]}"
    cuts = ", ".join(f"`{cut}` {feature}" for cut, feature in zip(blocks.names, blocks.features, strict=True))
    if blocks.training_error is None:
        return "whole", cuts
    return "partly", f"{cuts}; not in training mode: it returns several values (auxiliary outputs)"


def main() -> None:
    torch.manual_seed(0)
    found = {name: outcome(name, side) for name, side in SIDES.items()}
    counts = {kind: sum(k == kind for k, _ in found.values()) for kind in ("whole", "partly", "none")}
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__, "torch": torch.__version__}
    rows = [f"| `{name}` | {SIDES[name]} | {cuts} |\n" for name, (_, cuts) in found.items()]
    text = HEAD.format(all=len(found), **counts, **{k: v.partition("+")[0] for k, v in versions.items()})
    (HERE / "docs" / "partition.md").write_text(text + "".join(rows))


if __name__ == "__main__":
    main()
