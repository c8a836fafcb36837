"""Thousands of broken weights files: each loads exactly, or is refused in a sentence, and leaves the network alone."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from blockkd.models import load_weights
from blockkd.models.weights import compare_weights, read_state_dict
from tests.reliability.commands import Record, count, outcome, time_limit
from tests.reliability.fuzzing import CASES, LEAVES, cases

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that the files say

State = dict[str, Any]


def network() -> nn.Module:
    """A network with parameters and buffers of several kinds, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False))


STATE = {name: tensor + 1 for name, tensor in network().state_dict().items()}


def saved_as(kind: str) -> bytes:
    """The state dict as a file."""
    if kind == "safetensors":
        return safetensors.torch.save(STATE)
    buffer = io.BytesIO()
    torch.save({"model": STATE, "epoch": 3}, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


WHOLE = {kind: saved_as(kind) for kind in ("safetensors", "zip", "old")}
NAMES = {"safetensors": "weights.safetensors", "zip": "weights.pth", "old": "weights.pt"}


def loads_or_refuses(path: Path) -> bool:
    """Whether the file loads; if not, it must say why, and change nothing. What loads must be what is in the file."""
    learner, before = network(), network().state_dict()
    with time_limit(20):
        try:
            load_weights(learner, path)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert path.name in refusal
            assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
            return False
        read = read_state_dict(path)
    for name, tensor in learner.state_dict().items():
        expected = read.get(name, before[name]).to(tensor.dtype)
        assert torch.equal(tensor, expected) or bool((tensor.isnan() == expected.isnan()).all()), name
    return True


def count_cases(test: Callable[..., bool], record: Record, number: int, *strategies: st.SearchStrategy[Any]) -> None:
    """Run a test of so many cases; some must load and some must not, or the test would look at one half only."""
    results: list[bool] = []

    @cases(number)
    @given(st.tuples(*strategies))
    def run(drawn: tuple[Any, ...]) -> None:
        results.append(test(*drawn))

    run()
    assert set(results) == {True, False}
    count(record, CASES, len(results))


@pytest.mark.parametrize("kind", WHOLE)
def test_fuzz_bytes(kind: str, tmp_path: Path, record_property: Record) -> None:
    """Bytes changed, dropped, doubled; half of the changes where the file says what is in it."""
    content, path = WHOLE[kind], tmp_path / NAMES[kind]
    heads = st.integers(0, min(len(content), 1500)) | st.integers(0, len(content))
    edit = st.tuples(
        heads, st.integers(0, 8), st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9" * 20])
    )

    def test(edits: list[tuple[int, int, bytes]], end: int) -> bool:
        changed = content
        for start, length, new in edits:
            changed = changed[:start] + new + changed[start + length :]
        path.write_bytes(changed[: len(changed) - end])
        return loads_or_refuses(path)

    count_cases(test, record_property, 500, st.lists(edit, max_size=3), st.sampled_from([0, 0, 0, 1, 8, 100, 1000]))


HEADER = json.loads(WHOLE["safetensors"][8 : 8 + struct.unpack("<Q", WHOLE["safetensors"][:8])[0]])
BODY = WHOLE["safetensors"][8 + struct.unpack("<Q", WHOLE["safetensors"][:8])[0] :]
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 36, 72, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, 0.5])
DTYPES = st.sampled_from(
    ["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "Q4", "", "f32"]
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": DTYPES | LEAVES,
        "shape": st.lists(SIZES, max_size=4) | LEAVES,
        "data_offsets": st.lists(SIZES, max_size=3),
    }
)


