"""Where connectors start: so that each stone begins near what the teacher's blocks were trained on, in closed form.

A fresh connector gives features of mean 0 and deviation 1 in each channel, behind which the teacher's blocks have never
worked. A few batches of both networks' features tell better values; nothing is trained for it.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from blockkd.blockwise import BlockwiseDistiller
from blockkd.connectors import MapConnector, shrink, to_maps
from blockkd.tracing import undisturbed

Start = Literal["moments", "least_squares"]


@torch.no_grad()
def start_connectors(
    distiller: BlockwiseDistiller, batches: Iterable[Float[Tensor, "B ..."]], how: Start = "least_squares"
) -> None:
    """Start the connectors of a distiller from the features that both networks have of a few batches.

    With z the student's feature at a place (on the grid on which the connector maps channels), t the teacher's there,
    and means and covariances over all places of all batches:

    * ``"moments"``: the batch norm's scale and shift become deviation and mean of each channel of t; the
      convolution stays as it was drawn.
    * ``"least_squares"``: beside that the convolution becomes ``W = Cov(t, z) Cov(z)⁺``, and the scale what the batch
      norm divides by, so that the connector gives ``W (z - E z) + E t``: of all affine maps the one that is
      nearest to the teacher's feature.

    The running statistics become those of ``W z``. The student is run as in training, and nothing of it, of the
    teacher or of the random state moves.

    Args:
        distiller: its connectors are the package's for maps, and change in place.
        batches: inputs ``(B, ...)``; a few hundred examples will do. Together they need more places than the student's
            widest feature has channels.
        how: which of the two.

    Raises:
        ValueError: a connector is none of the package's for maps, there is no batch, or ``how`` is another word.
    """
    if how not in ("moments", "least_squares"):
        raise ValueError(f"how is {how!r}, expected 'moments' or 'least_squares'")
    wrong = {i: type(made).__name__ for i, made in distiller.connectors.items() if not isinstance(made, MapConnector)}
    if wrong:
        raise ValueError(f"connectors {wrong} cannot be started in closed form: only MapConnector has a batch norm")
    moments = {stage: _Moments() for stage in distiller.connectors}
    for inputs in batches:
        with undisturbed(distiller.student, training=True):
            ours, _ = distiller.student_features(inputs)
        theirs, _ = distiller.teacher_features(inputs)
        for stage, made in distiller.connectors.items():
            assert isinstance(made, MapConnector)
            moments[stage].add(*_places(made, ours[int(stage) - 1], theirs[int(stage) - 1]))
    for stage, made in distiller.connectors.items():
        assert isinstance(made, MapConnector)
        _start(made, moments[stage], how)


class _Moments:
    """Mean and covariance of pairs of vectors (z, t), summed up in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._squares = torch.zeros(())

    def add(self, z: Float[Tensor, "N c"], t: Float[Tensor, "N d"]) -> None:
        rows = torch.cat([z, t], dim=1).double()
        self.count += len(rows)
        self._sum, self._squares = self._sum + rows.sum(0), self._squares + rows.T @ rows

    @property
    def mean(self) -> Float[Tensor, " c+d"]:
        return self._sum / self.count

    @property
    def covariance(self) -> Float[Tensor, "c+d c+d"]:
        return self._squares / self.count - self.mean.outer(self.mean)


def _places(
    made: MapConnector, ours: Float[Tensor, "B ..."], theirs: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "N c"], Float[Tensor, "N d"]]:
    """Student's and teacher's features, a row a place, on the grid on which the connector maps channels."""
    student = shrink(to_maps(ours, made.source), made.target.places)
    height, width = student.shape[2:]
    teacher = shrink(to_maps(theirs, made.target), (height, width))
    return student.movedim(1, -1).flatten(0, 2), teacher.movedim(1, -1).flatten(0, 2)


def _start(made: MapConnector, moments: _Moments, how: Start) -> None:
    if moments.count == 0:
        raise ValueError("there is no batch to start the connectors from; give at least one")
    c = made.project.in_channels
    mean, covariance = moments.mean, moments.covariance
    if how == "least_squares":
        weight = covariance[c:, :c] @ torch.linalg.pinv(covariance[:c, :c], hermitian=True)
        made.project.weight.copy_(weight[:, :, None, None])
    weight = made.project.weight[:, :, 0, 0].double()
    variance = (weight @ covariance[:c, :c] * weight).sum(1).clamp(min=0)
    assert made.norm.running_mean is not None
    assert made.norm.running_var is not None
    made.norm.running_mean.copy_(weight @ mean[:c])
    made.norm.running_var.copy_(variance)
    deviation = (variance + made.norm.eps) if how == "least_squares" else covariance.diagonal()[c:].clamp(min=0)
    made.norm.weight.copy_(deviation.sqrt())
    made.norm.bias.copy_(mean[c:])
