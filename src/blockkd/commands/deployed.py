"""The network that a run's student file holds."""

from pathlib import Path

from torch import nn

from blockkd.commands.checks import build_method, build_network
from blockkd.commands.errors import user_input
from blockkd.commands.recipe import DistillRecipe, MethodFactory
from blockkd.models.weights import compare_weights, read_state_dict
from blockkd.report import TEACHER_NAME


def student_for(recipe: DistillRecipe, factory: MethodFactory, name: str, path: Path) -> nn.Module:
    """The recipe's student, or what its method makes of it to be deployed, as SimKD does: whichever has the tensors.

    The weights are not loaded yet, and may fit neither.

    Args:
        recipe: of the run.
        factory: of the method.
        name: of the method.
        path: file with weights.

    Raises:
        InvalidInputError: the file cannot be read, or the networks not be built.
    """
    with user_input("cannot use the student's weights"):
        state = read_state_dict(path)
    student = build_network(recipe.student, "student")
    if not compare_weights(student, state).fits:
        teacher, another = build_network(recipe.teacher.network, TEACHER_NAME), build_network(recipe.student, "student")
        deployed = build_method(factory, name, teacher, another, recipe.data).student
        if compare_weights(deployed, state).fits:
            return deployed
    return student
