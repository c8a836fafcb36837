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
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
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
    "a network": _saved(lambda _: nn.Linear(2, 2)),
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
    """A checkpoint whose one tensor is 1 GiB of zeros, packed into 4 MiB."""
    del canary
    plain, path = folder / "plain.pth", folder / "weights.pth"
    torch.save({"w": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name).replace(b"K\x04t", b"J\xff\xff\xff\x0ft"))
                continue
            with target.open(name, "w", force_zip64=True) as entry:
                for _ in range(16):
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
        archive._didModify = True  # type: ignore[attr-defined]
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
    "a packed zip of 1 GiB": _packed_zip,
    "a zip of overlapping entries": _overlapping_zip,
    "a storage of 2 G numbers in 16 bytes": _edited(b"K\x04t", b"J\xff\xff\xff\x7ft"),
    "a tensor of 2 G numbers over 4": _edited(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "a tensor of 2 G numbers, all the same": _edited(
        b"K\x04\x85q\x08K\x01\x85", b"J\xff\xff\xff\x7f\x85q\x08K\x00\x85"
    ),
    "a mapping that holds itself": _holds_itself,
    "keys that are no names": _saved(lambda _: {3: torch.ones(1), None: torch.ones(1)}),
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
    "a function of torch": ON_DIGITS
    + "student: {class_path: torch.load, init_args: {f: CANARY, weights_only: false}}\n",
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
    "a thousand million values in a text": ON_DIGITS
    + "beside: |\n"
    + "".join(f"  {line}\n" for line in laughs("x").splitlines()),
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


# Run folders: made by a real run, then changed


def _link(name: str, to: str) -> Callable[[Path, Path], None]:
    def change(run: Path, outside: Path) -> None:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            path.rename(outside / path.name)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(to.replace("OUTSIDE", str(outside)))

    return change


def _write(name: str, content: str | bytes) -> Callable[[Path, Path], None]:
    def change(run: Path, outside: Path) -> None:
        del outside
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def _checkpoint_that_calls(run: Path, outside: Path) -> None:
    torch.save({"state_dict": {}, "x": touching(outside / "canary")}, run / "kd" / "seed_0" / "last.ckpt")


def _result(**changed: Any) -> str:
    whole = {"method": "teacher", "seed": 0, "epochs": 0, "test_accuracy": 0.5, "val_accuracy": 0.5}
    return json.dumps({**whole, "parameters": 1, "flops_per_image": 1, "seconds": 0.0, **changed})


# By name: how an unfinished ``distill`` run of one method, kd, was changed.
RUNS: dict[str, Callable[[Path, Path], None]] = {
    "a method's folder leads outside": _link("kd", "OUTSIDE"),
    "a seed's folder leads outside": _link("kd/seed_0", "OUTSIDE"),
    "the teacher's folder leads outside": _link("teacher", "OUTSIDE"),
    "a folder leads outside by dots": _link("kd", "../../outside"),
    "a lock leads outside": _link("kd/seed_0/.lock", "OUTSIDE/canary"),
    "the metrics lead outside": _link("kd/seed_0/metrics.csv", "OUTSIDE/canary"),
    "the checkpoint leads outside": _link("kd/seed_0/last.ckpt", "OUTSIDE/canary"),
    "the recorded teacher leads outside": _link("teacher_logits", "OUTSIDE"),
    "a torn result": _write("teacher/seed_0/result.json", '{"method": "tea'),
    "a result of 100,000 levels": _write("teacher/seed_0/result.json", "[" * 10**5),
    "a result that is a list": _write("teacher/seed_0/result.json", "[1]"),
    "a result of words": _write("teacher/seed_0/result.json", _result(test_accuracy="high")),
    "a result of mappings": _write("teacher/seed_0/result.json", _result(val_accuracy={"a": 1})),
    "a result of NaN": _write("teacher/seed_0/result.json", _result(val_accuracy=float("nan"))),
    "half of a result": _write("teacher/seed_0/result.json", '{"method": "teacher", "test_accuracy": 0.5}'),
    "a result that is no text": _write("teacher/seed_0/result.json", b"\xff\xfe"),
    "torn metrics": _write("teacher/seed_0/metrics.csv", "method,seed,epoch,lr,seconds\nteacher,0"),
    "metrics with a zero byte": _write("teacher/seed_0/metrics.csv", b"method,seed\0\n\0,1\n"),
    "metrics with a field of 200 KB": _write("teacher/seed_0/metrics.csv", 'method\n"' + "x" * 200_000),
    "metrics of words": _write("teacher/seed_0/metrics.csv", "method,seed,epoch,lr,seconds\nteacher,a,b,c,d\n"),
    "metrics that are no text": _write("teacher/seed_0/metrics.csv", b"\xff\xfe\n"),
    "the recipe leads to a device": _link("recipe.yaml", "/dev/zero"),
    "the recipe goes round in a circle": _link("recipe.yaml", "recipe.yaml"),
    "the recipe is torn": _write("recipe.yaml", "data:\n  class_path: blockkd.da"),
    "the recipe is of zeros": _write("recipe.yaml", bytes(4096)),
    "the recipe is a list": _write("recipe.yaml", "- 1\n- 2\n"),
    "the recipe is no text": _write("recipe.yaml", b"\xff\xfe\x00"),
    "the recipe calls": _write("recipe.yaml", "x: !!python/object/apply:os.system ['touch canary']\n"),
    "the recipe is a comparison of other folders": _write(
        "recipe.yaml", "command: blockkd compare\ncompare: {../../outside: kd}\n"
    ),
    "the recipe is a comparison of a list": _write("recipe.yaml", "command: x\ncompare: [kd]\n"),
    "the recipe is a comparison of numbers": _write("recipe.yaml", "command: x\ncompare: {1: 2}\n"),
    "the recipe is a comparison without origin": _write("recipe.yaml", "command: x\ncompare: {kd: {a: 1}}\n"),
}


# Datasets


def _png_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has one row."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * min(width, 10**6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _image(kind: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (1, 2, 3)).save(buffer, kind, **options)
    return buffer.getvalue()


def gif_of(frames: int) -> bytes:
    """A GIF of so many pictures, the first black."""
    from PIL import Image

    buffer = io.BytesIO()
    first, *others = (Image.new("L", (32, 32), number % 256) for number in range(frames))
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def _postscript(canary: Path) -> bytes:
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"
        + f"({canary}) (w) file closefile\n".encode()
        + b"showpage\n%%EOF\n"
    )


