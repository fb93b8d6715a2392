"""What inference looks at: images, folders, lists and videos as records, each with a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2f.data.build import entries, load_dataset
from m2f.data.datasets.image_folder import IMAGE_EXTENSIONS, images_below
from m2f.data.packed import PackedRecords
from m2f.data.video import VIDEO_EXTENSIONS, opencv
from m2f.structures.sample import Record

_LIST = ".txt"


@dataclass(frozen=True)
class InputNames:
    """Files' names in the results: the path from a folder that all have in common, with `/` and without ending.

    Attributes:
        root: that folder.
        ambiguous: what several files would be called; they keep their endings.
    """

    root: str
    ambiguous: frozenset[str]

    @classmethod
    def of(cls, files: Sequence[str], folders: Iterable[str]) -> InputNames:
        """The names of absolute paths; each lies in one of `folders` or deeper."""
        root = os.path.commonpath(set(folders))
        names = [_relative(file, root) for file in files]
        counts = Counter(map(_stem, names))
        counts.update(names)  # `a.jpg` is also what the stem of `a.jpg.png` is
        counts.update({os.path.dirname(name) for name in names} & set(map(_stem, filter(_is_video, names))))
        return cls(root, frozenset(stem for stem, count in counts.items() if count > 1))

    def __call__(self, file: str) -> str:
        """The name of one of the files."""
        whole = _relative(file, self.root)
        stem = _stem(whole)
        return whole if stem in self.ambiguous else stem


@dataclass(frozen=True)
class Inputs:
    """What to look at, in order.

    Attributes:
        images: a record each; whether their files can be decoded is not known yet.
        videos: absolute paths.
        name_of: absolute path -> name in the results.
    """

    images: PackedRecords
    videos: tuple[str, ...]
    name_of: InputNames


def build_inputs(cfg: Any, results: Sequence[Path] = ()) -> Inputs:
    """What `inference.input` lists or, where it is empty, the images of `dataset.test`.

    An image's id is its name, but for an annotated `dataset.test`, whose images have ids already.

    Args:
        cfg: the whole configuration.
        results: folders whose files are results, and no inputs even where an input folder holds them.

    Raises:
        FileNotFoundError: something that is named is not there.
        ValueError: nothing is named; a folder or list is empty; a file is neither image, video nor list; a video is
            named and OpenCV is not installed.
        KeyError: `dataset.test` names a dataset or format that does not exist.
    """
    if cfg.inference.input:
        return _named(cfg.inference.input, "inference.input", results)
    try:
        (entry,) = entries(cfg, "test")
    except ValueError as error:
        raise ValueError(f"inference.input is empty, and {error}") from error
    if entry.format == "image_folder":
        return _named([entry.existing("image_dir")], entry.key("image_dir"), results)
    images = PackedRecords.of(load_dataset(entry).records)
    files = [record["file_name"] for record in images]
    return Inputs(images, (), InputNames.of(files, map(os.path.dirname, files)))


def _named(words: Sequence[str], key: str, results: Sequence[Path]) -> Inputs:
    """The files that `key` = `words` names, each once."""
    files: dict[str, None] = {}  # each once, in order
    folders = set()
    for word in words:
        for where, path in _lines(word, key):
            files.update(dict.fromkeys(_files(path, where, results)))
            folders.add(path if os.path.isdir(path) else os.path.dirname(path))
    names = InputNames.of(list(files), folders)
    images: list[Record] = [
        {"file_name": file, "image_id": names(file), "height": 0, "width": 0} for file in files if not _is_video(file)
    ]
    return Inputs(PackedRecords(images), tuple(filter(_is_video, files)), names)


def _lines(word: str, key: str) -> Iterator[tuple[str, str]]:
    """(where it is named, absolute path) of `word`, or of every line of the list that it is."""
    path = os.path.abspath(os.path.expanduser(word))
    if _ending(path) != _LIST or not os.path.isfile(path):
        yield key, path
        return
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is no list of paths: {error}") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not rows:
        raise ValueError(f"{key}: the list {path} names no file")
    for number, line in rows:
        yield f"{path}:{number}", os.path.abspath(os.path.join(os.path.dirname(path), os.path.expanduser(line)))


def _files(path: str, where: str, results: Sequence[Path]) -> Iterator[str]:
    """The images below a folder, or the one file."""
    if os.path.isdir(path):
        yield from _images_of(path, where, results)
    elif not os.path.exists(path):
        raise FileNotFoundError(f"{where}: no such file or folder: {path}")
    elif _is_video(path):
        opencv(path)
        yield path
    elif _ending(path) in IMAGE_EXTENSIONS:
        yield path
    else:
        kinds = f"an image ({_listed(IMAGE_EXTENSIONS)}), a video ({_listed(VIDEO_EXTENSIONS)})"
        kinds += "" if _ending(path) == _LIST else f", a list ({_LIST})"
        raise ValueError(f"{where}: {path} does not end like {kinds} and is no folder")


def _images_of(folder: str, where: str, results: Sequence[Path]) -> list[str]:
    ours = tuple(os.path.join(os.path.abspath(result), "") for result in results)
    files = [os.path.join(folder, name) for name in images_below(folder)]
    files = [file for file in files if not file.startswith(ours)]
    if not files:
        raise ValueError(f"{where}: the folder {folder} holds no image; videos are named one by one")
    return files


def _relative(file: str, root: str) -> str:
    return os.path.relpath(file, root).replace(os.sep, "/")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_video(path: str) -> bool:
    return _ending(path) in VIDEO_EXTENSIONS


def _listed(endings: Iterable[str]) -> str:
    return " ".join(sorted(endings))
