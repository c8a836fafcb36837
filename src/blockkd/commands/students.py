"""A run's student from its weights: the recipe's network, or what its method makes of it to be deployed."""

import copy
from pathlib import Path

from torch import nn

from blockkd.commands.checks import build_method, build_student
from blockkd.commands.errors import user_input
from blockkd.commands.recipe import DistillRecipe, MethodFactory, NetworkFactory
from blockkd.models.named import Named
from blockkd.models.weights import compare_weights, read_state_dict
from blockkd.text.networks import Pretrained, StudentOf


def student_of_file(
    recipe: DistillRecipe, name: str, method: MethodFactory, path: Path, teacher: nn.Module
) -> tuple[nn.Module, bool]:
    """The recipe's student, or what the method deploys in its place, as SimKD does: whichever has the file's tensors.

    Args:
        recipe: says what student and teacher are.
        name: of the method.
        method: the method.
        path: the weights, which are not loaded.
        teacher: of the run, of which the student may be made; it is left as it is.

    Returns:
        The network, and whether the method made it.
    """
    with user_input("cannot use the student's weights"):
        state = read_state_dict(path)
    student = build_student(recipe, teacher)
    if not compare_weights(student, state).fits:
        spare, another = copy.deepcopy(teacher), build_student(recipe, teacher)
        deployed = build_method(method, name, spare, another, recipe.data).student
        if compare_weights(deployed, state).fits:
            return deployed, True
    return student, False


def network_name(factory: NetworkFactory | StudentOf, network: nn.Module) -> str:
    """What a network is called: by the name that the recipe has for it, or by its class; a folder by its own name."""
    if not isinstance(factory, Named | Pretrained):
        return type(network).__name__
    return Path(factory.name).name if Path(factory.name).is_absolute() else factory.name
