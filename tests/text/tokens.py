"""A tokenizer of whole words, made in memory, and sentences that a small network can learn."""

import random
from typing import Any

import pytest

from tests.text.families import transformers

tokenizers: Any = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

GOOD, BAD = ["good", "great", "fine"], ["bad", "awful", "poor"]
NEUTRAL = ["the", "film", "plot", "was", "and", "actor", "scene", "very"]
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer() -> Any:
    """[PAD] is token 1, as in ``families``."""
    words = [*SPECIAL, *GOOD, *BAD, *NEUTRAL]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **names
    )


def reviews(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with one telling word, and whether it praises."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(NEUTRAL, k=draw.randint(1, 9))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label else BAD))
        found.append({"sentence": " ".join(words), "label": label})
    return found


def encoded(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same as tokens."""
    write = tokenizer()
    return [{**write(row["sentence"]), "label": row["label"]} for row in reviews(count, seed)]
