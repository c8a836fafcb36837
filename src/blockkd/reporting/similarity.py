"""How alike the features of two networks are: linear CKA block by block, and t-SNE maps of what classifiers see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor

from blockkd.reporting.curves import file_name
from blockkd.reporting.judging import IMAGES, Judged
from blockkd.reporting.sections import Section
from blockkd.reporting.style import COLOURS, GRID, Picture, panel

CLASSES = 10  # that are drawn in a map
LETTERS, SIGN = 56, 3  # in a row of its legend; as wide as this many is what stands before a name
PERPLEXITY = 30
LEAD = (
    "Linear CKA (Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019) is 1 where the "
    "features of all {samples} lie to each other as in the other network, up to rotation and scale, and 0 where they "
    "have nothing in common. "
)
MAPS = (
    "The maps (t-SNE) show what the classifier sees of each {sample}, each network by itself: distances between "
    "clusters mean little, only whether classes mix. "
)
POOLED = "Of a sentence its features are the mean over its tokens, without the padding. "


@dataclass(frozen=True)
class Features:
    """What a network makes of some samples.

    Attributes:
        grams: of each block's features, centred, ``(M, M)``.
        last: the last block's features, the mean over the grid or the tokens, ``(M, D)``.
    """

    grams: Sequence[Float[Tensor, "M M"]]
    last: Float[Tensor, "M D"]


def centred_gram(features: Float[Tensor, "M ..."]) -> Float[Tensor, "M M"]:
    """Inner products of all pairs of examples, the features centred over the examples; ``(M, M)`` in float64."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(dim=0)
    return flat @ flat.T


def cka(one: Float[Tensor, "M M"], two: Float[Tensor, "M M"]) -> float:
    """Linear centred kernel alignment of two centred Gram matrices, 0 … 1; 0 where features do not vary.

    ``⟨K, L⟩ / (‖K‖ · ‖L‖)``, which is ``‖YᵀX‖² / (‖XᵀX‖ · ‖YᵀY‖)`` of the centred features. Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, section 3.
    """
    norms = float(one.norm() * two.norm())
    return float((one * two).sum()) / norms if norms > 0 else 0.0


def similarity_section(
    features: Mapping[str, Features],
    teacher: str,
    labels: Real[Tensor, " M"],
    names: Sequence[str],
    missing: Sequence[str],
    judged: Judged = IMAGES,
) -> Section:
    """CKA of every network's blocks to the teacher's, and a map of each.

    Args:
        features: by network, of the same M samples.
        teacher: which of them is the teacher.
        labels: of the samples, ``(M,)``.
        names: of the classes.
        missing: why networks are left out.
        judged: what the networks look at.
    """
    title = "Features"
    if len(features) < 2 or teacher not in features:
        reason = "Features are compared once a teacher and a student are trained and both can be cut into blocks."
        return Section("features", title, "", missing=[*missing, reason])
    theirs = features[teacher]
    pictures = [_heatmap(name, found, theirs) for name, found in features.items() if name != teacher]
    lead = LEAD + (POOLED if judged.sample == "sentence" else "")
    if judged.has_classes:
        lead += MAPS
        pictures += [_map(name, found.last, labels, names, judged.sample) for name, found in features.items()]
    else:
        missing = [*missing, judged.needs_classes("A map of the features")]
    lead = lead.format(sample=judged.sample, samples=f"{judged.sample}s")
    lead += f"On {len(labels)} test {judged.sample}s, the first seed of each method."
    return Section("features", title, lead, pictures, missing=missing)


def _heatmap(name: str, ours: Features, theirs: Features) -> Picture:
    figure, axes = panel()
    values = [[cka(gram, other) for other in theirs.grams] for gram in ours.grams]
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            ink = "#fdfdfd" if value < 0.5 else "#0d0d0d"  # by the ground, which is the same in both themes
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
    axes.set(xlabel="block of the teacher", ylabel="block of the student", title=name)
    axes.set_xticks(range(len(theirs.grams)), [str(i + 1) for i in range(len(theirs.grams))])
    axes.set_yticks(range(len(ours.grams)), [str(i + 1) for i in range(len(ours.grams))])
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="linear CKA")
    return Picture(
        f"cka-{file_name(name)}", f"{name}: similarity of each of its blocks to each of the teacher's.", figure
    )


def _map(name: str, features: Tensor, labels: Tensor, names: Sequence[str], sample: str) -> Picture:
    from sklearn.manifold import TSNE

    kept = sorted(labels.unique().tolist())[:CLASSES]
    chosen = torch.isin(labels, torch.tensor(kept))
    perplexity = min(PERPLEXITY, max((int(chosen.sum()) - 1) / 3, 1))
    places = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(features[chosen].float().numpy())
    figure, axes = panel(height=3.4)
    columns = max(min(len(kept), 5, LETTERS // max(len(names[label]) + SIGN for label in kept)), 1)
    for number, label in enumerate(kept):
        own = places[(labels[chosen] == label).numpy()]
        filled = number < len(COLOURS)  # five colours twice: filled circles, then hollow triangles
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(own[:, 0], own[:, 1], "o" if filled else "^", color=colour, markersize=3, markeredgewidth=0.7,
                  markerfacecolor=colour if filled else "none", label=names[label][:LETTERS])  # fmt: skip
    axes.set(title=name, xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=GRID)
    figure.legend(loc="outside lower left", ncols=columns, handlelength=0.8, columnspacing=0.9, handletextpad=0.3)
    said = "" if len(names) <= CLASSES else f" The first {CLASSES} classes are drawn."
    return Picture(f"map-{file_name(name)}", f"{name}: each test {sample} as its classifier sees it.{said}", figure)
