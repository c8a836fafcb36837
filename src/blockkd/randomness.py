"""Seeds that hang on the run's seed and the epoch, and on nothing that happened before."""

import hashlib


def derived_seed(*numbers: int) -> int:
    """One seed of 32 bits from several numbers; other numbers, or another order, give an unrelated seed."""
    digest = hashlib.sha256(",".join(str(number) for number in numbers).encode()).digest()
    return int.from_bytes(digest[:4], "little")
