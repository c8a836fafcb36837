"""What a device has room for, and what it gains from."""

import torch


def has_room(nbytes: int, device: torch.device) -> bool:
    """Whether so many bytes, kept there for good, leave the device half of what it has free. The CPU takes all.

    What is in the machine's memory stays where it is when the device is the CPU.
    """
    if device.type == "cpu":
        return True
    return device.type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] // 2
