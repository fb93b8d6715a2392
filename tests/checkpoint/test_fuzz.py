"""A thousand broken and hostile files: each ends in a correct load or one clear error, and nothing is ever run."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2f.checkpoint.loading import load_weights

State = dict[str, Tensor]
SEED = 3
FORMATS = ("torch", "torch before 1.6", "numpy", "safetensors", "hugging face")
CHECKED = {"torch"}  # formats with checksums
REFUSED = (ValueError, FileNotFoundError, ModuleNotFoundError)


class Model(nn.Module):
    """The part names of a MaskFormer around small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 6, 4)})})
        self.backbone["norm0"] = nn.BatchNorm2d(6)
        self.pixel_decoder = nn.ModuleDict({"mask_features": nn.Conv2d(6, 6, 1), "layer_1": nn.Conv2d(6, 6, 1)})
        decoder = {"query_feat": nn.Embedding(5, 6), "query_embed": nn.Embedding(5, 6)}
        self.transformer_decoder = nn.ModuleDict({**decoder, "class_embed": nn.Linear(6, 5)})
        self.transformer_decoder["norm"] = nn.LayerNorm(6)


@dataclass
class Case:
    """One broken file.

    Attributes:
        kind: what was done to it.
        path: what is given to m2f.
        state: the weights that were written.
        changed: names of those that were changed before writing; they may stay fresh or be adapted.
    """

    kind: str
    path: Path
    state: State
    changed: set[str] = field(default_factory=set)


def write(form: str, path: Path, state: dict[str, Any]) -> Path:
    """Write weights in one of the formats; gives the file to break."""
    if form == "numpy":
        arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "fuzz"}, random.Random(path.name).randrange(6)))
        return path
    if form in ("safetensors", "hugging face"):
        save_file = pytest.importorskip("safetensors.torch").save_file
        if form == "hugging face":
            path.mkdir()
            (path / "config.json").write_text(
                json.dumps({"model_type": "mask2former", "id2label": {"0": "a", "1": "b"}})
            )
            path = path / "model.safetensors"
        save_file(state, path)
        return path
    torch.save({"model": state, "iteration": 7}, path, _use_new_zipfile_serialization=form == "torch")
    return path


def one_file(chance: random.Random, path: Path) -> Path:
    """The file itself, or one of a directory's."""
    return chance.choice(sorted(path.iterdir())) if path.is_dir() else path


def truncated(chance: random.Random, form: str, path: Path, state: State) -> Case:
    write(form, path, state)
    file = one_file(chance, path)
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])
    return Case(f"{form}: truncated", path, state)


def flipped(chance: random.Random, form: str, path: Path, state: State) -> Case:
    write(form, path, state)
    file = one_file(chance, path)
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return Case(f"{form}: bits flipped", path, state)


def renamed(chance: random.Random, form: str, path: Path, state: State) -> Case:
    names = set(chance.sample(sorted(state), chance.choice([1, 1, 2, 5])))
    changes: list[Callable[[str], str]] = [
        lambda name: name[:-1],
        lambda name: f"x.{name}",
        lambda name: name.swapcase(),
        lambda name: name.replace(".", "/"),
        lambda name: "\N{SNOWMAN}" + name[::-1],
    ]
    change = chance.choice(changes)
    write(form, path, {change(name) if name in names else name: tensor for name, tensor in state.items()})
    return Case(f"{form}: keys renamed", path, state, names)


def other_dtype(chance: random.Random, form: str, path: Path, state: State) -> Case:
    name = chance.choice([name for name, tensor in state.items() if tensor.is_floating_point()])
    dtype = chance.choice([torch.int64, torch.int8, torch.complex64, torch.bool, torch.float64, torch.float16, object])
    value: Any = state[name].numpy().astype(object) if dtype is object else state[name].to(dtype)
    if dtype is object and form != "numpy":
        value = torch.full_like(state[name], float("nan"))  # the nearest that the others can hold
    write(form, path, {**state, name: value})
    return Case(f"{form}: other dtype", path, state, {name})


def other_shape(chance: random.Random, form: str, path: Path, state: State) -> Case:
    name = chance.choice([name for name in state if not name.endswith("num_batches_tracked")])
    tensor = state[name]
    shapes = [
        tensor[:-1],
        tensor[None],
        tensor.flatten()[:0],
        torch.cat([tensor, tensor]),
        tensor.sum(),
        tensor[..., None],
    ]
    write(form, path, {**state, name: chance.choice(shapes).clone()})
    return Case(f"{form}: other shape", path, state, {name})


