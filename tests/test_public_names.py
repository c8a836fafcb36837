"""The public names are what they say, in whatever order they are asked for."""

import subprocess
import sys

import pytest

import blockkd


@pytest.mark.parametrize("name", blockkd.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(blockkd, name).__doc__


def test_no_public_name_hides_behind_a_module() -> None:
    code = (
        "import blockkd.block_kd, blockkd.training, blockkd.export, types\n"
        "for name in blockkd.__all__:\n"
        "    assert not isinstance(getattr(blockkd, name), types.ModuleType), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Block_KD'; it has .*BlockKD"):
        blockkd.Block_KD  # noqa: B018


def test_the_package_by_itself_does_not_load_torch() -> None:
    code = "import sys, blockkd; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
