"""Connectors give the teacher's shape, whatever the student's, and only mix places where grids differ."""

from itertools import product

import pytest
import torch
from torch import nn

from blockkd.connectors import MapConnector, connector
from blockkd.features import Feature, Layout, feature_of

MAPS = [Feature((4, 8, 8), "CHW"), Feature((6, 4, 4), "CHW"), Feature((16, 16, 5), "HWC"), Feature((3, 7, 5), "CHW")]
TOKENS = [Feature((16, 6), "LD"), Feature((17, 8), "LD"), Feature((18, 8), "LD"), Feature((65, 4), "LD")]
VECTORS = [Feature((7,), "D"), Feature((12,), "D")]


@pytest.mark.parametrize(
    ("student", "teacher"), [*product(MAPS + TOKENS, MAPS + TOKENS), *product(VECTORS, VECTORS)], ids=str
)
def test_the_result_has_the_teachers_shape_and_a_gradient(student: Feature, teacher: Feature) -> None:
    torch.manual_seed(0)
    module = connector(student, teacher)
    feature = torch.randn(3, *student.shape, requires_grad=True)
    connected = module(feature)
    assert connected.shape == (3, *teacher.shape)
    connected.pow(2).mean().backward()
    assert feature.grad is not None
    assert torch.isfinite(feature.grad).all()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("pair", [(MAPS[0], VECTORS[0]), (VECTORS[0], TOKENS[0])])
def test_places_cannot_be_made_up(pair: tuple[Feature, Feature]) -> None:
    with pytest.raises(ValueError, match="one has places and the other has none"):
        connector(*pair)


def test_equal_grids_are_a_1x1_convolution_and_batch_norm() -> None:
    torch.manual_seed(0)
    module = connector(Feature((4, 5, 5), "CHW"), Feature((6, 5, 5), "CHW")).eval()
    weight = module.state_dict()["project.weight"][:, :, 0, 0]
    feature = torch.randn(2, 4, 5, 5)
    expected = torch.einsum("bchw,dc->bdhw", feature, weight) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(module(feature), expected)


def test_a_larger_grid_is_pooled_before() -> None:
    torch.manual_seed(0)
    module = connector(Feature((4, 8, 8), "CHW"), Feature((6, 4, 4), "CHW")).eval()
    same = connector(Feature((4, 4, 4), "CHW"), Feature((6, 4, 4), "CHW")).eval()
    same.load_state_dict(module.state_dict())
    feature = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module(feature), same(nn.functional.avg_pool2d(feature, 2)))


def test_prefix_tokens_of_the_student_do_not_reach_the_teachers_map() -> None:
    module = connector(Feature((17, 4), "LD"), Feature((6, 4, 4), "CHW")).eval()
    feature = torch.randn(2, 17, 4)
    other = feature.clone()
    other[:, 0] += 1
    assert torch.equal(module(feature), module(other))


def test_token_places_keep_their_place() -> None:
    module = connector(Feature((4, 4, 4), "CHW"), Feature((16, 4), "LD")).eval()
    feature = torch.randn(1, 4, 4, 4)
    changed = feature.clone()
    changed[..., 1, 2] += 1
    moved = (module(feature) != module(changed)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [6]


def test_another_resolution_fits() -> None:
    module = connector(Feature((4, 8, 8), "CHW"), Feature((6, 4, 4), "CHW"))
    assert isinstance(module, MapConnector)
    module.fit(Feature((4, 12, 12), "CHW"), Feature((6, 6, 6), "CHW"))
    assert module(torch.randn(2, 4, 12, 12)).shape == (2, 6, 6, 6)


@pytest.mark.parametrize(
    ("shape", "image", "layout"),
    [
        ((2, 64, 8, 8), (2, 3, 32, 32), "CHW"),
        ((2, 8, 8, 64), (2, 3, 32, 32), "HWC"),
        ((2, 8, 8, 8), (2, 3, 32, 32), "CHW"),
        ((2, 64, 8, 4), (2, 3, 32, 16), "CHW"),
        ((2, 8, 4, 64), (2, 3, 32, 16), "HWC"),
        ((2, 17, 8), (2, 3, 32, 32), "LD"),
        ((2, 8), (2, 3, 32, 32), "D"),
    ],
)
def test_layout_is_told_from_proportions(shape: tuple[int, ...], image: tuple[int, ...], layout: Layout) -> None:
    feature = feature_of(torch.Size(shape), torch.Size(image))
    assert feature is not None
    assert feature.layout == layout


def test_a_feature_of_the_wrong_dimensions() -> None:
    with pytest.raises(ValueError, match="laid out as CHW has 3 dimensions"):
        Feature((4, 8), "CHW")
