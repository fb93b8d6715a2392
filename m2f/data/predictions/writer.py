"""Answers to files, image by image: a run that is killed loses the image in work, and goes on where it was."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from m2f.data.datasets.coco_file import safe_join
from m2f.data.datasets.image_folder import IMAGE_EXTENSIONS
from m2f.data.predictions.formats import category_rows, instance_rows, panoptic_rows, pixel_values, semantic_pixels
from m2f.data.predictions.journal import JOURNAL, Journal, write_whole
from m2f.structures.metadata import Metadata
from m2f.structures.sample import TASKS, ModelInput, ModelOutput

_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*]')  # in a file name, on one system or another


class PredictionWriter:
    """Writes a folder that official tools and `SavedPredictions` read.

    `instance.json` is a list of COCO results; `panoptic.json` and the PNGs in `panoptic/` are COCO's panoptic format
    with a `score` more; `semantic/` has masks of category ids (see `pixel_values`), and `semantic.json` says which is
    whose. Masks and panoptic PNGs read as a truth, too. The JSON files appear in `finish`, made from a journal: a line
    of it is written when all else of an image is there, and no rows are held in memory.

    Args:
        directory: made where it is missing.
        metadata: classes.
        tasks: which answers to keep.
        min_score: instances below it are left out.
        resume: go on with what an earlier run has left; False: delete that and start afresh.
        image_dir: PNGs of images below it lie in the same sub-folders.

    Attributes:
        done: ids of the images that are there.

    Raises:
        ValueError: the earlier run had other classes, tasks or `min_score`, or classes do not fit into pixels.
        FileExistsError: files of these names are there, and no journal that they came from.
    """

    def __init__(
        self,
        directory: str | Path,
        metadata: Metadata,
        tasks: Sequence[str],
        min_score: float = 0.0,
        resume: bool = False,
        image_dir: str = "",
    ) -> None:
        self._directory = Path(directory)
        self._metadata = metadata
        self._tasks = [task for task in TASKS if task in tasks]
        self._min_score = min_score
        self._image_dir = image_dir
        self._pixel_values = pixel_values(metadata) if "semantic" in tasks else None
        self._names: set[str] = set()  # of PNGs, in lower case: some systems do not tell A from a
        self.done: set[int | str] = set()
        self._journal = Journal(self._directory / JOURNAL, self._head())
        self._open(resume)

    def write(self, sample: ModelInput, output: ModelOutput) -> None:
        """Keep the answers for one image.

        Raises:
            ValueError: its image_id is there already, or its panoptic map contradicts itself.
        """
        image_id = sample["image_id"]
        if image_id in self.done:
            raise ValueError(f"{self._directory}: there is a prediction for image_id {image_id!r} already")
        row: dict[str, Any] = {
            "image_id": image_id,
            "file_name": self._relative(sample["file_name"]),
            "height": sample["height"],
            "width": sample["width"],
            "png": self._free_name(sample),
        }
        if "instance" in self._tasks:
            row["instance"] = list(instance_rows(output["instance"], self._metadata, self._min_score))
        if "panoptic" in self._tasks:
            pixels, row["panoptic"] = panoptic_rows(output["panoptic"], self._metadata)
            self._save("panoptic", row["png"], pixels)
        if self._pixel_values is not None:
            self._save("semantic", row["png"], semantic_pixels(output["semantic"], self._pixel_values))
        self._journal.append(row)
        self._note(row)

    def finish(self) -> None:
        """Write the JSON files, of all images in the journal."""
        if "instance" in self._tasks:
            write_whole(self._directory / "instance.json", _json_list(self._results()))
        for task in ("panoptic", "semantic"):
            if task in self._tasks:
                write_whole(self._directory / f"{task}.json", self._map_file(task))

    def _head(self) -> dict[str, Any]:
        return {
            "tasks": self._tasks,
            "min_score": self._min_score,
            "classes": [[c.id, c.name, c.is_thing] for c in self._metadata.categories],
            "ignore_label": self._metadata.ignore_label,
        }

    def _open(self, resume: bool) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._journal.path.exists():
            self._refuse_foreign_files()
            self._journal.start()
        elif resume:
            self._journal.resume()
            for row in self._journal.rows():
                self._note(row)
        else:
            self._start_afresh()

    def _refuse_foreign_files(self) -> None:
        for name in ("instance.json", "panoptic.json", "panoptic", "semantic.json", "semantic"):
            if (self._directory / name).exists():
                raise FileExistsError(
                    f"{self._directory / name} is there without the {JOURNAL} that it would come from, so it is not "
                    "overwritten; choose another folder"
                )

    def _start_afresh(self) -> None:
        """Delete what the earlier run wrote, and nothing else."""
        names = [row["png"] for row in self._journal.rows()]
        self._journal.start()  # first: a journal never lists what is deleted
        paths = [safe_join(str(self._directory / task), name) for task in ("panoptic", "semantic") for name in names]
        for path in [*(self._directory / f"{task}.json" for task in TASKS), *(Path(path) for path in paths if path)]:
            path.unlink(missing_ok=True)

    def _note(self, row: dict[str, Any]) -> None:
        self.done.add(row["image_id"])
        self._names.add(row["png"].casefold())

    def _relative(self, file_name: str) -> str:
        """The image's path below `image_dir`; elsewhere its bare name."""
        path = os.path.relpath(file_name, self._image_dir or os.path.dirname(file_name) or ".")
        return os.path.basename(file_name) if path.startswith("..") else path.replace(os.sep, "/")

    def _free_name(self, sample: ModelInput) -> str:
        """A PNG's relative path that follows the image's and is not yet taken."""
        image_id = sample["image_id"]
        stem = _safe_stem(image_id if isinstance(image_id, str) else self._relative(sample["file_name"]))
        numbered = (f"{stem}-{number}.png" for number in itertools.count(2))
        return next(name for name in itertools.chain([f"{stem}.png"], numbered) if name.casefold() not in self._names)

    def _save(self, task: str, name: str, pixels: Any) -> None:
        path = self._directory / task / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.tmp")
        Image.fromarray(pixels).save(partial, format="PNG")
        os.replace(partial, path)

    def _results(self) -> Iterator[dict[str, Any]]:
        for image in self._journal.rows():
            for row in image["instance"]:
                yield {"image_id": image["image_id"], **row}

    def _map_file(self, task: str) -> Iterator[str]:
        """The text of a JSON file about one PNG per image."""
        keys = {"id": "image_id", "file_name": "file_name", "height": "height", "width": "width"}
        yield '{"images": '
        yield from _json_list({key: row[own] for key, own in keys.items()} for row in self._journal.rows())
        yield ',\n"annotations": '
        yield from _json_list(_annotation(row, task) for row in self._journal.rows())
        yield f',\n"categories": {json.dumps(category_rows(self._metadata))}}}\n'


def _safe_stem(path: str) -> str:
    """A relative path that leaves no folder and is a name on any system, without an image's extension."""
    stem, extension = os.path.splitext(path)
    parts = re.split(r"[/\\]", stem if extension.lower() in IMAGE_EXTENSIONS else path)
    return "/".join(_UNSAFE.sub("_", part) for part in parts if part.strip(". ")) or "image"


def _annotation(row: dict[str, Any], task: str) -> dict[str, Any]:
    segments = {"segments_info": row["panoptic"]} if task == "panoptic" else {}
    return {"image_id": row["image_id"], "file_name": row["png"], **segments}


def _json_list(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text of a list, a row per line."""
    yield "["
    for place, row in enumerate(rows):
        yield f"{',' if place else ''}\n{json.dumps(row)}"
    yield "\n]"
