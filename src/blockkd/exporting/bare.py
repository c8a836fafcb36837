"""Proof that an export holds the student and nothing else: every file is read back, and all that is in it is named.

What is shown, of each export and before anything bears the export's name:

1. *Each tensor in the file is the student's*: it has the name, shape, kind and bits of a parameter or buffer of a
   student that was built from its description alone, where no teacher was. What has no such name (shapes, ε, scales
   that the code of the network writes out) are at most 1,024 numbers in the whole file, where a tensor of equal
   numbers counts as one, and 65,536 whole numbers.
2. *There is no room for more*: the bytes of the file are those of these tensors and of the graph's description.
3. *None of the student's tensors is one of the teacher's*, bit for bit, unless a student that is built from its
   description has it as well (a table of positions), it says nothing (all its numbers are equal), the student started
   from it and training has not changed it (a frozen embedding, copied with some layers), or the method deploys it on
   purpose, as SimKD does the teacher's classifier. The last two are named in the card.

With 1 and 2 neither connectors nor stones nor other parts of a distiller can be in it, whatever they are called. Not
shown is that the *values* of the student say nothing of its teacher; that they do is the point of distilling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blockkd.exporting.calls import WRAPPED, tensors_of
from blockkd.exporting.errors import NotBareError

Found = list[tuple[str, Tensor]]

SPARE_NUMBERS = 2**10
SPARE_WHOLE_NUMBERS = 2**16
LEAST = 4  # numbers that a tensor has at least for it to be nobody else's by chance


def check_only_students(
    found: Sequence[tuple[str, Tensor]], student: nn.Module, where: str, spare: bool, renamed: bool = False
) -> None:
    """Raise NotBareError unless all tensors that were found are the student's.

    Args:
        found: what was read from a file: names with tensors.
        student: built and loaded apart from what was exported.
        where: the file, for the message.
        spare: whether the network's code may have written some numbers out as tensors.
        renamed: whether tensors may bear other names, as transformers saves those of some families under older ones.
    """
    own, numbers, whole = tensors_of(student), 0, 0
    for name, tensor in found:
        mine = own.get(name, own.get(name.removeprefix(WRAPPED)))
        candidates = own.values() if renamed else [mine] if mine is not None else []
        if any(_same(candidate.detach().cpu(), tensor) for candidate in candidates):
            continue
        if mine is not None or not spare:
            reason = "is not the student's" if mine is None else "has other values than the student's"
            raise NotBareError(f"{where} holds {name!r} {tuple(tensor.shape)}, which {reason}; nothing was exported")
        told = tensor.numel() if tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any()) else 1
        if tensor.is_floating_point() or tensor.is_complex():
            numbers += told
        else:
            whole += told
        if numbers > SPARE_NUMBERS or whole > SPARE_WHOLE_NUMBERS:
            raise NotBareError(
                f"{where} holds {name!r} {tuple(tensor.shape)}, which is no parameter and no buffer of the student; "
                "nothing was exported: what the network's forward makes of constants belongs into a buffer "
                "(register_buffer)"
            )


def check_same(network: nn.Module, bare: nn.Module) -> None:
    """Raise NotBareError unless what is to be exported has exactly the tensors of the bare student."""
    found, own = tensors_of(network), tensors_of(bare)
    if more := sorted(found.keys() - own.keys()):
        raise NotBareError(f"the network to export has {len(more)} tensors that no student has: {_some(more)}")
    if missing := sorted(own.keys() - found.keys()):
        raise NotBareError(f"the network to export lacks {len(missing)} tensors of the student: {_some(missing)}")
    check_only_students([(name, tensor.detach().cpu()) for name, tensor in found.items()], bare, "the network", False)


def teachers_tensors(student: nn.Module, teacher: nn.Module, fresh: nn.Module | None = None) -> list[str]:
    """The names of the student's tensors that are one of the teacher's, bit for bit.

    Args:
        student: the student.
        teacher: its teacher.
        fresh: a newly built student; what it has as well does not come from the teacher.
    """
    theirs: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in tensors_of(teacher).values():
        theirs.setdefault(tuple(tensor.shape), []).append(tensor.detach().cpu())
    started: Mapping[str, Tensor] = {} if fresh is None else tensors_of(fresh)
    found = []
    for name, tensor in tensors_of(student).items():
        mine = tensor.detach().cpu()
        if not _tells_apart(mine) or (name in started and _same(started[name].detach().cpu(), mine)):
            continue
        if any(_same(other, mine) for other in theirs.get(tuple(mine.shape), [])):
            found.append(name)
    return found


@dataclass(frozen=True)
class Shared:
    """The student's tensors that are the teacher's, bit for bit, by name.

    Attributes:
        deployed: which the method deploys on purpose.
        started: which the student started from, and which training has left as they were.
    """

    deployed: Sequence[str] = ()
    started: Sequence[str] = ()


def shared_tensors(
    student: nn.Module, teacher: nn.Module | None, built: nn.Module, fresh: nn.Module | None, deployed: bool
) -> Shared:
    """What the student has of the teacher, where it may; anything else raises NotBareError.

    Args:
        student: the student.
        teacher: its teacher; None where it is not known.
        built: from the student's description alone, without its weights: what it has is of the code.
        fresh: a new student, as the training began with it.
        deployed: whether the method made the student, out of parts of the teacher as well.
    """
    if teacher is None:
        return Shared()
    if deployed:
        return Shared(deployed=teachers_tensors(student, teacher, built))
    check_nothing_of_teacher(student, teacher, fresh)
    return Shared(started=teachers_tensors(student, teacher, built))


def check_nothing_of_teacher(student: nn.Module, teacher: nn.Module, fresh: nn.Module | None = None) -> None:
    """Raise NotBareError when a tensor of the student is one of the teacher's; see ``teachers_tensors``."""
    if found := teachers_tensors(student, teacher, fresh):
        raise NotBareError(
            f"{len(found)} tensors of the student are the teacher's, bit for bit: {_some(found)}; nothing was "
            "exported. Training would have changed them: is the file of the student's weights really the student's?"
        )


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(one, two) or (one.is_floating_point() and torch.equal(one.nan_to_num(), two.nan_to_num()))


def _tells_apart(tensor: Tensor) -> bool:
    return tensor.numel() >= LEAST and bool((tensor != tensor.flatten()[0]).any())


def _some(names: Sequence[str], shown: int = 3) -> str:
    return f"{', '.join(names[:shown])}{', ...' if len(names) > shown else ''}"
