"""CRD: the student's embedding of a sample is to be found among many by the teacher's of the same, and vice versa."""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from blockkd.baselines.embeddings import EmbeddingDistiller
from blockkd.baselines.numerics import products, widen
from blockkd.distiller import Losses
from blockkd.ranks import gathered, own_rows, ranks

MOMENTUM = 0.5


class CRD(EmbeddingDistiller):
    """Contrastive representation distillation: ``L = α · CE + β · (NCE(S → T) + NCE(T → S)) + w · d_L(Y^S, Y^T)``.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, the loss its
    equation 18, and the authors' public code, of which all defaults are. What the final linear classifier gets is
    embedded by a linear layer and divided by its norm, in both networks. For a sample's embedding, the other network's
    of the same sample is to be told from K others, by noise-contrastive estimation with the critic
    ``h = e^(s/τ) / (e^(s/τ) + K · c)``, s the cosine. K·c is the paper's N/M (its N negatives of M samples) in units
    of what the critic gives at the start: as in the authors' code, c is the mean of ``e^(s/τ)`` over the first batch,
    and stays. Their ``1e-7`` in the denominators is left out.

    *The memory*: the embeddings of all ``n_samples`` training samples in both networks, each an average that moves by
    ``momentum`` when its sample comes by; positives and negatives are taken from it. It is saved with the checkpoint.
    Negatives are samples of another class, as the authors draw them: those drawn of the same class are left out, and
    the mean over the rest counts K times, so that the sum over K negatives, which the weight 0.8 belongs to, is kept.
    Classes are learned from the batches; before its first visit a sample is a random direction, of no class.

    *What it needs*: 2 × 4 bytes × ``n_samples`` × ``dim`` (51 MB for CIFAR-100, 1.3 GB for ImageNet), and one number
    per sample of the batch and of the memory for either direction, the negatives being picked from all scores. The
    authors' code copies the negatives out first: ``B · K · dim`` numbers in each direction, 0.5 GB for a batch of 64.
    With ``queue_size`` instead of ``n_samples`` all this no longer grows with the data: the memory holds only the last
    so many embeddings, oldest out first, and the positive is the other network's embedding from the same step. That
    is not the paper's method (it is closer to MoCo), but it needs no ``indices``.

    Args:
        teacher, student, example: see ``EmbeddingDistiller``.
        n_samples: how many training samples there are; ``blockkd distill`` counts them.
        queue_size: how many embeddings to keep instead of one for each sample.
        beta: weight β of the contrast.
        dim: width of the embeddings.
        negatives: K, drawn for each sample, with replacement.
        temperature: τ > 0.
        momentum: the share of the old embedding in the memory's new one; 0.5 when left out. A queue has none.
        shared: the other parameters of ``EmbeddingDistiller``.

    Attributes:
        needs_indices: whether ``forward`` must be told which training samples it gets.

    Raises:
        ValueError: not exactly one of ``n_samples`` and ``queue_size`` is given, a number is out of range, or a network
            has no linear layer behind its logits.
    """

    log_mean_student: Tensor
    log_mean_teacher: Tensor
    cursor: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor | None = None,
        *,
        n_samples: int | None = None,
        queue_size: int | None = None,
        beta: float = 0.8,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(teacher, student, example, beta=beta, **shared)
        _check_options(n_samples, queue_size, momentum, dim=dim, negatives=negatives, temperature=temperature)
        networks = teacher, student
        widths = [head.linear(network).in_features for head, network in zip(self.heads, networks, strict=True)]
        self.embed_student, self.embed_teacher = nn.Linear(widths[1], dim), nn.Linear(widths[0], dim)
        self.memory = Memory(n_samples or queue_size or 0, dim)
        self.has_queue = queue_size is not None
        self.needs_indices = bool(beta) and not self.has_queue
        self.momentum = 0.0 if self.has_queue else MOMENTUM if momentum is None else momentum
        self.negatives, self.temperature = negatives, temperature
        self.register_buffer("log_mean_student", torch.tensor(math.inf))  # log c; infinite until the first batch
        self.register_buffer("log_mean_teacher", torch.tensor(math.inf))
        self.register_buffer("cursor", torch.tensor(0))
        like = next(p for p in student.parameters() if p.is_floating_point())
        for part in (self.embed_student, self.embed_teacher, self.memory):
            part.to(like)

    def forward(
        self,
        inputs: Any,
        targets: Int[Tensor, " B"],
        *,
        indices: Int[Tensor, " B"] | None = None,
        **context: Float[Tensor, "B ..."],
    ) -> Losses:
        """One batch → the losses ``task/student``, ``feature/student``, ``feature/teacher`` and ``distill/student``.

        Args:
            inputs: ``(B, ...)``.
            targets: labels ``(B,)``.
            indices: which training samples these are, ``(B,)``, each ``0 … n_samples - 1``; not needed by a queue.
            context: further arguments of both networks.

        Raises:
            ValueError: ``indices`` are missing or out of range.
        """
        if self.needs_indices:
            _check_indices(indices, len(targets), self.memory.size)
        return self.compared(inputs, targets, partial(self._contrast, targets=targets, indices=indices), **context)

    def _contrast(
        self,
        student: Float[Tensor, "B S"],
        teacher: Float[Tensor, "B T"],
        targets: Int[Tensor, " B"],
        indices: Int[Tensor, " B"] | None,
    ) -> dict[str, Tensor]:
        ours, theirs = _unit(self.embed_student(student)), _unit(self.embed_teacher(teacher))
        # Drawn for the whole batch by every rank, so that ranks with the same random numbers draw apart.
        batch = len(targets) * ranks()
        drawn = own_rows(torch.randint(self.memory.size, (batch, self.negatives), device=targets.device))
        allowed = self.memory.labels[drawn] != targets[:, None]
        if self.has_queue or indices is None:
            keys_student, keys_teacher = ours.detach(), theirs.detach()
            rows = (self.cursor + torch.arange(batch, device=targets.device)) % self.memory.size
        else:
            keys_student, keys_teacher = self.memory.student[indices], self.memory.teacher[indices]
            allowed, rows = allowed & (drawn != indices[:, None]), gathered(indices)
        losses = {
            "feature/student": self._direction("student", ours, keys_teacher, self.memory.teacher, drawn, allowed),
            "feature/teacher": self._direction("teacher", theirs, keys_student, self.memory.student, drawn, allowed),
        }
        if self.training:
            last = slice(-self.memory.size, None)  # a batch may be longer than the queue
            ours, theirs, targets = (gathered(values.detach())[last] for values in (ours, theirs, targets))
            self.memory.write(rows[last], ours, theirs, targets, self.momentum)
            self.cursor = (self.cursor + batch) % self.memory.size
        return losses

    def _direction(
        self,
        name: str,
        anchors: Float[Tensor, "B D"],
        keys: Float[Tensor, "B D"],
        memory: Float[Tensor, "N D"],
        drawn: Int[Tensor, "B K"],
        allowed: Bool[Tensor, "B K"],
    ) -> Float[Tensor, ""]:
        positive = (anchors * keys).sum(dim=1)
        negative = products(anchors, memory.to(anchors)).gather(1, drawn)
        log_mean = getattr(self, f"log_mean_{name}")
        first = _log_mean_critic(positive.detach(), negative.detach(), self.temperature)
        log_mean = torch.where(torch.isinf(log_mean), first.to(log_mean), log_mean)
        if self.training:
            setattr(self, f"log_mean_{name}", log_mean)
        return noise_contrastive(positive, negative, allowed, log_mean, self.temperature)


