"""Which saved predictions a path holds, told by content: a file of this tool or of another, or a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from m2f.data.datasets.coco_file import safe_join
from m2f.data.datasets.image_folder import images_below
from m2f.data.datasets.json_file import read_json
from m2f.data.predictions.journal import JOURNAL
from m2f.data.predictions.rows import stream_rows
from m2f.data.predictions.sources import InstanceSource, PanopticSource, SemanticSource, Source
from m2f.structures.metadata import Metadata
from m2f.structures.sample import Task

# In a folder of predictions: m2f's names and Detectron2's.
_FILES = ("instance.json", "coco_instances_results.json", "panoptic.json", "predictions.json")
_MASKS = "semantic"


def find_sources(paths: Sequence[str], metadata: Metadata, tasks: Sequence[str], dataset: str) -> dict[str, Source]:
    """The saved answers of each task.

    Args:
        paths: files or folders; where a folder has a sub-folder called `dataset`, that is meant.
        metadata: classes.
        tasks: those to find.
        dataset: a dataset's name.

    Raises:
        FileNotFoundError: a path does not exist, or there is nothing for a task.
        ValueError: two paths hold the same task, or a file is not what it should be.
    """
    found: dict[str, Source] = {}
    seen: list[str] = []
    for path in paths:
        for kind, place in _kinds(_own_folder(path, dataset)):
            seen.append(f"{kind} ({place})")
            if kind not in tasks:
                continue
            if kind in found:
                raise ValueError(f"there are two predictions for {kind}: {found[kind].path} and {place}; name one")
            found[kind] = _open(kind, place, metadata)
    for task in tasks:
        if task not in found:
            raise FileNotFoundError(_nothing_for(task, paths, seen))
    return found


def _nothing_for(task: str, paths: Sequence[str], seen: Sequence[str]) -> str:
    unfinished = next((path for path in paths if os.path.exists(os.path.join(path, JOURNAL))), None)
    hint = f"; is {os.path.join(unfinished, JOURNAL)} of a run that has not finished?" if unfinished else ""
    return f"no saved {task} predictions in {', '.join(paths)}; found {', '.join(seen) or 'none'}{hint}"


def _own_folder(path: str, dataset: str) -> str:
    own = safe_join(path, dataset)
    return os.path.normpath(own if own and os.path.isdir(own) else path)


def _kinds(path: str) -> Iterator[tuple[Task, str]]:
    """Tasks, and where their predictions lie."""
    if os.path.isfile(path):
        yield _kind_of_file(path), path
        return
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such file or folder of predictions: {path}")
    files = [file for name in _FILES if os.path.isfile(file := os.path.join(path, name))]
    yield from ((_kind_of_file(file), file) for file in files)
    masks = os.path.join(path, _MASKS)
    if os.path.isdir(masks):
        yield "semantic", masks
    elif not files and images_below(path):
        yield "semantic", path


def _kind_of_file(path: str) -> Task:
    with open(path, "rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if is_list:
        first = next(stream_rows(path), {})
        return "panoptic" if "segments_info" in first else "instance"
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(rows, list) and all(isinstance(row, dict) and "segments_info" in row for row in rows[:1]):
        return "panoptic"
    raise ValueError(
        f"{path} is neither a JSON list of COCO results nor a COCO panoptic file, whose annotations have segments_info"
    )


def _open(task: Task, path: str, metadata: Metadata) -> Source:
    folder, name = os.path.split(path)
    if task == "instance":
        return InstanceSource(path, stream_rows(path), metadata)
    if task == "semantic":
        index = f"{path}.json" if name == _MASKS and os.path.isfile(f"{path}.json") else ""
        return SemanticSource(path, index, metadata)
    content = read_json(path)
    rows = content if isinstance(content, list) else content["annotations"]
    return PanopticSource(path, rows, [os.path.splitext(path)[0], os.path.join(folder, "panoptic"), folder], metadata)