def test_fuzz_header(tmp_path: Path, record_property: Record) -> None:
    """A header whose entries say other things than the file holds."""
    path = tmp_path / "weights.safetensors"
    change = st.tuples(
        st.sampled_from([*HEADER, "new", "__metadata__"]), st.sampled_from(["dtype", "shape", "data_offsets"])
    )

    def test(changes: list[tuple[tuple[str, str], Any]], length: int) -> bool:
        header = json.loads(json.dumps(HEADER))
        for (name, field), value in changes:
            header.setdefault(name, {})[field] = value
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", max(0, len(text) + length)) + text + BODY)
        return loads_or_refuses(path)

    values = DTYPES | st.lists(SIZES, max_size=4) | LEAVES | ENTRY
    changes = st.lists(st.tuples(change, values), max_size=2)
    count_cases(test, record_property, 500, changes, st.sampled_from([0, 0, 0, 0, 1, -1, 1000, 2**62]))


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "NaN": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    "infinite": lambda t: t / 0 if t.is_floating_point() else t,
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "bfloat16": lambda t: t.to(torch.bfloat16),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "a view": lambda t: t.flatten().expand(3, -1)[0].view(t.shape),
    "transposed": lambda t: t.transpose(0, -1) if t.ndim else t,
    "wider": lambda t: torch.cat([t, t]) if t.ndim else t.expand(2),
    "empty": lambda t: t.flatten()[:0],
    "one more dimension": lambda t: t[None],
    "a parameter": lambda t: nn.Parameter(t) if t.is_floating_point() else t,
    "a list": lambda t: t.tolist(),
    "None": lambda _: None,
    "text": lambda _: "tensor",
    "a mapping": lambda t: {"weight": t},
    "itself": lambda t: t,
}
OTHER_NAMES = st.sampled_from(
    ["module.0.weight", "0.weight ", "", "0", ".", "0..weight", "x" * 300, "0.wéight", "[/red]"]
)
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state, "lr": 0.1},
    "model in model": lambda state: {"model": {"model": state}},
    "seven deep": lambda state: {"model": {"model": {"model": {"model": {"model": {"model": {"model": state}}}}}}},
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "a list": lambda state: [state],
    "another key": lambda state: {"net": state},
    "numbered": lambda state: dict(enumerate(state.values())),
    "both": lambda state: {"model": {}, "state_dict": state},
}


def test_fuzz_state_dict(tmp_path: Path, record_property: Record) -> None:
    """Names and tensors removed, renamed, added, of other shapes and kinds."""
    path = tmp_path / "weights.pth"
    edit = st.tuples(
        st.sampled_from(list(STATE)),
        st.sampled_from(["keep", "remove", "rename", "copy", "change", "change"]),
        OTHER_NAMES,
        st.sampled_from(list(TENSORS)),
    )

    def test(edits: list[tuple[str, str, str, str]], wrapping: str) -> bool:
        state: State = dict(STATE)
        for name, kind, other, tensor in edits:
            if kind in ("rename", "copy") and name in state:
                state[other] = state[name]
            if kind in ("remove", "rename"):
                state.pop(name, None)
            if kind == "change":
                state[name] = TENSORS[tensor](STATE[name])
        torch.save(WRAPPINGS[wrapping](state), path)
        return loads_or_refuses(path)

    wrappings = st.sampled_from(["bare", "bare", "bare", *WRAPPINGS])
    count_cases(test, record_property, 500, st.lists(edit, max_size=3), wrappings)


def test_what_does_not_fit_is_told_by_the_command(
    tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through ``blockkd distill``: exit code 2 and one sentence, whatever the tensors are called."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    text = st.text(max_size=20) | OTHER_NAMES
    seen = 0

    @cases(25)
    @given(st.dictionaries(text, st.sampled_from(list(TENSORS)), min_size=1, max_size=4))
    def run(kinds: dict[str, str]) -> None:
        nonlocal seen
        seen += 1
        torch.save({name: TENSORS[kind](torch.ones(2, 2)) for name, kind in kinds.items()}, path)
        said = outcome(["distill", "--config", "digits/block_kd", "--teacher.weights", str(path)])
        assert said is not None
        assert path.name in said

    run()
    count(record_property, CASES, seen)


@pytest.mark.parametrize("kind", ["int8", "bool", "quantised", "complex", "float8", "sparse", "meta"])
def test_weights_that_are_no_plain_numbers_do_not_fit(kind: str) -> None:
    """Copied as they are they would be other weights: the packed bytes of a quantised network, say."""
    match = compare_weights(network(), {**STATE, "0.weight": TENSORS[kind](STATE["0.weight"])})
    assert [entry.partition(" ")[0] for entry in match.reshaped] == ["0.weight"]
    assert compare_weights(network(), {**STATE, "0.weight": STATE["0.weight"].half()}).fits