def noise_contrastive(
    positive: Float[Tensor, " B"],
    negative: Float[Tensor, "B K"],
    allowed: Bool[Tensor, "B K"],
    log_mean: Float[Tensor, ""],
    temperature: float,
) -> Float[Tensor, ""]:
    """``- log h(positive) - K · mean log(1 - h(negative))`` with ``h = e^(s/τ) / (e^(s/τ) + K · c)``; see ``CRD``.

    Args:
        positive: cosine with the other network's embedding of the same sample, ``(B,)``.
        negative: cosine with those of other samples, ``(B, K)``.
        allowed: which of these count, ``(B, K)``; the mean is taken over them, and is 0 where there are none.
        log_mean: ``log c``.
        temperature: τ > 0.

    Returns:
        The mean over the batch, a scalar; float32 for half-precision input.
    """
    offset = math.log(negative.shape[1]) + widen(log_mean)
    # h is a sigmoid; on the logarithm nothing can overflow, as e^(1/0.07) does in half precision.
    hits = F.logsigmoid(widen(positive) / temperature - offset)
    misses = F.logsigmoid(offset - widen(negative) / temperature) * allowed
    mean = misses.sum(dim=1) / allowed.sum(dim=1).clamp(min=1)
    return -(hits + negative.shape[1] * mean).mean()


