"""Files that a stranger with bad intentions could send, each written by a function here; none is in the repository.

A function gets a folder to write into and a canary: a path at which nothing must ever appear.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockkd.models import ResNet

Maker = Callable[[Path, Path], Path]
State = dict[str, Tensor]


def state() -> State:
    """The state dict of a small network."""
    return ResNet(depth=8, widths=(4, 4, 8, 16), num_classes=10, in_channels=1).state_dict()


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def touching(canary: Path) -> Calls:
    """Unpickled, it leaves the canary."""
    return Calls(os.system, f"touch {canary}")


# Checkpoints that would run code


def _saved(wrap: Callable[[Path], Any], name: str = "weights.pth", **options: Any) -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        torch.save(wrap(canary), folder / name, **options)
        return folder / name

    return make


def _pickled(wrap: Callable[[Path], Any], protocol: int, name: str = "weights.pth") -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        (folder / name).write_bytes(pickle.dumps(wrap(canary), protocol=protocol))
        return folder / name

    return make


def _tar(folder: Path, canary: Path) -> Path:
    """The format of torch before 0.1.10: a tar of pickles."""
    path = folder / "weights.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(touching(canary) if name == "pickle" else 0, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _torchscript(folder: Path, canary: Path) -> Path:
    del canary
    with torch.jit.optimized_execution(False):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), folder / "weights.pt")
    return folder / "weights.pt"


def _numpy_objects(folder: Path, canary: Path) -> Path:
    import numpy as np

    path = folder / "weights.pth"
    with path.open("wb") as file:
        np.save(file, np.array([touching(canary)], dtype=object), allow_pickle=True)
    return path


EXECUTING: dict[str, Maker] = {
    "zip format": _saved(lambda canary: {"model": state(), "extra": touching(canary)}),
    "zip format, nested": _saved(lambda canary: {"model": {**state(), "a": [{"b": (touching(canary),)}]}}),
    "zip format, as the key": _saved(lambda canary: {(touching(canary),): 1, **state()}),
    "zip format, in the options": _saved(lambda canary: {"opt": Namespace(x=touching(canary)), "model": state()}),
    "old format": _saved(lambda canary: [touching(canary)], _use_new_zipfile_serialization=False),
    "old format, beside tensors": _saved(
        lambda canary: {"model": state(), "x": touching(canary)}, _use_new_zipfile_serialization=False
    ),
    "tar format": _tar,
    "bare pickle, protocol 0": _pickled(touching, 0),
    "bare pickle, protocol 2": _pickled(touching, 2),
    "bare pickle, protocol 4": _pickled(touching, 4),
    "bare pickle, protocol 5": _pickled(touching, 5, "weights"),
    "a zip called safetensors": _saved(lambda canary: touching(canary), "weights.safetensors"),
    "a pickle called safetensors": _pickled(touching, 2, "weights.safetensors"),
    "exec": _saved(lambda canary: Calls(exec, f"open({str(canary)!r}, 'w')")),
    "eval": _saved(lambda canary: Calls(eval, f"open({str(canary)!r}, 'w')")),
    "subprocess": _saved(lambda canary: Calls(subprocess.getoutput, f"touch {canary}")),
    "getattr": _saved(lambda canary: Calls(getattr, Calls(__import__, "os"), f"touch {canary}")),
    "load within load": _saved(lambda canary: Calls(pickle.loads, pickle.dumps(touching(canary)))),
    "torch.load again": _saved(lambda canary: Calls(torch.load, str(canary))),
    "a network": _saved(lambda canary: nn.Linear(2, 2)),
    "TorchScript": _torchscript,
    "NumPy objects": _numpy_objects,
}


# Checkpoints that lie about what they hold


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _raw(content: Callable[[], bytes], name: str = "weights.safetensors") -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        del canary
        (folder / name).write_bytes(content())
        return folder / name

    return make


def _one(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _header(header: Any, data: int = 4, length: int | None = None) -> Maker:
    return _raw(lambda: safetensors_file(header, bytes(data), length))


def _packed_zip(folder: Path, canary: Path) -> Path:
    """A checkpoint whose one tensor is 4 GiB of zeros, packed into 4 MiB."""
    del canary
    plain, path = folder / "plain.pth", folder / "weights.pth"
    torch.save({"w": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name).replace(b"K\x04t", b"J\xff\xff\xff\x3ft"))
                continue
            with target.open(name, "w", force_zip64=True) as entry:
                for _ in range(64):
                    entry.write(bytes(2**26))
    plain.unlink()
    return path


def _overlapping_zip(folder: Path, canary: Path) -> Path:
    """A thousand entries that are one and the same MiB on disk."""
    del canary
    path = folder / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        (first,) = archive.infolist()
        for number in range(1, 1000):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.file_size = copy.compress_size = first.file_size
            copy.CRC, copy.header_offset = first.CRC, first.header_offset
            archive.filelist.append(copy)
        archive._didModify = True
    return path


def _pickle_of(*opcodes: bytes) -> Maker:
    return _raw(lambda: b"\x80\x02" + b"".join(opcodes) + b".", "weights.pth")


def _edited(old: bytes, new: bytes) -> Maker:
    """A checkpoint of one tensor of four numbers, with its pickle changed."""

    def make(folder: Path, canary: Path) -> Path:
        del canary
        path, plain = folder / "weights.pth", io.BytesIO()
        torch.save({"w": torch.ones(4)}, plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                assert not name.endswith(".pkl") or old in content
                target.writestr(name, content.replace(old, new) if name.endswith(".pkl") else content)
        return path

    return make


def _holds_itself(folder: Path, canary: Path) -> Path:
    del canary
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


LYING: dict[str, Maker] = {
    "header of 2^63 bytes": _header({}, length=2**63),
    "header of 2^64 - 1 bytes": _header({}, length=2**64 - 1),
    "header longer than the file": _header({}, length=10**6),
    "header of 0 bytes": _header({}, length=0),
    "a shape beyond 2^64": _header({"w": _one([2**40, 2**40], 0, 4)}),
    "a shape beyond 2^64, empty": _header({"w": _one([2**63, 2, 0], 0, 0)}, 0),
    "a negative shape": _header({"w": _one([-1], 0, 4)}),
    "a fractional shape": _header({"w": {"dtype": "F32", "shape": [0.5], "data_offsets": [0, 2]}}),
    "offsets outside": _header({"w": _one([100], 0, 400)}),
    "offsets that overlap": _header({"v": _one([1], 0, 4), "w": _one([1], 0, 4)}),
    "offsets the wrong way round": _header({"w": _one([1], 4, 0)}),
    "offsets with a hole": _header({"v": _one([1], 0, 4), "w": _one([1], 8, 12)}, 12),
    "bytes behind the tensors": _header({"w": _one([1], 0, 4)}, 4096),
    "100,000 levels of JSON": _raw(lambda: safetensors_file(b'{"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}")),
    "a key twice": _raw(
        lambda: safetensors_file(
            b'{"w":' + json.dumps(_one([1], 0, 4)).encode() + b',"w":' + json.dumps(_one([1], 0, 4)).encode() + b"}",
            bytes(4),
        )
    ),
    "an unknown dtype": _header({"w": _one([1], 0, 4, "Q9")}),
    "a packed dtype": _header({"w": _one([8], 0, 4, "F4")}),
    "5,000 dimensions": _header({"w": _one([1] * 5000, 0, 4)}),
    "20,000 empty tensors": _header({f"w{i}": _one([0], 0, 0) for i in range(20_000)}, 0),
    "a name of 1 MiB": _header({"w" * 2**20: _one([1], 0, 4)}),
    "a name that a terminal obeys": _header({"\x1b[2J\x1b]0;owned\x07[/red]": _one([1], 0, 4)}),
    "a header that is a list": _header([1, 2]),
    "a header that is not UTF-8": _raw(lambda: safetensors_file(b'{"\xff":1}')),
    "a packed zip of 4 GiB": _packed_zip,
    "a zip of overlapping entries": _overlapping_zip,
    "a storage of 2 G numbers in 16 bytes": _edited(b"K\x04t", b"J\xff\xff\xff\x7ft"),
    "a tensor of 2 G numbers over 4": _edited(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "a tensor of 2 G numbers, all the same": _edited(b"K\x04\x85q\x08K\x01\x85", b"J\xff\xff\xff\x7f\x85q\x08K\x00\x85"),
    "a mapping that holds itself": _holds_itself,
    "keys that are no names": _saved(lambda canary: {3: torch.ones(1), None: torch.ones(1)}),
    "64 GiB of zeros by a call": _pickle_of(b"cbuiltins\nbytearray\n", b"\x8a\x05\x00\x00\x00\x00\x10", b"\x85R"),
    "64 GiB by an old call": _pickle_of(b"c__builtin__\nbytearray\n", b"\x8a\x05\x00\x00\x00\x00\x10", b"\x85R"),
    "100,000 levels of pickle": _pickle_of(b"]" * 10**5 + b"a" * (10**5 - 1)),
    "a pickle without end": _raw(lambda: b"\x80\x02" + b"(" * 10**5, "weights.pth"),
    "a mapping 10,000 deep": _pickle_of(b"}X\x05\0\0\0model" * 10**4 + b"}" + b"s" * 10**4),
    "an absurd memo": _pickle_of(b"]r\xff\xff\xff\x7f"),
}


# Recipes


def laughs(key: str, merge: bool = False) -> str:
    """Nine lines that stand for a thousand million values."""
    lines = [f"{key}:", "  a: &a {x: 1}" if merge else "  a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for below, name in zip("abcdefgh", "bcdefghi", strict=True):
        tens = ", ".join([f"*{below}"] * 10)
        lines.append(f"  {name}: &{name} {{<<: [{tens}]}}" if merge else f"  {name}: &{name} [{tens}]")
    return "\n".join(lines) + "\n"


ON_DIGITS = "base: digits/block_kd\n"
RECIPES: dict[str, str] = {  # CANARY stands for a path
    "a tag that calls": ON_DIGITS + "method: !!python/object/apply:os.system ['touch CANARY']\n",
    "a tag that makes": ON_DIGITS + "x: !!python/object/new:os.system ['touch CANARY']\n",
    "a tag that names": ON_DIGITS + "x: !!python/name:os.system\n",
    "a tag that imports": ON_DIGITS + "x: !!python/module:antigravity\n",
    "a tag in a key": ON_DIGITS + "? !!python/object/apply:os.system ['touch CANARY']\n: 1\n",
    "a class path that calls": ON_DIGITS
    + "student: {class_path: subprocess.getoutput, init_args: {cmd: touch CANARY}}\n",
    "a class path in a class path": ON_DIGITS
    + "student: {class_path: blockkd.models.Named, init_args: {name: resnet8, options: {block: {class_path: os.system, "
    "init_args: {command: touch CANARY}}}}}\n",
    "a bare function": ON_DIGITS + "student: os.abort\n",
    "a function of torch": ON_DIGITS + "student: {class_path: torch.load, init_args: {f: CANARY, weights_only: false}}\n",
    "torch.hub": ON_DIGITS + "student: {class_path: torch.hub.load, init_args: {repo_or_dir: x/y, model: z}}\n",
    "a module that acts when imported": ON_DIGITS + "student: {class_path: this.Net}\n",
    "a main module": ON_DIGITS + "student: {class_path: pip.__main__.Net}\n",
    "a main module in an argument": ON_DIGITS
    + "student: {class_path: torch.nn.Identity, init_args: {x: tests.__main__.Net}}\n",
    "a file as class path": ON_DIGITS + "student: {class_path: ./evil.py}\n",
    "a file as class path, with a name": ON_DIGITS + "student: {class_path: /tmp/evil.py:Net}\n",
    "code to evaluate": ON_DIGITS + "epochs: __import__('os').system('touch CANARY')\n",
    "a type to evaluate": ON_DIGITS + "method: {class_path: \"blockkd.KD[__import__('os').system('touch CANARY')]\"}\n",
    "a method that leaves the folder": ON_DIGITS + "beside: {../../CANARY: {class_path: blockkd.KD}}\n",
    "a method called as a file": ON_DIGITS + "beside: {recipe.yaml: {class_path: blockkd.KD}}\n",
    "a method called the teacher": ON_DIGITS + "beside: {teacher: {class_path: blockkd.KD}}\n",
    "a base outside": "base: ../../../../../../etc/passwd\n",
    "a base that is a folder": "base: ../../etc.yaml\n",
    "a base that is a device": "base: /dev/zero.yaml\n",
    "its own base": "base: ./recipe.yaml\n",
    "its own base, by a detour": "base: ../FOLDER/recipe.yaml\n",
    "a base that is no name": "base: [digits/block_kd]\n",
    "a thousand million values": ON_DIGITS + laughs("beside"),
    "a thousand million values, merged": ON_DIGITS + laughs("beside", merge=True),
    "a thousand million values in a text": ON_DIGITS + "beside: |\n" + "".join(
        f"  {line}\n" for line in laughs("x").splitlines()
    ),
    "a value that holds itself": ON_DIGITS + "beside: &a {kd: *a}\n",
    "100,000 levels": ON_DIGITS + "beside: " + "[" * 10**5,
    "100,000 levels in a text": ON_DIGITS + "beside: '" + "[" * 10**5 + "'\n",
    "20,000 levels in a text": ON_DIGITS + "beside: '" + "[" * 19_999 + "'\n",
    "a key twice": ON_DIGITS + "epochs: 1\nepochs: 2\n",
    "a key that is a number": ON_DIGITS + "1: 2\n",
    "10 MiB": ON_DIGITS + "#" * (10 * 2**20),
    "a number of 5,000 digits": ON_DIGITS + "epochs: " + "9" * 5000 + "\n",
    "a number of a million bits": ON_DIGITS + "seed: 0x" + "f" * 250_000 + "\n",
    "a million seeds": ON_DIGITS + "seeds: 1000000000\n",
    "a million workers": ON_DIGITS + "data: {init_args: {num_workers: 1000000}}\n",
    "a million processes": ON_DIGITS + "trainer: {devices: 1000000}\n",
    "a million threads": ON_DIGITS + "threads: 1000000000\n",
    "a network without end": ON_DIGITS + "student: {init_args: {depth: 6000000002}}\n",
    "a network as large as the world": ON_DIGITS + "student: {init_args: {widths: [1000000000, 1, 1, 1]}}\n",
    "an escape sequence": ON_DIGITS + 'student: "\\e[2J\\e]0;owned\\a"\n',
    "half a character": ON_DIGITS + 'student: "\\ud800"\n',
    "an empty file": "",
    "zeros": "\0" * 4096,
    "timm's own checkpoint": ON_DIGITS
    + "student: {class_path: blockkd.models.Named, init_args: {name: timm/resnet18, options: {checkpoint_path: "
    "CANARY}}}\n",
    "code of a transformer": ON_DIGITS
    + "student: {class_path: blockkd.models.Named, init_args: {name: transformers/x/y, options: {trust_remote_code: "
    "true}}}\n",
    "attention from the hub": ON_DIGITS
    + "student: {class_path: blockkd.models.Named, init_args: {name: transformers/x/y, options: {attn_implementation: "
    "evil/attention}}}\n",
}
