"""What a weight file says of its classes, wherever its home writes that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from m2f.structures.metadata import Metadata

# What transformers writes where nobody has given names.
_PLACEHOLDER = re.compile(r"LABEL_\d+")


def class_names(rest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in label order; None where the file does not say, or not in a way that is understood.

    Args:
        rest: what a file holds beside its weights.
    """
    metadata = m2f_metadata(rest)
    if metadata is not None:
        return tuple(metadata.names)
    return (
        _texts(_ours(rest, "class_names")) or _of_transformers(rest.get("config")) or _of_mmdetection(rest.get("meta"))
    )


def m2f_metadata(rest: Mapping[str, Any]) -> Metadata | None:
    """The classes as an m2f checkpoint has them; None where it is no m2f checkpoint."""
    try:
        metadata = Metadata.from_dict(_ours(rest, "metadata"))
    except (LookupError, TypeError, ValueError):
        return None
    return metadata if all(isinstance(name, str) for name in metadata.names) else None


def _ours(rest: Mapping[str, Any], key: str) -> Any:
    """An entry of an m2f checkpoint, or of the header of an m2f safetensors file, whose texts are JSON."""
    header = rest.get("header")
    if key in rest or not isinstance(header, Mapping):
        return rest.get(key)
    try:
        return json.loads(header[key])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _of_transformers(config: Any) -> tuple[str, ...] | None:
    """`id2label` of a config.json: label, as JSON has it in quotes, to name."""
    labels = config.get("id2label") if isinstance(config, Mapping) else None
    if not isinstance(labels, Mapping):
        return None
    named = {str(label): name for label, name in labels.items()}
    names = _texts([named.get(str(label)) for label in range(len(named))])
    return None if names and all(_PLACEHOLDER.fullmatch(name) for name in names) else names


def _of_mmdetection(meta: Any) -> tuple[str, ...] | None:
    """`dataset_meta` of version 3, else version 2's `CLASSES`."""
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    for place in (dataset if isinstance(dataset, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = _texts(place.get(key))
            if names:
                return names
    return None


def _texts(names: Any) -> tuple[str, ...] | None:
    """A list of names; None for anything else."""
    is_list = isinstance(names, (list, tuple)) and len(names) > 0
    return tuple(names) if is_list and all(isinstance(name, str) for name in names) else None
