"""Encrypted files: what was written comes back, and any other byte, key or order is found out."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

from m2f import encryption
from m2f.encryption import (
    DecryptionError,
    WrongKeyError,
    is_encrypted,
    open_decrypted,
    open_encrypted,
    require_cryptography,
    write_encrypted,
)

pytest.importorskip("cryptography")
KEY = "correct horse battery staple"
HEAD, TAG = 27, 16
# b"what was encrypted in version 1 stays readable", with 16 bytes in a chunk.
OLD_FILE = (
    "894d3246454e4301010801098e7210b6e7f71ec6560d0a0be6ffd102bfb6b06e1f219995a237c5499a5b63dbc6cb6ede"
    "1ac067b5a113d7c16626b061b9ad020963ddd2a8deb4b2b7832c56e453483d579dceb046ece4e92700c99ab8187635c3"
    "ccf3c2e9e8ac9cb2fccef4fbe37798ac55d3a3f8491735d0bbe9c2a3315989437a44534be4ddb99152"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in no time; a file says itself how its key was derived."""
    monkeypatch.setattr(encryption, "_LOG_N", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(encryption, "_CHUNK", 16)
    return 16


def read(path: Path, key: str = KEY) -> bytes:
    with open_decrypted(path, key) as file:
        return file.read()


def said(path: Path, key: str = KEY) -> str:
    """What the one line of the error says after the file's name."""
    with pytest.raises(DecryptionError) as error:
        read(path, key)
    line = str(error.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    return line.removeprefix(str(path))


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 1000])
def test_what_was_written_comes_back(path: Path, chunk: int, length: int) -> None:
    content = random.Random(length).randbytes(length)
    write_encrypted(path, content, KEY)
    assert is_encrypted(path)
    assert read(path) == content
    chunks = length // chunk + 1
    assert path.stat().st_size == HEAD + TAG + length + TAG * chunks


def test_how_it_is_cut_into_writes_does_not_matter(path: Path, chunk: int) -> None:
    content, sizes = random.Random(0).randbytes(500), random.Random(1)
    with open_encrypted(path, KEY) as file:
        rest = memoryview(content)
        while rest:
            count = sizes.choice((0, 1, 3, chunk, 40, 100))
            file.write(rest[:count])
            rest = rest[count:]
    assert read(path) == content


def test_an_open_file_is_encrypted_from_where_it_stands(path: Path) -> None:
    source = io.BytesIO(b"head and body")
    source.seek(5)
    write_encrypted(path, source, KEY)
    assert read(path) == b"and body"