BAD_IMAGES: dict[str, Callable[[Path], bytes]] = {
    "a PNG of 100,000 × 100,000 pixels": lambda _: _png_of(100_000, 100_000),
    "a PNG of 2 G × 2 G pixels": lambda _: _png_of(2**31 - 1, 2**31 - 1),
    "a PNG of one row of 100 M pixels": lambda _: _png_of(100_000_000, 1),
    "a torn JPEG": lambda _: _image("JPEG")[:200],
    "a JPEG of zeros": lambda _: _image("JPEG")[:20] + bytes(1000),
    "PostScript": _postscript,
    "an empty file": lambda _: b"",
    "text": lambda _: b"hello",
    "a pickle": lambda canary: pickle.dumps(touching(canary)),
}


def image_folder(folder: Path, name: str, bad: bytes) -> Path:
    """Two classes of three images in both splits; one image of each class is a file with the given content."""
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in (1, 2):
                (place / f"{number}.png").write_bytes(_image("PNG"))
            (place / name).write_bytes(bad)
    return folder


def _archive_in(folder: Path, canary: Path) -> Path:
    del canary
    image_folder(folder / "data", "0.png", _image("PNG"))
    with zipfile.ZipFile(folder / "data" / "train" / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../canary", bytes(2**20))
    return folder / "data"


def _tar_in(folder: Path, canary: Path) -> Path:
    del canary
    (folder / "data").mkdir()
    for split in ("train", "test"):
        with tarfile.open(folder / "data" / f"{split}.tar", "w") as archive:
            entry = tarfile.TarInfo("../../../canary")
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
    return folder / "data"


def _card(text: str, name: str = "README.md") -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        image_folder(folder / "data", "0.png", _image("PNG"))
        card = f"---\n{text}\n---\n" if name == "README.md" else text
        (folder / "data" / name).write_text(card.replace("CANARY", str(canary)))
        return folder / "data"

    return make


def _parquet(change: Callable[[bytes], bytes]) -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        del canary
        table_of(folder / "data", [_image("PNG")] * 4)
        path = folder / "data" / "train.parquet"
        path.write_bytes(change(path.read_bytes()))
        return folder / "data"

    return make


def table_of(folder: Path, images: list[Any]) -> Path:
    """Parquet files of train and test with these images, which may be bytes or ``{"bytes": ..., "path": ...}``."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    folder.mkdir(parents=True)
    rows = [image if isinstance(image, dict) else {"bytes": image, "path": None} for image in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"img": pyarrow.array(rows, kind), "label": [number % 2 for number in range(len(rows))]}
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
    return folder


def _paths(path: str) -> Maker:
    def make(folder: Path, canary: Path) -> Path:
        del canary
        return table_of(folder / "data", [{"bytes": None, "path": path}] * 4)

    return make


def _flipped(content: bytes) -> bytes:
    return content[:40] + bytes(byte ^ 255 for byte in content[40:140]) + content[140:]


DATASETS: dict[str, Maker] = {
    "a zip among the images": _archive_in,
    "two tars": _tar_in,
    "a card that leads outside": _card("configs:\n- config_name: default\n  data_files: ../../../../etc/*"),
    "a card with an absolute path": _card("configs:\n- config_name: default\n  data_files: /etc/passwd"),
    "a card that leads to another machine": _card(
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: https://127.0.0.1:1/train.parquet"
    ),
    "a card that chains protocols": _card("configs:\n- config_name: default\n  data_files: zip://x::/tmp/y.zip"),
    "a card whose folder is elsewhere": _card("configs:\n- config_name: default\n  data_dir: ../other"),
    "a card that calls": _card("configs: !!python/object/apply:os.system ['touch CANARY']"),
    "a card that grows": _card(laughs("configs")),
    "a second card that leads outside": _card(
        "configs:\n- config_name: default\n  data_files: ../../x/*\n", ".huggingface.yaml"
    ),
    "parquet with broken pages": _parquet(_flipped),
    "parquet cut short": _parquet(lambda content: content[: len(content) // 2]),
    "parquet without its end": _parquet(lambda content: content[:-8]),
    "parquet with an absurd footer": _parquet(lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "parquet of zeros": _parquet(lambda content: bytes(len(content))),
    "parquet that names a device": _paths("/dev/zero"),
    "parquet that names another machine": _paths("https://127.0.0.1:1/x.png"),
    "parquet that names what is not there": _paths("../../nowhere.png"),
}
