"""One file's bytes to what it holds, and back; the content says what kind of file it is, never the name."""

from __future__ import annotations

import io
import mmap
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from m2f.checkpoint.atomic import sync_file
from m2f.checkpoint.unpickling import load_numpy_pickle, refusal, require_plain, scan, stand_ins
from m2f.encryption import DecryptionError, open_decrypted, open_encrypted

_HEAD = 512
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # the first object of files before torch 1.6
_LARGEST_HEADER = 100_000_000  # of a safetensors file; the format's own limit
_FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")

# What users give instead of weights, by the first bytes.
_OTHER_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "it is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml|head|error)", "it is a web page: the download failed or asked for a login"),
    (rb"\s*[\[{]", "it is JSON; of a Hugging Face model give the directory"),
    (rb"(?s)\x89PNG|\xff\xd8\xff|GIF8|BM....\x00\x00\x00\x00|RIFF....WEBP|II\*\x00|MM\x00\*", "it is an image"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x3a\x42]", "it looks like an ONNX model, which has lost the names of weights"),
    (rb"\x89HDF", "it is an HDF5 file (Keras); m2f reads weights of PyTorch"),
    (rb"\x93NUMPY", "it is a single numpy array"),
    (rb"GGUF", "it is a GGUF file; m2f reads weights of PyTorch"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "it is a compressed archive; unpack it first"),
    (rb"(?s).{257}ustar", "it is a tar archive; unpack it first (torch wrote such files before 0.2)"),
)


def read_file(path: Path, key: str = "") -> dict[Any, Any]:
    """What a file of torch, safetensors or pickled numpy arrays holds, on the CPU.

    Values may be stand-ins of `unpickling`. A safetensors file comes as {"state_dict": tensors, "header": its texts}.

    Args:
        path: of the file.
        key: where it is encrypted.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: it is a safetensors file or encrypted, and the package for that is not installed.
        ValueError: it is damaged, of another kind, encrypted with another key, or holds more than data. The message
            names it.
    """
    with _opened(path, key) as (file, head):
        content = _read_pickled(file, head) if _is_pickle(head) else _read_other(path, file, head)
    return _require_dict(path, content)


def load_plain(path: str | Path, key: str = "") -> dict[str, Any]:
    """Read a file that `torch.save` or `save_plain` wrote of tensors and plain containers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: it is encrypted, and the package for that is not installed.
        ValueError: it is damaged, of another kind, encrypted with another key, or holds anything else.
    """
    path = Path(path)
    with _opened(path, key) as (file, head):
        if not (_is_zip(head) or _LEGACY_MAGIC in head[:20]):
            raise ValueError(_other_kind(head, file) or "torch.save did not write it")
        content = _load_torch(file, is_zip=_is_zip(head), only_plain=True)
    return _require_dict(path, content)


def save_plain(path: Path, content: dict[str, Any], key: str = "") -> None:
    """Write what `load_plain` reads, encrypted where there is a key; it is on the disk when this returns.

    Raises:
        ModuleNotFoundError: the package that encrypts is not installed.
        OSError: the disk is full, for one.
    """
    try:
        with open_encrypted(path, key) if key else path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch tries to end the file all the same, and says only that it cannot
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    sync_file(path)


def describe(path: Path) -> str:
    """One clause on a file that is not what it should be."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        return _other_kind(head, file) or f"it begins with {head[:16]!r}"


def _require_dict(path: Path, content: Any) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


@contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[IO[bytes], bytes]]:
    """The file, decrypted, and its first bytes."""
    with _explained(path), open_decrypted(path, key) as file:
        head = file.read(_HEAD)
        file.seek(0)
        if isinstance(file, io.BytesIO) and not _is_zip(head):
            raise ValueError(_other_kind(head, file) or "torch.save did not write what is encrypted in it")
        yield file, head


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """One sentence with the file's name, whatever its reader stumbles over: a damaged file may raise anything."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, DecryptionError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, zipfile.BadZipFile):
        return f"it is cut off or damaged; a download or copy may not have ended ({text})"
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        return refusal([forbidden[1]])
    first_line = text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return first_line if type(error) is ValueError else f"it is damaged ({type(error).__name__}: {first_line})"


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _is_pickle(head: bytes) -> bool:
    """Protocol 2 and later say so."""
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _read_pickled(file: IO[bytes], head: bytes) -> Any:
    if _LEGACY_MAGIC in head[:20]:
        return _load_torch(file, is_zip=False)
    return load_numpy_pickle(file)


def _read_other(path: Path, file: IO[bytes], head: bytes) -> Any:
    if _is_zip(head):
        return _load_torch(file, is_zip=True)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return _load_safetensors(path)
    other = _other_kind(head, file)
    if other is not None:
        raise ValueError(other)
    return load_numpy_pickle(file)


def _other_kind(head: bytes, file: IO[bytes]) -> str | None:
    """What the file is instead, or None where it may be a pickle of protocol 0 or 1, which is text or nearly so."""
    if not head:
        return "it is empty"
    for pattern, kind in _OTHER_KINDS:
        if re.match(pattern, head, re.IGNORECASE):
            return kind
    try:
        file.seek(0)
        scan(file)
    except ValueError:
        is_text = all(byte in b"\t\n\r\f" or byte >= 32 for byte in head)
        return f"it is {'text' if is_text else 'of no known kind'} and begins with {head[:40]!r}"
    file.seek(0)
    return None


def _load_torch(file: IO[bytes], is_zip: bool, only_plain: bool = False) -> Any:
    names = _scan_zip(file) if is_zip else _scan_legacy(file)
    if only_plain:
        require_plain(names)
    harmless = stand_ins(names)
    file.seek(0)
    with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old protocols and storages; nothing a user could act on
        return torch.load(file, map_location="cpu", weights_only=True)


def _scan_legacy(file: IO[bytes]) -> set[str]:
    """Names in a file of torch before 1.6: four pickles (magic number, version, platform, content), then numbers."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return set().union(*(scan(view) for _ in range(4)))  # type: ignore[arg-type]


def _scan_zip(file: IO[bytes]) -> set[str]:
    """Names in a file that torch.save writes today, whose checksums torch itself does not look at.

    Raises:
        ValueError: it is another archive, or a checksum is wrong.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        pickled = _find_pickle(entries)
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > file.seek(0, 2):
            raise ValueError("parts of the archive are compressed or lie upon one another, which torch.save never does")
        # `torch.serialization.set_crc32_options(False)` leaves all of them out
        damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
        if damaged is not None:
            raise ValueError(f"it is damaged: the checksum of its part {damaged} is wrong")
    file.seek(pickled.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(name_length + extra_length, 1)
    return scan(file)


def _find_pickle(entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError("it is a TorchScript archive; save the state dict of the model instead")
    found = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
    if len(found) != 1 or len(set(names)) != len(names):
        held = ", ".join(names[:5]) or "nothing"
        raise ValueError(f"it is an archive that torch.save did not write; it holds {held}")
    return found[0]


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        message = f'{path} is a safetensors file: pip install "m2f[huggingface]" (or safetensors)'
        raise ModuleNotFoundError(message, name="safetensors") from error
    with safe_open(path, framework="pt", device="cpu") as file:
        return {"state_dict": {name: file.get_tensor(name) for name in file.keys()}, "header": file.metadata() or {}}  # noqa: SIM118
