"""Methods that compare what the networks' last layers are given."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.baselines.mixture import Mixture
from blockkd.distiller import Distiller, Losses
from blockkd.objectives import LogitDistance


class Head:
    """The layer that gives a network's logits; its input is the network's embedding of an example.

    Where a network pools, normalises or picks a class token after its last block, the embedding comes after
    that: it is what the field calls the penultimate feature. The layer is looked up by name each time, and
    watched only while the network runs, so the network itself stays as it is.

    Args:
        network: the network.
        name: the layer's name in it; its last ``nn.Linear`` when left out.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, network: nn.Module, name: str | None = None) -> None:
        known = dict(network.named_modules())
        linear = [each for each, module in known.items() if isinstance(module, nn.Linear)]
        if name is not None and name not in known:
            raise ValueError(f"{type(network).__name__} has no layer {name!r}; its linear layers are {linear}")
        if name is None and not linear:
            raise ValueError(
                f"{type(network).__name__} has no linear layer, so where its embedding is cannot be told: name the "
                "layer that gives the logits (teacher_head, student_head)"
            )
        self.guessed = name is None
        self.name = linear[-1] if name is None else name

    @contextmanager
    def watched(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """While ``network`` runs inside, the inputs of its head are appended to the list given."""
        inputs: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.append(args[0])

        handle = network.get_submodule(self.name).register_forward_pre_hook(keep)
        try:
            yield inputs
        finally:
            handle.remove()

    def embedding(self, network: nn.Module, inputs: list[Tensor], logits: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        """The embeddings ``(B, D)``, of what was kept while the network ran.

        Raises:
            ValueError: the layer took no part, or is not the one behind the logits.
        """
        found = [len(x) for x in inputs]
        if found != [len(logits)]:
            raise ValueError(
                f"layer {self.name!r} of {type(network).__name__} was expected to run once, on a batch of "
                f"{len(logits)}, but ran on batches of {found}: name the layer that gives the logits "
                "(teacher_head, student_head)"
            )
        outputs = getattr(network.get_submodule(self.name), "out_features", None)
        if self.guessed and outputs != logits.shape[1]:
            raise ValueError(
                f"layer {self.name!r}, the last linear one of {type(network).__name__}, gives {outputs} values, but "
                f"there are {logits.shape[1]} logits: name the layer that gives them (teacher_head, student_head)"
            )
        return inputs[0].flatten(1)


class EmbeddingDistiller(Distiller):
    """``L = α · CE(Y^S, y) + β · L_method(embeddings) + w · d_L(Y^S, Y^T)``.

    Args:
        teacher: trained; maps a batch to logits ``(B, K)``; frozen from here on.
        student: maps a batch to logits ``(B, K)``; trained in place.
        beta: weight β of the method's own loss.
        alpha: weight α of the labels.
        logit_weight: weight w of a logit distance beside them.
        distance: the logit distance ``d_L``; ``KL(temperature=4)`` when left out.
        teacher_head, student_head: the name of the layer that gives the logits, whose input is compared; the last
            ``nn.Linear`` when left out.

    Raises:
        ValueError: a network without such a layer, or weights below zero.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        beta: float,
        alpha: float = 1.0,
        logit_weight: float = 0.0,
        distance: LogitDistance | None = None,
        teacher_head: str | None = None,
        student_head: str | None = None,
    ) -> None:
        super().__init__(teacher, student)
        self.mixture = Mixture(alpha, beta, logit_weight, distance)
        self.heads = Head(teacher, teacher_head), Head(student, student_head)

    @abstractmethod
    def embedding_losses(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Embeddings of both networks → the method's losses by name, not yet weighed by β."""

    def forward(self, inputs: Any, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses ``task/student``, ``feature/…`` and ``distill/student``."""
        teacher_head, student_head = self.heads
        network = self.teacher
        assert network is not None
        with student_head.watched(self.student) as ours:
            logits = self.student(inputs, **context)
        with teacher_head.watched(network) as theirs:
            target = self.teacher_logits(inputs, **context)
        losses = {}
        if self.mixture.beta:
            losses = self.embedding_losses(
                student_head.embedding(self.student, ours, logits), teacher_head.embedding(network, theirs, target)
            )
        return self.mixture.losses(logits, targets, target, losses)
