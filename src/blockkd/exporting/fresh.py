"""What was written is run by another process, that has none of our code, and compared with the network."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from blockkd.calling import Inputs
from blockkd.exporting.calls import call, named, to_check
from blockkd.exporting.errors import ExportError

BATCHES = {1: 1.0, 2: 0.5, 7: 0.3}  # sizes, and to which share of their length sequences are cut
TOLERANCE = 1e-4  # between logits, beside which 1e-4 of the largest of them
LONGEST = 600.0  # seconds
OUTSIDE = Path(__file__).with_name("outside")
RUNNERS = {".onnx": OUTSIDE / "run_onnx.py", ".pt2": OUTSIDE / "run_pt2.py"}


def difference_in_fresh_process(path: Path, network: nn.Module, inputs: Inputs) -> float:
    """The largest difference between what the file says in a process of its own and what the network says here.

    Args:
        path: ``.onnx`` or ``.pt2``.
        network: what was written.
        inputs: a batch, of which kinds and sizes are taken; compared are batches of 1, 2 and 7: of random numbers, or
            of sequences like those in ``inputs``, whole and cut to a half and to a third.

    Raises:
        ExportError: the file does not run, or says something else.
    """
    batches = {str(size): to_check(inputs, size, seed=size, share=share) for size, share in BATCHES.items()}
    expected = {size: call(network, batch).float().numpy() for size, batch in batches.items()}
    got = _run(
        path, {f"{size}/{name}": t.numpy() for size, batch in batches.items() for name, t in named(batch).items()}
    )
    worst = 0.0
    for size, logits in expected.items():
        if got[size].shape != logits.shape:
            raise ExportError(f"{path.name} gives logits {got[size].shape} for a batch of {size}, not {logits.shape}")
        off = float(np.abs(got[size] - logits).max())
        if not off <= TOLERANCE * max(1.0, float(np.abs(logits).max())):
            raise ExportError(
                f"{path.name} says something else than the network: its logits differ by up to {off:.2g} for a batch "
                f"of {size}, expected at most {TOLERANCE:g}"
            )
        worst = max(worst, off)
    return worst


def _run(path: Path, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as place:
        inputs, outputs = Path(place, "inputs.npz"), Path(place, "outputs.npz")
        np.savez(inputs, **arrays)
        command = [sys.executable, "-P", str(RUNNERS[path.suffix]), str(path.absolute()), str(inputs), str(outputs)]
        same_imports = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST, cwd=place, env=same_imports, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"{path.name} does not run in a process of its own: {said}")
        with np.load(outputs, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
