"""Every shape written in a signature (``Float[Tensor, "B K"]``) is checked while the tests run.

All but the networks': while a network is traced, its input is a symbol and no tensor.
"""

import torch
from jaxtyping import install_import_hook

from tests.reliability.figures import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]  # pytest looks for it here, whatever part of the tests is run

CHECKED = (
    "baselines",
    "block_kd",
    "connectors",
    "distances",
    "distiller",
    "examples",
    "features",
    "objectives",
    "partitioning",
    "stones",
)
# Installed before any test imports blockkd.
install_import_hook([f"blockkd.{name}" for name in CHECKED], "beartype.beartype")

# The tests run side by side, on networks that gain nothing from a second thread.
torch.set_num_threads(1)
