"""Which published numbers may stand beside a comparison: those of its pair, on the same data."""

from collections.abc import Sequence

from blockkd.commands.entries import Entry
from blockkd.commands.recipe import DistillRecipe
from blockkd.models.named import Named
from blockkd.published import Published, published, published_glue, published_pairs
from blockkd.text.networks import Pretrained, StudentOf

PUBLISHED_ON = {"cifar100": (100, 50_000), "imagenet": (1000, 1_281_167)}  # classes, training images
GLUE_SENTENCES = {
    "cola": 8_551,
    "mnli": 392_702,
    "mrpc": 3_668,
    "qnli": 104_743,
    "qqp": 363_846,
    "rte": 2_490,
    "sst2": 67_349,
    "stsb": 5_749,
}
BERT_BASE = {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768}
STUDENT_LAYERS = 6


def published_beside(entries: Sequence[Entry]) -> dict[str, Published]:
    """Published numbers of the pair that is compared; none for other networks, or data of other classes or sizes."""
    recipes = [entry.recipe for entry in entries]
    data = recipes[0].data
    for task, pair in published_pairs():
        teacher, student = (name.rpartition("/")[2] for name in pair.split("-"))
        if all(_is_pair(recipe, teacher, student) for recipe in recipes) and PUBLISHED_ON[task] == (
            data.num_classes,
            len(data.parts.train),
        ):
            return published(task, pair)
    for task, pair in published_glue():
        if getattr(data, "task_name", None) != task or len(data.parts.train) != GLUE_SENTENCES[task]:
            continue
        if all(_is_bert_base_to_six(recipe) for recipe in recipes):
            return published(task, pair)
    return {}


def _is_pair(recipe: DistillRecipe, teacher: str, student: str) -> bool:
    networks = zip((recipe.teacher.network, recipe.student), (teacher, student), strict=True)
    return all(isinstance(network, Named) and network.name.rpartition("/")[2] == name for network, name in networks)


def _is_bert_base_to_six(recipe: DistillRecipe) -> bool:
    teacher, student = recipe.teacher.network, recipe.student
    if not isinstance(teacher, Pretrained) or not isinstance(student, StudentOf) or student.changes:
        return False
    layers = student.layers if isinstance(student.layers, int | None) else len(student.layers)
    return layers == STUDENT_LAYERS and BERT_BASE.items() <= teacher.configuration().items()