def text(value: str) -> bytes:
    """An opcode that puts text on the stack."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def calls(canary: Path) -> dict[str, bytes]:
    """Pieces of pickles that call something if they are allowed to; each leaves one object on the stack."""
    python, shell = f"open({str(canary)!r}, 'w').close()", f"touch {canary}"
    call = b"\x85R"
    return {
        "posix.system": b"cposix\nsystem\n" + text(shell) + call,
        "os.system": b"cos\nsystem\n" + text(shell) + call,
        "eval": b"c__builtin__\neval\n" + text(python) + call,
        "exec": b"cbuiltins\nexec\n" + text(python) + call,
        "inst": b"(" + text(shell) + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + text(shell) + b"o",
        "newobj": b"csubprocess\nPopen\n(]" + text("touch") + b"a" + text(str(canary)) + b"at\x81",
        "newobj_ex": b"csubprocess\nPopen\n(]" + text("touch") + b"a" + text(str(canary)) + b"at}\x92",
        "stack_global": text("os") + text("system") + b"\x93" + text(shell) + call,
        "extension": b"\x82\xf0" + text(shell) + call,
        "persistent id": text(shell) + b"Q",
        "build": b"cnumpy\ndtype\nN}" + text("resolve") + b"cos\nsystem\ns\x86b",
        "build of a class": b"cnumpy\ndtype\nN}" + text("resolve") + b"K\x01s\x86b",
        "getattr": b"cbuiltins\ngetattr\ncbuiltins\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + text(shell)
        + call,
        "getattr alone": b"cbuiltins\ngetattr\ncpathlib\nos\n" + text("system") + b"\x86R",
        "through pathlib": b"cpathlib\nos.system\n" + text(shell) + call,
        "numpy's exec": b"cnumpy.testing._private.utils\nrunstring\n" + text(python) + b"}\x86R",
        "pickle in pickle": b"ctorch.storage\n_load_from_bytes\nC"
        + bytes([len(shell) + 19])
        + b"cos\nsystem\nX"
        + struct.pack("<I", len(shell))
        + shell.encode()
        + b"\x85R."
        + call,
        "torch.load": b"ctorch.serialization\nload\n" + text(str(canary)) + call,
        "partial": b"cfunctools\npartial\ncos\nsystem\n" + text(shell) + b"\x86R)R",
    }


def bombs() -> dict[str, bytes]:
    """Pieces of pickles that would fill memory or take forever; each leaves one object on the stack."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200, 250))
    lists = b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(200, 250))
    shape = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85U\x01b\x87R"
    return {
        "tuples of tuples as a key": b"})q\xc8" + pairs + b"K\x01s",
        "lists of lists": b"]q\xc8" + lists,
        "deep lists": b"]" * 20_000 + b"a" * 19_999,
        "memo": b"Nr\xff\xff\xff\x7f",
        "long bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"x",
        "long text": b"X" + struct.pack("<I", 2**32 - 1) + b"x",
        "long number": b"I" + b"9" * 100_000 + b"\n",
        "shape": shape,
        "bytearray": b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
        "bytes": b"cbuiltins\nbytes\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
    }


def spliced(form: str, path: Path, piece: bytes, state: State) -> None:
    """Write a whole checkpoint whose dict gets one more entry, made by a piece of pickle."""
    content = write(form, path, state).read_bytes()
    entry = text("evil") + piece + b"s."
    if form == "torch":
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                new.writestr(item.filename, data[:-1] + entry if item.filename.endswith("data.pkl") else data)
        return
    end = -1
    for _ in range(4 if form == "torch before 1.6" else 1):
        end += 1 + [position for _, _, position in pickletools.genops(content[end + 1 :])][-1]
    path.write_bytes(content[:end] + entry + content[end + 1 :])


def hostile(chance: random.Random, path: Path, state: State, pieces: dict[str, bytes], kind: str) -> Case:
    form = chance.choice(["torch", "torch before 1.6", "numpy"])
    spliced(form, path, pieces[chance.choice(sorted(pieces))], state)
    return Case(f"{form}: {kind}", path, state)


