"""On what something was measured, for the footer of a report."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def environment() -> dict[str, str]:
    """Date, versions and hardware, by name; a GPU only where there is one."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "blockkd": _version("blockkd"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}",
    }
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        facts["GPU"] = f"{count} × {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return facts


def cpu_model() -> str:
    """What the processor calls itself, or at least its architecture."""
    information = Path("/proc/cpuinfo")  # platform.processor() knows the architecture only, on Linux
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
