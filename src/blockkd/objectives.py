"""The objectives: pure functions from tensors to a scalar, each with its equation and source.

In every pair of logits the *learner* is what is trained and the *target* what it should become. The functions
let gradient flow into both; whoever calls them detaches the target, where it is one.

Half-precision logits (float16, bfloat16) are widened to float32 before anything is computed, and the loss is
float32; float64 stays float64. Nothing here waits for the device.
"""

import math

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

CONSTANT_ROW = 1e-7  # standard deviation up to which a row of logits counts as constant
CONSTANT_NORM = 1e-16  # product of two norms up to which one of the two counts as constant


def cross_entropy(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy with the labels, ``-Σ_k q_k log softmax(z)_k`` with ``q = (1-ε) onehot(y) + ε/K``.

    Source: label smoothing from Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
    CVPR 2016, arXiv 1512.00567, section 7.

    Args:
        logits: ``(B, K)``.
        labels: ``(B,)``, class indices ``0 … K-1``.
        label_smoothing: ε, the share of the target spread evenly over all classes, 0 ≤ ε < 1.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: ``label_smoothing`` outside 0 ≤ ε < 1.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 ≤ ε < 1")
    return F.cross_entropy(_widen(logits), labels.long(), label_smoothing=label_smoothing)


def task_loss(
    logits: Float[Tensor, "B K"], targets: Real[Tensor, " B"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """What the labels ask for: cross-entropy with classes, squared error with numbers (a regression).

    Args:
        logits: ``(B, K)``; of a regression the one number told, K = 1.
        targets: labels ``(B,)``, class indices ``0 … K-1`` or floating-point numbers.
        label_smoothing: ε, for classes only; see ``cross_entropy``.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: several outputs for one number, or ``label_smoothing`` that is out of range or for numbers.
    """
    if not targets.is_floating_point():
        return cross_entropy(logits, targets, label_smoothing)
    if label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}, but the labels are numbers: leave it out")
    if logits.shape[1] != 1:
        raise ValueError(f"the labels are numbers, but there are {logits.shape[1]} outputs for each: expected one")
    return squared_error(logits, targets.unsqueeze(1))


def kl_divergence(learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, ""]:
    """Softened Kullback-Leibler divergence, ``τ² · KL(softmax(target/τ) ‖ softmax(learner/τ))``.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
    section 2. The factor τ² keeps the size of the gradient when τ changes.

    Args:
        learner: logits that learn, ``(B, K)``.
        target: logits to be learned, ``(B, K)``.
        temperature: τ > 0.

    Returns:
        The mean over the batch, a scalar ≥ 0 (up to rounding).

    Raises:
        ValueError: τ is not above zero, or the shapes differ.
    """
    _check_shapes(learner, target)
    return temperature**2 * _kl(_soften(learner, temperature), _soften(target, temperature))


def target_class_kd(
    learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Int[Tensor, " B"], temperature: float
) -> Float[Tensor, ""]:
    """TCKD, the labelled class against all others: ``τ² · KL(b^T ‖ b^S)`` with ``b = (p_t, 1 - p_t)``.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.1.
    ``p_t`` is the softened probability of the labelled class. The paper's equations leave τ out; the factor
    τ² is the one of the authors' experiments.

    Args:
        learner: logits that learn, ``(B, K)``, K ≥ 2.
        target: logits to be learned, ``(B, K)``.
        labels: ``(B,)``, class indices ``0 … K-1``.
        temperature: τ > 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: τ is not above zero, the shapes differ, or there is only one class.
    """
    _check_shapes(learner, target, labels)
    pairs = (_target_against_rest(_soften(logits, temperature), labels) for logits in (learner, target))
    return temperature**2 * _kl(*pairs)


def non_target_class_kd(
    learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"], labels: Int[Tensor, " B"], temperature: float
) -> Float[Tensor, ""]:
    """NCKD, the other classes among themselves: ``τ² · KL(p̂^T ‖ p̂^S)``.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.1, with
    ``p̂_i = exp(z_i/τ) / Σ_{j≠t} exp(z_j/τ)`` for i ≠ t; times τ² as in the authors' experiments. The
    labelled column is taken out rather than masked by a large number: two classes give exactly 0, and no
    logit is large enough to shine through.

    Args:
        learner: logits that learn, ``(B, K)``, K ≥ 2.
        target: logits to be learned, ``(B, K)``.
        labels: ``(B,)``, class indices ``0 … K-1``.
        temperature: τ > 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: τ is not above zero, the shapes differ, or there is only one class.
    """
    _check_shapes(learner, target, labels)
    rest = (_without_target(_soften(logits, temperature), labels) for logits in (learner, target))
    return temperature**2 * _kl(*rest)


def decoupled_kd(
    learner: Float[Tensor, "B K"],
    target: Float[Tensor, "B K"],
    labels: Int[Tensor, " B"],
    alpha: float,
    beta: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """DKD, ``α · TCKD + β · NCKD``.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3.3. Plain
    KD is ``TCKD + (1 - p_t^T) · NCKD`` in each sample: it mutes the second part where the teacher is sure.
    DKD replaces that factor by β.

    Args:
        learner: logits that learn, ``(B, K)``, K ≥ 2.
        target: logits to be learned, ``(B, K)``.
        labels: ``(B,)``, class indices ``0 … K-1``.
        alpha: weight α of TCKD.
        beta: weight β of NCKD.
        temperature: τ > 0.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: τ is not above zero, the shapes differ, or there is only one class.
    """
    return alpha * target_class_kd(learner, target, labels, temperature) + beta * non_target_class_kd(
        learner, target, labels, temperature
    )


def dist(
    learner: Float[Tensor, "B K"],
    target: Float[Tensor, "B K"],
    beta: float,
    gamma: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """DIST, ``τ² · (β · mean_b d(row_b) + γ · mean_k d(column_k))`` with ``d = 1 - Pearson correlation``.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536; τ²
    as in the authors' experiments. Rows and columns are those of the softened probabilities: rows relate the
    classes within one sample (inter-class), columns the samples within one class (intra-class). A constant
    row or column has no correlation: it counts as 0 and gives no gradient, so one sample alone learns from
    its row only, beside ``γ τ²``. Two classes leave nothing of a row but which class is ahead. The authors'
    code adds 1e-8 to the product of norms, which shrinks the correlation where all probabilities are small;
    here the equation holds.

    Args:
        learner: logits that learn, ``(B, K)``.
        target: logits to be learned, ``(B, K)``.
        beta: weight β of the rows.
        gamma: weight γ of the columns.
        temperature: τ > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: τ is not above zero, or the shapes differ.
    """
    _check_shapes(learner, target)
    ours = _soften(learner, temperature).softmax(dim=1)
    theirs = _soften(target, temperature).softmax(dim=1)
    inter = 1 - _pearson(ours, theirs, dim=1).mean()
    intra = 1 - _pearson(ours, theirs, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def standardize(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Logit standardization, ``(z - mean(z)) / σ(z)`` in each sample, over its classes.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427. σ
    divides by K, so that no standardized logit exceeds √(K-1). The authors' code divides by K - 1 instead: to
    follow it to the digit, multiply τ by √(K/(K-1)), which is 1.005 for 100 classes, and the loss by (K-1)/K.

    A constant row, as a head that starts at zero gives, has no z-score. It becomes 0 and passes its gradient
    on as if σ were 1, so that such a head can leave its start. Two classes always become ±1: all that
    is left of them is which one is ahead.

    Args:
        logits: ``(B, K)``.

    Returns:
        ``(B, K)``, each row of mean 0 and standard deviation 1.
    """
    centred = _centre(_widen(logits), dim=1)
    variance = centred.square().mean(dim=1, keepdim=True)
    # Replaced before the root, not after it: the root's gradient at 0 is infinite.
    return centred / variance.where(variance > CONSTANT_ROW**2, 1.0).sqrt()


def squared_error(learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean squared error, ``mean_b mean_k (learner - target)²``.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184 (regression on
    logits; there half the sum over the classes); also the usual distance between outputs of a regression.

    Args:
        learner: outputs that learn, ``(B, K)``.
        target: outputs to be learned, ``(B, K)``.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(learner, target)
    return F.mse_loss(_widen(learner), _widen(target))


def _widen(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _soften(logits: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    check_temperature(temperature)
    return _widen(logits) / temperature


def _kl(learner: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    # Logarithms on both sides: a target probability that underflows to 0 meets a finite logarithm and adds 0.
    return F.kl_div(learner.log_softmax(dim=1), target.log_softmax(dim=1), reduction="batchmean", log_target=True)


def _target_against_rest(logits: Float[Tensor, "B K"], labels: Real[Tensor, " B"]) -> Float[Tensor, "B 2"]:
    # Logits of a binary choice: their softmax is (p_t, 1 - p_t), without the cancellation in 1 - p_t.
    rest = _without_target(logits, labels).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, labels.long()[:, None]), rest], dim=1)


def _without_target(logits: Float[Tensor, "B K"], labels: Real[Tensor, " B"]) -> Float[Tensor, "B K-1"]:
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, column + (column >= labels[:, None]))


def _pearson(a: Float[Tensor, "B K"], b: Float[Tensor, "B K"], dim: int) -> Float[Tensor, " N"]:
    a, b = _centre(a, dim), _centre(b, dim)
    energy = a.square().sum(dim) * b.square().sum(dim)
    # Divided by infinity, what does not vary gives 0 and no gradient; decided before the root, as above.
    return (a * b).sum(dim) / energy.where(energy > CONSTANT_NORM**2, math.inf).sqrt()


def _centre(values: Float[Tensor, "B K"], dim: int) -> Float[Tensor, "B K"]:
    # Shifting by the maximum changes only the rounding: what is constant becomes exactly 0, as does its mean.
    shifted = values - values.detach().amax(dim=dim, keepdim=True)
    return shifted - shifted.mean(dim=dim, keepdim=True)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless τ is finite and above zero."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0 (4 is usual for CIFAR-100)")


def _check_shapes(learner: Tensor, target: Tensor, labels: Tensor | None = None) -> None:
    # Without this, (B, 1) would quietly broadcast, and short labels would drop samples.
    if learner.shape != target.shape:
        raise ValueError(
            f"learner {tuple(learner.shape)} and target {tuple(target.shape)} differ in shape: "
            "both must be (batch, classes) of the same samples and classes"
        )
    if labels is None:
        return
    if labels.shape != learner.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected ({learner.shape[0]},): one class per sample"
        )
    if learner.shape[1] < 2:
        raise ValueError("there is one class only; to decouple the labelled class from the others takes two")