def other_file(chance: random.Random, path: Path, state: State) -> Case:
    noise = bytes(chance.randrange(256) for _ in range(chance.randrange(400)))
    inflated = io.BytesIO()
    with zipfile.ZipFile(inflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x00" * 1_000_000)
    starts = [
        b"",
        noise,
        b"\x89PNG\r\n\x1a\n" + noise,
        b"<html>" + noise,
        b"epoch,loss\n1,2\n",
        b'{"a": 1}',
        b"\x80\x02" + noise,
    ]
    starts += [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x08\x07\x12\x07pytorch" + noise,
        b"PK\x03\x04" + noise,
    ]
    starts += [struct.pack("<Q", 2 ** chance.randrange(64)) + b'{"a":' + noise, inflated.getvalue(), pickle.dumps([1])]
    path.write_bytes(chance.choice(starts))
    return Case("other files", path, state)


def cases(folder: Path, canary: Path) -> Iterator[Case]:
    chance = random.Random(SEED)
    state = Model().state_dict()
    mutations = ((truncated, 40), (flipped, 60), (renamed, 20), (other_dtype, 20), (other_shape, 20))
    numbers = iter(range(10**6))
    for form in FORMATS:
        for mutate, count in mutations:
            for _ in range(count):
                yield mutate(chance, form, folder / f"file{next(numbers)}", state)
    for _ in range(120):
        yield hostile(chance, folder / f"file{next(numbers)}", state, calls(canary), "calls")
    for _ in range(40):
        yield hostile(chance, folder / f"file{next(numbers)}", state, bombs(), "bombs")
    for _ in range(40):
        yield other_file(chance, folder / f"file{next(numbers)}", state)


class Watch:
    """Notes every way in which Python can run code or commands, while it is on. Audit hooks cannot be removed."""

    EVENTS = (
        "exec",
        "compile",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "ctypes.dlopen",
    )

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if not self.is_on or event not in self.EVENTS:
            return
        is_import = event in ("exec", "compile") and "<string>" not in str(arguments)  # such as a codec of Python's
        if not is_import:
            self.seen.append(f"{event} {arguments}")


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def outcome(model: Model, initial: State, case: Case) -> str:
    """Load one file and check what became of the model."""
    model.load_state_dict(initial)
    try:
        report = load_weights(model, case.path)
    except REFUSED as error:
        assert case.path.name in str(error)
        assert all(equal(tensor, initial[name]) for name, tensor in model.state_dict().items()), "half-loaded"
        return type(error).__name__
    now = model.state_dict()
    stayed = set(now) - set(report.loaded)
    assert all(equal(now[name], initial[name]) for name in stayed)
    assert {name for name in stayed if not name.endswith("num_batches_tracked")} == set(report.fresh)
    assert all(torch.isfinite(tensor).all() for tensor in now.values())
    others = set(report.loaded) - case.changed
    return "loaded" if all(equal(now[name], case.state[name]) for name in others) else "loaded with a changed value"


@pytest.fixture
def extension() -> Iterator[None]:
    """A number for os.system, as a pickle may ask for it."""
    copyreg.add_extension("posix", "system", 240)
    yield
    copyreg.remove_extension("posix", "system", 240)


def test_a_thousand_broken_files(tmp_path: Path, extension: None) -> None:
    canary = tmp_path / "canary"
    model, counts = Model(), collections.Counter[tuple[str, str]]()
    initial = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    for form in FORMATS:  # whole files load, and what is imported late is imported now
        path = tmp_path / form
        write(form, path, Model().state_dict())
        assert len(load_weights(model, path).loaded) == len(initial)
    watch = Watch()
    for case in cases(tmp_path, canary):
        watch.is_on = True
        counts[case.kind, outcome(model, initial, case)] += 1
        watch.is_on = False
        assert not watch.seen, case.kind
        assert not canary.exists(), case.kind
    report(counts)
    assert counts.total() == 1000
    assert not [key for key in counts if "truncated" in key[0] and "loaded" in key[1]]
    changed = {kind.partition(":")[0] for kind, what in counts if what == "loaded with a changed value"}
    assert not changed & CHECKED


def report(counts: collections.Counter[tuple[str, str]]) -> None:
    print()
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(f"{kind:32}", ", ".join(f"{count} {what}" for (of, what), count in sorted(counts.items()) if of == kind))
    for what in sorted({what for _, what in counts}):
        print(f"in all {sum(count for (_, of), count in counts.items() if of == what):4} {what}")


@pytest.mark.parametrize("form", ["torch", "torch before 1.6", "numpy"])
def test_each_hostile_piece_alone(tmp_path: Path, form: str, extension: None) -> None:
    """None runs; those that get through are made of nothing but stand-ins."""
    canary, state, model = tmp_path / "canary", Model().state_dict(), Model()
    harmless = {"getattr alone", "through pathlib", "lists of lists", "shape"}
    for name, piece in {**calls(canary), **bombs()}.items():
        path = tmp_path / name.replace(" ", "_")
        spliced(form, path, piece, state)
        try:
            load_weights(model, path)
            assert name in harmless, name
        except ValueError as error:
            assert str(path) in str(error)
        assert not canary.exists(), name


def test_the_pieces_are_live(tmp_path: Path, extension: None) -> None:
    """Python's own unpickler would run them, so it is m2f that stops them."""
    canary = tmp_path / "canary"
    ran = set()
    for (name, piece), protocol in itertools.product(calls(canary).items(), (b"\x80\x02", b"\x80\x04")):
        with contextlib.suppress(Exception):  # some only prepare a call
            made = pickle.loads(protocol + piece + b".")
            if isinstance(made, subprocess.Popen):
                made.wait()
        if canary.exists():
            ran.add(name)
            canary.unlink()
    expected = {"posix.system", "os.system", "eval", "exec", "inst", "obj", "stack_global", "extension", "getattr"}
    assert expected | {"through pathlib", "pickle in pickle", "partial"} <= ran
