"""Small transformers of every family, random weights, no download."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY, PAD = 50, 1
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": PAD}


def bert(layers: int, width: int, **options: Any) -> Any:
    return transformers.BertConfig(**_sizes(layers, width), **POSITIONS, **options)


def _sizes(layers: int, width: int) -> dict[str, Any]:
    return {**SIZES, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}


def _roberta(layers: int, width: int) -> Any:
    return transformers.RobertaConfig(**_sizes(layers, width), **POSITIONS)


def _distilbert(layers: int, width: int) -> Any:
    sizes = {"n_layers": layers, "dim": width, "n_heads": 2, "hidden_dim": 2 * width}
    return transformers.DistilBertConfig(**sizes, **POSITIONS)


def _electra(layers: int, width: int) -> Any:
    return transformers.ElectraConfig(**_sizes(layers, width), embedding_size=8, **POSITIONS)


def _mpnet(layers: int, width: int) -> Any:
    return transformers.MPNetConfig(**_sizes(layers, width), **POSITIONS)


def _deberta(layers: int, width: int) -> Any:
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    return transformers.DebertaConfig(**_sizes(layers, width), **POSITIONS, **relative)


def _deberta_v2(layers: int, width: int) -> Any:
    # As deberta-v3: buckets, normalised and shared between keys and positions. 12 rows: twice a batch of six.
    relative = {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 3, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "position_biased_input": False,
    }  # fmt: skip
    return transformers.DebertaV2Config(**_sizes(layers, width), **POSITIONS, **relative)


def _modernbert(layers: int, width: int) -> Any:
    ends = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    local = {"local_attention": 8, "classifier_pooling": "mean", "attention_dropout": 0.1, "mlp_dropout": 0.1}
    return transformers.ModernBertConfig(**_sizes(layers, width), **POSITIONS, **ends, **local)


def _qwen3(layers: int, width: int) -> Any:
    heads = {"num_key_value_heads": 1, "head_dim": 8, "attention_dropout": 0.1}
    return transformers.Qwen3Config(**_sizes(layers, width), **POSITIONS, **heads)


def _llama(layers: int, width: int) -> Any:
    return transformers.LlamaConfig(**_sizes(layers, width), **POSITIONS, num_key_value_heads=1, attention_dropout=0.1)


def _vit(layers: int, width: int) -> Any:
    return transformers.ViTConfig(**_sizes(layers, width), image_size=16, patch_size=4)


def _swin(layers: int, width: int) -> Any:
    sizes = {"embed_dim": width // 2, "depths": [1] * layers, "num_heads": [1] * layers}
    return transformers.SwinConfig(**sizes, window_size=2, image_size=16, patch_size=1)


IMAGES = {"vit": _vit, "swin": _swin}
TEXT: dict[str, Callable[[int, int], Any]] = {
    "bert": bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "mpnet": _mpnet,
    "deberta": _deberta,
    "deberta-v2": _deberta_v2,
    "modernbert": _modernbert,
    "qwen3": _qwen3,
    "llama": _llama,
}


def classifier(family: str, layers: int = 4, width: int = 16, classes: int = 3, seed: int = 0) -> nn.Module:
    """A classifier of that family, whose biases and norms are not blank."""
    torch.manual_seed(seed)
    if family in IMAGES:
        config, build = IMAGES[family](layers, width), transformers.AutoModelForImageClassification
    else:
        config, build = TEXT[family](layers, width), transformers.AutoModelForSequenceClassification
    config.num_labels = classes
    network: nn.Module = build.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def sentences(lengths: list[int], to: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Sequences of these lengths, padded on the right to the longest, or to a length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in lengths]
    ids = torch.full((len(lengths), to or max(lengths)), PAD)
    for row, sequence in zip(ids, tokens, strict=True):
        row[: len(sequence)] = sequence
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def images(count: int) -> Mapping[str, Tensor]:
    return {"pixel_values": torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
