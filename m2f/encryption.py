"""Model files encrypted at rest: AES-256-GCM over chunks, with a key that scrypt makes of the words of a user.

    magic 7, version 1, log2(n) 1, r 1, p 1, salt 16 | tag 16 | chunk, tag 16 | chunk, tag 16 | ...      (bytes)

The first tag is of an empty chunk: it says whether the key is the right one before anything else is read. Every later
chunk but the last has 1 MiB. All are authenticated with the head, their number and whether they are the last one, so a
file that was changed, cut off, continued or put in another order is found out.

Source: the online authenticated encryption STREAM (Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015); scrypt, RFC 7914.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import struct
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

_HEAD = struct.Struct(">7sBBBB16s")
_MAGIC, _VERSION = b"\x89M2FENC", 1
_LOG_N, _R, _P = 15, 8, 1  # 32 MiB and about 0.1 s for a key
_LARGEST_LOG_N, _LARGEST_P = 18, 4  # 256 MiB: what a stranger's file may ask for
_TAG = 16
_CHUNK = 2**20


class DecryptionError(ValueError):
    """An encrypted file cannot be read; the message, one line, names it."""


class WrongKeyError(DecryptionError):
    """The key is missing or another one, so the file may well be whole."""


def require_cryptography() -> None:
    """Ask early for what `encryption_key` needs, so that no run gets as far as its first checkpoint without it.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if importlib.util.find_spec("cryptography") is None:
        message = 'encryption_key needs the package cryptography: pip install "m2f[encryption]"'
        raise ModuleNotFoundError(message, name="cryptography")


def is_encrypted(path: str | Path) -> bool:
    """Whether `write_encrypted` or `open_encrypted` made the file."""
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def write_encrypted(path: str | Path, data: IO[bytes] | bytes, key: str) -> None:
    """Encrypt bytes, or what is left of an open file, into `path`; see `open_encrypted`."""
    with open_encrypted(path, key) as file:
        shutil.copyfileobj(io.BytesIO(data) if isinstance(data, bytes) else data, file, _CHUNK)


@contextmanager
def open_encrypted(path: str | Path, key: str) -> Iterator[IO[bytes]]:
    """Make a file whose content is encrypted as it is written, a chunk at a time.

    The file has its end when the block is left without an error; before, `open_decrypted` takes it for cut off.

    Raises:
        ModuleNotFoundError: see `require_cryptography`.
        ValueError: the key is empty.
    """
    if not key:
        raise ValueError(f"{path}: an empty encryption_key encrypts nothing")
    head = _HEAD.pack(_MAGIC, _VERSION, _LOG_N, _R, _P, os.urandom(16))
    chunks = _Chunks(head, key)
    with Path(path).open("wb") as file:
        writer = _Writer(file, head, chunks)
        yield cast("IO[bytes]", writer)
        writer.finish()


def open_decrypted(path: str | Path, key: str) -> BinaryIO:
    """Open a file for reading: a plain one as it is, the content of an encrypted one in memory and checked to its end.

    Args:
        path: of any file.
        key: that it was encrypted with; not looked at where it is not encrypted.

    Raises:
        OSError: the file cannot be opened.
        ModuleNotFoundError: see `require_cryptography`.
        WrongKeyError: the key is missing or another one.
        DecryptionError: the file is damaged, cut off, or of a newer version.
    """
    if not is_encrypted(path):
        return Path(path).open("rb")
    if not key:
        raise WrongKeyError(f"{path} is encrypted; set encryption_key")
    with Path(path).open("rb") as file:
        return _decrypted(file, path, key)


def _decrypted(file: BinaryIO, path: str | Path, key: str) -> BinaryIO:
    size = os.fstat(file.fileno()).st_size
    head, tag = file.read(_HEAD.size), file.read(_TAG)
    if size < _HEAD.size + 2 * _TAG:
        raise DecryptionError(f"{path}: is encrypted and cut off")
    _require_known(head, path)
    chunks = _Chunks(head, key)
    if chunks.opened(tag) is None:
        raise WrongKeyError(f"{path}: wrong encryption_key, or the file is damaged at its beginning")
    content, is_last = io.BytesIO(), False
    while not is_last:
        sealed = file.read(_CHUNK + _TAG)
        is_last = file.tell() >= size
        chunk = chunks.opened(sealed, is_last)
        if chunk is None:
            raise DecryptionError(f"{path}: the encryption_key is right, but the file is damaged or cut off")
        content.write(chunk)
    content.seek(0)
    return content


def _require_known(head: bytes, path: str | Path) -> None:
    _, version, log_n, r, p, _ = _HEAD.unpack(head)
    if version != _VERSION:
        raise DecryptionError(f"{path}: is encrypted in version {version}, which this m2f does not know; upgrade m2f")
    if not (1 <= log_n <= _LARGEST_LOG_N and r == _R and 1 <= p <= _LARGEST_P):
        raise DecryptionError(f"{path}: is damaged: scrypt shall run with n = 2^{log_n}, r = {r}, p = {p}")


class _Chunks:
    """Seals or opens the chunks of one file in their order, the empty one first.

    The number of a chunk is its nonce: the salt, and so the key, is of this file alone, and no number comes twice.
    """

    def __init__(self, head: bytes, key: str) -> None:
        require_cryptography()
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional

        self._cipher, self._invalid = AESGCM(_derived(head, key)), InvalidTag
        self._head, self._number = head, 0

    def sealed(self, chunk: bytes | bytearray, is_last: bool = False) -> bytes:
        """The chunk encrypted, its tag behind it."""
        return self._cipher.encrypt(self._next(), chunk, self._about(is_last))

    def opened(self, sealed: bytes, is_last: bool = False) -> bytes | None:
        """The chunk; None where the key or anything about it is another."""
        try:
            return self._cipher.decrypt(self._next(), sealed, self._about(is_last))
        except self._invalid:
            return None

    def _next(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(12, "big")

    def _about(self, is_last: bool) -> bytes:
        return self._head + bytes([is_last])


def _derived(head: bytes, key: str) -> bytes:
    """The 32 bytes of an AES key. Accents come as one character or two, depending on who types them: here as one."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415 - optional

    _, _, log_n, r, p, salt = _HEAD.unpack(head)
    words = unicodedata.normalize("NFC", key).encode("utf-8", "surrogatepass")
    return Scrypt(salt=salt, length=32, n=2**log_n, r=r, p=p).derive(words)


class _Writer(io.RawIOBase):
    """Encrypts what is written to it; holds less than two chunks."""

    def __init__(self, file: IO[bytes], head: bytes, chunks: _Chunks) -> None:
        self._file, self._chunks, self._pending = file, chunks, bytearray()
        file.write(head + chunks.sealed(b""))

    def writable(self) -> bool:
        """Nothing else can be done with it."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes of any length."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK):
            self._pending += view[start : start + _CHUNK]
            if len(self._pending) >= _CHUNK:
                self._file.write(self._chunks.sealed(self._pending[:_CHUNK]))
                del self._pending[:_CHUNK]
        return len(view)

    def finish(self) -> None:
        """Write the last chunk, which may be empty."""
        self._file.write(self._chunks.sealed(self._pending, is_last=True))