def test_the_format_is_the_one_described(path: Path, chunk: int) -> None:
    """Decrypted once more by hand, with the scrypt of Python's own library."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    content = b"thirty-two bytes make two chunks and a bit"
    write_encrypted(path, content, "naïve")
    raw = path.read_bytes()
    head, rest = raw[:HEAD], raw[HEAD:]
    assert head[:11] == b"\x89M2FENC" + bytes([1, 1, 8, 1])
    cipher = AESGCM(hashlib.scrypt("naïve".encode(), salt=head[11:], n=2, r=8, p=1, dklen=32))
    sealed = [rest[:TAG], *(rest[start : start + chunk + TAG] for start in range(TAG, len(rest), chunk + TAG))]
    opened = [
        cipher.decrypt(number.to_bytes(12, "big"), piece, head + bytes([number == len(sealed)]))
        for number, piece in enumerate(sealed, start=1)
    ]
    assert [len(piece) for piece in opened] == [0, 16, 16, 10]
    assert b"".join(opened) == content


def test_a_file_of_the_first_version_stays_readable(path: Path, chunk: int) -> None:
    path.write_bytes(bytes.fromhex(OLD_FILE))
    assert read(path) == b"what was encrypted in version 1 stays readable"


def test_neither_key_nor_content_shows_and_no_two_files_are_alike(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_encrypted(tmp_path / name, b"weights " * 1000, KEY)
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert b"weights" not in one
    assert KEY.encode() not in one
    assert sum(a == b for a, b in zip(one[11:], two[11:], strict=True)) < len(one) / 50


def test_every_changed_byte_is_found(path: Path, chunk: int) -> None:
    write_encrypted(path, bytes(40), KEY)
    whole = path.read_bytes()
    words = []
    for place in range(7, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        words.append(said(path))
    assert all("version 33" in word for word in words[:1])
    assert all("is damaged: scrypt shall run" in word for word in words[1:4])
    assert all("wrong encryption_key, or the file is damaged at its beginning" in word for word in words[4:36])
    assert all("the encryption_key is right, but the file is damaged" in word for word in words[36:])


def test_every_cut_and_every_addition_is_found(path: Path, chunk: int) -> None:
    write_encrypted(path, bytes(40), KEY)
    whole = path.read_bytes()
    for length in range(7, len(whole)):
        path.write_bytes(whole[:length])
        assert "cut off" in said(path)
    for more in (b"\0", bytes(TAG), bytes(chunk + TAG), whole):
        path.write_bytes(whole + more)
        assert "damaged" in said(path)


def test_chunks_in_another_order_or_from_another_file_are_found(tmp_path: Path, path: Path, chunk: int) -> None:
    write_encrypted(path, bytes(64), KEY)
    write_encrypted(tmp_path / "other", bytes(64), KEY)
    step, start = chunk + TAG, HEAD + TAG

    def pieces(file: Path) -> tuple[bytes, list[bytes]]:
        raw = file.read_bytes()
        return raw[:start], [raw[place : place + step] for place in range(start, len(raw), step)]

    (head, mine), (_, theirs) = pieces(path), pieces(tmp_path / "other")
    for order in ([mine[1], mine[0], *mine[2:]], mine[1:], mine[:-1], [*mine[:2], *mine[1:]], [theirs[0], *mine[1:]]):
        path.write_bytes(head + b"".join(order))
        assert "damaged or cut off" in said(path)


def test_a_key_that_is_wrong_or_missing_is_said(path: Path) -> None:
    write_encrypted(path, b"content", KEY)
    for key, words in (("", " is encrypted; set encryption_key"), (f"{KEY} ", ": wrong encryption_key, or")):
        assert said(path, key).startswith(words)
        with pytest.raises(WrongKeyError):
            open_decrypted(path, key)


def test_a_key_is_what_is_meant_not_how_it_is_typed(path: Path) -> None:
    write_encrypted(path, b"content", "Schl\u00fcssel")
    assert read(path, "Schlu\u0308ssel") == b"content"
    write_encrypted(path, b"content", "not utf-8: \udcff")
    assert read(path, "not utf-8: \udcff") == b"content"


def test_an_empty_key_encrypts_nothing(path: Path) -> None:
    with pytest.raises(ValueError, match="an empty encryption_key encrypts nothing"):
        write_encrypted(path, b"content", "")
    assert not path.exists()


def test_a_plain_file_is_opened_as_it_is(path: Path) -> None:
    for content in (b"", b"\x89M2F", b"plain"):
        path.write_bytes(content)
        assert not is_encrypted(path)
        assert read(path) == read(path, "") == content
    path.unlink()
    with pytest.raises(FileNotFoundError):
        open_decrypted(path, KEY)


@pytest.mark.parametrize("field", [(8, 19), (8, 255), (8, 0), (9, 255), (9, 0), (10, 5), (10, 255), (10, 0)])
def test_a_strangers_file_cannot_ask_for_much(path: Path, field: tuple[int, int]) -> None:
    write_encrypted(path, b"content", KEY)
    raw = bytearray(path.read_bytes())
    raw[field[0]] = field[1]
    path.write_bytes(raw)
    assert "is damaged: scrypt shall run with" in said(path)


def test_the_real_cost_is_within_what_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    write_encrypted(path, b"content", KEY)
    assert path.read_bytes()[8:11] == bytes([15, 8, 1])
    assert read(path) == b"content"


def test_an_error_in_the_midst_leaves_no_readable_file(path: Path, chunk: int) -> None:
    with pytest.raises(KeyboardInterrupt), open_encrypted(path, KEY) as file:
        file.write(bytes(100))
        raise KeyboardInterrupt
    assert "cut off" in said(path)


def test_writing_holds_a_few_chunks_and_not_the_file(path: Path) -> None:
    big = memoryview(bytes(32 * 2**20))  # as torch hands over a tensor, in one piece
    tracemalloc.start()
    with open_encrypted(path, KEY) as file:
        file.write(big)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 2**20
    assert path.stat().st_size > len(big)


def test_without_the_package_it_is_said_how_to_get_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encrypted(path, b"content", KEY)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for attempt in (require_cryptography, lambda: open_decrypted(path, KEY), lambda: write_encrypted(path, b"", KEY)):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "m2f\[encryption\]"'):
            attempt()
    assert path.read_bytes()
