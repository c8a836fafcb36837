"""What must fit together before a transformer is distilled: labels, vocabulary, length."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from blockkd.text.vocabulary import tokenizer_beside


class MismatchError(ValueError):
    """Teacher, student and tokenizer do not fit together; the message says what differs and what can be done."""


def check_labels(teacher: nn.Module, student: nn.Module) -> None:
    """Compare which output means which label, as far as the configurations tell.

    Raises:
        MismatchError: the numbers of labels or their names differ.
    """
    theirs, ours = _labels(teacher), _labels(student)
    if theirs is None or ours is None:
        return
    if len(theirs) != len(ours):
        raise MismatchError(
            f"the teacher tells {len(theirs)} labels apart ({_listed(theirs)}) and the student {len(ours)} "
            f"({_listed(ours)}): give the student's configuration num_labels={len(theirs)}"
        )
    if theirs != ours and not (_unnamed(theirs) or _unnamed(ours)):
        different = [
            f"{i} is {theirs[i]!r} to the teacher, {ours[i]!r} to the student"
            for i in theirs
            if _differ(theirs, ours, i)
        ]
        raise MismatchError(
            f"teacher and student number their labels differently: {', '.join(different)}; set id2label and label2id "
            "of the student's configuration to the teacher's, and let the data number its labels in this way"
        )


def check_vocabulary(tokenizer: Any, *networks: nn.Module) -> None:
    """Compare a tokenizer with the networks that are to read what it writes.

    A network that was loaded from a folder with a tokenizer beside it is known to read that one's tokens: their
    vocabularies are compared token by token.

    Args:
        tokenizer: of transformers; None where none is at hand, then the networks are compared with each other.
        networks: with configurations; of those that have no vocabulary nothing is asked.

    Raises:
        MismatchError: the tokenizer writes tokens that a network does not know, or by other numbers, pads with another
            one than a network expects, or, without one, the networks know different numbers of tokens.
    """
    _check_own_tokenizers(tokenizer, *networks)
    sizes = {network: size for network in networks if isinstance(size := _setting(network, "vocab_size"), int)}
    if tokenizer is None or not hasattr(tokenizer, "pad_token_id"):
        if len(set(sizes.values())) > 1:
            told = " and ".join(f"{type(network).__name__} {size}" for network, size in sizes.items())
            raise MismatchError(
                f"the networks know different numbers of tokens ({told}), so they do not read the same tokens: take a "
                "student with the teacher's tokenizer; if they do share one, give it (processing_class=tokenizer)"
            )
        return
    for network, size in sizes.items():
        name = type(network).__name__
        if len(tokenizer) > size:
            raise MismatchError(
                f"the tokenizer writes {len(tokenizer)} tokens and {name} knows {size}: it is not this network's "
                "tokenizer; load the one from the network's own folder"
            )
        pad = _setting(network, "pad_token_id")
        if pad is not None and tokenizer.pad_token_id is not None and pad != tokenizer.pad_token_id:
            raise MismatchError(
                f"the tokenizer pads with token {tokenizer.pad_token_id} and {name} takes {pad} for padding: it is not "
                "this network's tokenizer; load the one from the network's own folder"
            )


def check_tokenizers(one: Any, other: Any, names: tuple[str, str] = ("the teacher", "the student")) -> None:
    """Compare two tokenizers token by token; what is read by one network must be what the other reads.

    Args:
        one: a tokenizer of transformers.
        other: another one.
        names: whose they are.

    Raises:
        MismatchError: a token has another number in one than in the other, or is in one of them only.
    """
    ours, theirs = other.get_vocab(), one.get_vocab()
    different = [token for token in {**theirs, **ours} if theirs.get(token) != ours.get(token)]
    if not different:
        return
    # The first by number says most: what comes after one that is missing is moved as well.
    token = min(different, key=lambda token: (min(_numbers(token, theirs, ours)), token))
    said = " and ".join(
        f"{'number ' + str(vocabulary[token]) if token in vocabulary else 'unknown'} to {name}"
        for name, vocabulary in zip(names, (theirs, ours), strict=True)
    )
    raise MismatchError(
        f"{names[0]} and {names[1]} do not read the same tokens: {token!r} is {said}, and so with {len(different)} of "
        f"{len({**theirs, **ours})} tokens; take networks with one tokenizer, such as a student made of its teacher"
    )


def check_length(length: int, *networks: nn.Module) -> None:
    """Raises MismatchError if sequences of so many tokens are longer than a network has positions for."""
    for network in networks:
        positions = longest(network)
        if positions is not None and length > positions:
            raise MismatchError(
                f"sequences of {length} tokens are longer than the {positions} positions of {type(network).__name__}: "
                f"cut them at {positions} tokens (max_length={positions}), or give it more positions"
            )


def longest(network: nn.Module) -> int | None:
    """How many tokens a network has positions for; None where it has no table of them."""
    positions = _setting(network, "max_position_embeddings")
    if not isinstance(positions, int):
        return None
    # Of some families the table begins behind the padding token's number: two rows are never used.
    tables = [
        m for name, m in network.named_modules() if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)
    ]
    shifted = [table.padding_idx + 1 for table in tables if table.padding_idx is not None]
    return positions - max(shifted, default=0)


def _check_own_tokenizers(tokenizer: Any, *networks: nn.Module) -> None:
    """Compare the tokenizers that lie beside networks with the one given, and with each other."""
    known = [("the tokenizer given", tokenizer)] if hasattr(tokenizer, "get_vocab") else []
    for network in networks:
        own = tokenizer_beside(network)
        if own is not None:
            known.append((f"the {type(network).__name__} of {network.config._name_or_path!r}", own))  # type: ignore[union-attr]
    for name, own in known[1:]:
        check_tokenizers(known[0][1], own, (known[0][0], name))


def _numbers(token: str, *vocabularies: Mapping[str, int]) -> list[int]:
    return [vocabulary[token] for vocabulary in vocabularies if token in vocabulary]


def _setting(network: nn.Module, name: str) -> Any:
    return getattr(getattr(network, "config", None), name, None)


def _labels(network: nn.Module) -> dict[int, str] | None:
    labels = _setting(network, "id2label")
    return None if labels is None else {int(i): str(label) for i, label in labels.items()}


def _unnamed(labels: dict[int, str]) -> bool:
    return all(label == f"LABEL_{i}" for i, label in labels.items())


def _differ(theirs: dict[int, str], ours: dict[int, str], i: int) -> bool:
    return theirs[i] != ours.get(i)


def _listed(labels: dict[int, str]) -> str:
    shown = [labels[i] for i in sorted(labels)][:6]
    return ", ".join(shown) + (", ..." if len(labels) > len(shown) else "")
