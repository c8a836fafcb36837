"""How the fuzz tests draw their cases, and how many.

By default the cases are the same in every session. ``FUZZ=10 pytest tests/reliability -k fuzz`` draws ten times as
many, other ones each time, and shows the smallest that fails.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FACTOR = float(os.environ.get("FUZZ", "1"))
CASES = "cases fuzzed"


def cases(number: int) -> Callable[[Any], Any]:
    """The settings of a test of so many cases."""
    return settings(
        max_examples=max(1, int(number * FACTOR)),
        derandomize=FACTOR == 1,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],  # to explain a failure hypothesis traces every line of every case
        database=None,
        suppress_health_check=list(HealthCheck),
    )


NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 10, 255, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**18, 10**60, 10**400]),
    st.sampled_from([0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.integers(-5, 40),
    st.floats(),
)
CLASS_PATHS = st.sampled_from(
    [
        *("blockkd.BlockKD", "blockkd.KD", "KD", "DKD", "FitNet", "CRD", "blockkd.baselines.SimKD", "Distiller"),
        *("blockkd.models.ResNet", "VGG", "blockkd.models.Named", "resnet8", "timm/resnet18", "timm/", "torchvision/x"),
        *("blockkd.data.Digits", "HubImages", "blockkd.data.ImageData", "blockkd.distances.KL", "DIST"),
        *("torch.nn.Linear", "torch.nn.Sequential", "torch.nn.Identity", "torch.nn.Module", "torch.nn.LazyLinear"),
        *("torch.optim.SGD", "torch.optim.Adam", "torch.optim.Optimizer", "torch.optim.lr_scheduler.StepLR"),
        *(
            "torch.load",
            "torch.nn",
            "torch",
            "os.system",
            "builtins.eval",
            "nowhere.Net",
            "blockkd.nothing",
            "blockkd.",
        ),
        *(".", "..", "a..b", "a.b.c", "1.2.3", "blockkd/models", "./x.py", "class_path", "null", "~", "{}", "[]"),
    ]
)
TEXTS = st.one_of(
    CLASS_PATHS,
    st.sampled_from(
        ["", " ", "\n", "\t", "\0", "é", "\u202e", "\U0001f9ea", "-1", "1e400", "nan", "true", "no", "0x10"]
    ),
    st.sampled_from(
        ["a: b", "- a", "{a: 1", "[1, 2", "&a *a", "!!python/name:os.system", "%TAG", "'", '"', "|", "--x"]
    ),
    st.text(max_size=12),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.one_of(st.sampled_from(["class_path", "init_args", "name", "dict_kwargs", "lr", "a.b", "--x", ""]), TEXTS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3),
        st.fixed_dictionaries({"class_path": CLASS_PATHS, "init_args": st.dictionaries(KEYS, inner, max_size=2)}),
    ),
    max_leaves=6,
)
