"""Tokenizers: which one a network came with, and when two are the same."""

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

# Files by which a folder is known to hold a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def tokenizer_beside(network: nn.Module) -> Any | None:
    """The tokenizer in the folder that a network was loaded from; None where there is none, or no such folder."""
    name = getattr(getattr(network, "config", None), "_name_or_path", None)
    folder = Path(name) if isinstance(name, str) and name else None
    if folder is None or not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer  # a network that was loaded by it is there, so it is installed

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):
        return None  # is no hindrance where another one is given


def tokenizer_identity(tokenizer: Any) -> str:
    """A hash of a tokenizer's vocabulary, and of how it pads."""
    digest = hashlib.sha256(f"{tokenizer.pad_token_id} {tokenizer.padding_side}".encode())
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        digest.update(f"{number} {token}\n".encode())
    return digest.hexdigest()