class Memory(nn.Module):
    """Embeddings of samples in both networks, with their labels; buffers, so in every checkpoint.

    Args:
        size: how many.
        dim: their width.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("student", _unit(torch.randn(size, dim)))
        self.register_buffer("teacher", _unit(torch.randn(size, dim)))
        self.register_buffer("labels", torch.full((size,), -1))

    @torch.no_grad()
    def write(
        self,
        rows: Int[Tensor, " B"],
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        momentum: float,
    ) -> None:
        """Move these rows towards new embeddings; each keeps the share ``momentum`` of what it was."""
        # New tensors: the old ones are still needed for the gradient of the scores.
        for name, new in (("student", student), ("teacher", teacher)):
            old = getattr(self, name)
            moved = _unit(momentum * old[rows] + (1 - momentum) * new.to(old))
            setattr(self, name, old.index_copy(0, rows, moved))
        self.labels = self.labels.index_copy(0, rows, labels.to(self.labels))


def _unit(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return F.normalize(vectors, dim=1)


def _log_mean_critic(
    positive: Float[Tensor, " B"], negative: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    scores = widen(torch.cat([positive[:, None], negative], dim=1))
    of_each_rank = gathered((scores / temperature).flatten().logsumexp(dim=0, keepdim=True))
    return of_each_rank.logsumexp(dim=0) - math.log(scores.numel() * ranks())


def _check_options(
    n_samples: int | None, queue_size: int | None, momentum: float | None, **positive: int | float
) -> None:
    if (n_samples is None) == (queue_size is None):
        raise ValueError(
            f"n_samples is {n_samples} and queue_size is {queue_size}, expected exactly one of them: CRD remembers "
            "each training sample (n_samples=50000 for CIFAR-100) or the last so many (queue_size=16384)"
        )
    if queue_size is not None and momentum is not None:
        raise ValueError(f"momentum is {momentum}, but a queue has none: leave it out, or give n_samples")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}, expected 0 ≤ momentum < 1")
    sizes = {"n_samples": n_samples, "queue_size": queue_size, **positive}
    wrong = {name: value for name, value in sizes.items() if value is not None and not value > 0}
    if wrong:
        raise ValueError(f"{', '.join(f'{name} is {value}' for name, value in wrong.items())}, expected above zero")


def _check_indices(indices: Tensor | None, batch: int, size: int) -> None:
    if indices is None:
        raise ValueError(
            "CRD remembers every training sample and must know which ones these are: call it with indices=, their "
            "numbers in the training set (B,), or build it with queue_size= instead of n_samples="
        )
    if indices.shape != (batch,):
        raise ValueError(f"indices have shape {tuple(indices.shape)}, expected ({batch},): one number per sample")
    if indices.device.type == "cpu" and batch and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(
            f"indices lie in {int(indices.min())} … {int(indices.max())}, expected 0 … {size - 1}: n_samples is {size}"
        )
