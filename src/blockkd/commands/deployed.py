"""The network that a run's student file holds."""

import copy
from pathlib import Path

from torch import nn

from blockkd.commands.checks import build_method, build_student
from blockkd.commands.errors import user_input
from blockkd.commands.recipe import DistillRecipe, MethodFactory
from blockkd.models.weights import compare_weights, read_state_dict


def student_for(recipe: DistillRecipe, factory: MethodFactory, name: str, path: Path, teacher: nn.Module) -> nn.Module:
    """The recipe's student, or what its method makes of it to be deployed, as SimKD does: whichever has the tensors.

    The weights are not loaded yet, and may fit neither.

    Args:
        recipe: of the run.
        factory: of the method.
        name: of the method.
        path: file with weights.
        teacher: of the run, of which the student may be made; it is left as it is.

    Raises:
        InvalidInputError: the file cannot be read, or the networks not be built.
    """
    with user_input("cannot use the student's weights"):
        state = read_state_dict(path)
    student = build_student(recipe, teacher)
    if not compare_weights(student, state).fits:
        spare, another = copy.deepcopy(teacher), build_student(recipe, teacher)
        deployed = build_method(factory, name, spare, another, recipe.data).student
        if compare_weights(deployed, state).fits:
            return deployed
    return student
