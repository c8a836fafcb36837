"""Students made of a teacher: some of its layers, or a new network of another size with its vocabulary and labels."""

import copy
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

from torch import Tensor, nn

WIDTHS = ("intermediate_size", "hidden_dim")  # of the layers' inner part, as families call it


def student_of(
    teacher: Any,
    layers: int | Sequence[int] | None = None,
    start: Literal["spread", "first", "fresh"] = "spread",
    **changes: Any,
) -> Any:
    """A smaller network of the teacher's family, with its vocabulary and its labels.

    Copied layers are the field's usual start: ``spread`` evenly from the first to the last (of 12 for 6: 1, 3, 5, 8,
    10, 12, as Sanh et al., "DistilBERT", arXiv 1910.01108, take about every other one), or the ``first`` (Sun et al.,
    "Patient Knowledge Distillation", EMNLP 2019, arXiv 1908.09355). Embeddings and head are copied with them. A network
    of another width has nothing to copy and starts ``fresh``.

        student_of(teacher, 6)                                     # six of its layers
        student_of(teacher, 4, hidden_size=312)                    # TinyBERT's size, random weights

    Args:
        teacher: a transformers classifier.
        layers: how many layers the student has, or which of the teacher's it copies, by number from 1; as many as the
            teacher when left out.
        start: what it starts from: ``spread`` or ``first`` layers of the teacher, or ``fresh`` random weights.
        changes: settings of the configuration that are to be others, as ``hidden_size`` or ``num_attention_heads``.
            When only ``hidden_size`` is given, the inner width of the layers keeps its proportion to it.

    Returns:
        The student, in training mode.

    Raises:
        ValueError: settings that the family does not have or that contradict each other, or layers that the teacher
            does not have.
    """
    total = teacher.config.num_hidden_layers
    chosen = _chosen(total, total if layers is None else layers, start)
    if changes and not isinstance(layers, int | None):
        raise ValueError(
            f"layers {list(chosen)} of the teacher are to be copied, but {_listed(changes)} is to be another"
        )
    config = _configured(teacher.config, chosen, changes)
    student = type(teacher)(config).to(next(teacher.parameters()).dtype)
    if not changes and start != "fresh":
        student.load_state_dict(_copied(teacher, chosen))
    return student.train()


def _chosen(total: int, layers: int | Sequence[int], start: str) -> list[int]:
    """The teacher's layers in the places of the student's, by number from 1."""
    if start not in ("spread", "first", "fresh"):
        raise ValueError(f"start is {start!r}, expected 'spread', 'first' or 'fresh'")
    if not isinstance(layers, int):
        wrong = [i for i in layers if not 1 <= i <= total]
        if wrong or not layers:
            raise ValueError(f"layers is {list(layers)}, expected numbers among 1 … {total}, which the teacher has")
        return list(layers)
    if layers < 1 or (layers > total and start != "fresh"):
        raise ValueError(
            f"layers is {layers}, expected 1 … {total}, as many as the teacher has, unless start is 'fresh'"
        )
    if layers > total:
        return [min(i, total) for i in range(1, layers + 1)]
    if start == "first" or layers == 1:
        return list(range(1, layers + 1))
    # Halves are rounded up, so that the last of two middle layers is taken.
    return [(2 * i * (total - 1) + layers - 1) // (2 * (layers - 1)) + 1 for i in range(layers)]


def _configured(config: Any, chosen: Sequence[int], changes: dict[str, Any]) -> Any:
    made = copy.deepcopy(config)
    made.num_hidden_layers = len(chosen)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:  # of networks whose layers differ
        made.layer_types = [kinds[i - 1] for i in chosen]
    for name, value in changes.items():
        if not hasattr(config, name):
            known = [*config.to_dict(), *config.attribute_map]
            near = get_close_matches(name, known, n=2)
            hint = f", did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"{type(config).__name__} has no setting {name!r}{hint}")
        setattr(made, name, value)
    if "hidden_size" in changes:
        for name in WIDTHS:
            if hasattr(config, name) and name not in changes:
                setattr(made, name, round(getattr(config, name) * made.hidden_size / config.hidden_size))
        for name, value in config.to_dict().items():  # the pooler's width, which some families tell apart
            if name.endswith("_hidden_size") and value == config.hidden_size and name not in changes:
                setattr(made, name, made.hidden_size)
        _check_heads(config, made)
    return made


def _check_heads(config: Any, made: Any) -> None:
    if made.hidden_size % made.num_attention_heads:
        raise ValueError(
            f"hidden_size is {made.hidden_size}, which {made.num_attention_heads} attention heads cannot share evenly: "
            "give num_attention_heads as well"
        )
    own = getattr(config, "head_dim", None)
    if own is not None and own * config.num_attention_heads == config.hidden_size and made.head_dim == own:
        made.head_dim = made.hidden_size // made.num_attention_heads


def _copied(teacher: nn.Module, chosen: Sequence[int]) -> dict[str, Tensor]:
    """The student's weights: those of the teacher, but for the layers, which are those chosen."""
    stack = _layers(teacher)
    found: dict[str, Tensor] = {}
    for name, value in teacher.state_dict().items():
        if not name.startswith(f"{stack}."):
            found[name] = value
            continue
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        for place, layer in enumerate(chosen):
            if layer == int(number) + 1:
                found[f"{stack}.{place}.{rest}"] = value
    return found


def _layers(teacher: Any) -> str:
    """The name of the list that holds the layers."""
    lists = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in teacher.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == teacher.config.num_hidden_layers
    }
    if not lists:
        raise ValueError(
            f"{type(teacher).__name__} keeps no list of its {teacher.config.num_hidden_layers} layers, so none can be "
            "copied: take start='fresh'"
        )
    return max(lists, key=lambda name: lists[name])


def _listed(changes: dict[str, Any]) -> str:
    return ", ".join(changes)
