"""YAML as TAO users write it: safe, unique keys, and `1e-4` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from m2f.config.node import SpecError
from m2f.config.secret import HIDDEN, SECRET

_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_OTHERS = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class SpecLoader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's numbers, without dates and base 60, that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ.

        Raises:
            yaml.constructor.ConstructorError: a key is there twice; both marks are in the error.
        """
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    first = f"line {seen[key.value].line + 1}"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is already in {first}", key.start_mark
                    )
                seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


class SpecDumper(yaml.SafeDumper):
    """The safe dumper that quotes exactly the strings that `SpecLoader` would read as something else."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _number_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _OTHERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        ints = [("tag:yaml.org,2002:int", re.compile(f"({_INT.pattern})$"))]
        floats = [("tag:yaml.org,2002:float", re.compile(f"({_FLOAT.pattern})$"))]
        table[first] = [*table.get(first, []), *ints, *floats]
    return table


SpecLoader.yaml_implicit_resolvers = _number_resolvers()
SpecLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
SpecDumper.yaml_implicit_resolvers = _number_resolvers()


def read_yaml(path: Path) -> dict[str, Any]:
    """The one document of a spec file.

    Raises:
        SpecError: no such file, not text, broken YAML, several documents, a key written twice, or no mapping.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=SpecLoader)
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such spec file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}{_line(error)}: {_problem(error)}") from error
    except RecursionError:
        raise SpecError(f"{path}: it is nested too deeply to be a spec") from None
    if document is None:
        raise SpecError(f"{path}: the file is empty")
    if not isinstance(document, dict):
        raise SpecError(f"{path}: a spec is a mapping of sections; this is a {type(document).__name__}")
    return document


def read_value(key: str, text: str) -> Any:
    """A value of the command line: YAML's own notation for lists and quotes, else one plain scalar.

    Raises:
        SpecError: broken YAML.
    """
    if text[:1] not in ("[", "{", '"', "'"):
        text = text.strip()
        loader = SpecLoader("")
        node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        return loader.construct_document(node)
    try:
        return yaml.load(text, Loader=SpecLoader)
    except yaml.YAMLError as error:
        shown = HIDDEN if key == SECRET else repr(text)
        raise SpecError(f"command line: the value of {key!r}, {shown}, is no YAML: {_problem(error)}") from error


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.composer.ComposerError) and "single document" in str(error):
        return "there are several documents ('---'); a spec is one"
    problem = str(getattr(error, "problem", None) or error)
    if "'\\t'" in problem:
        return "a tab stands where YAML wants spaces"
    return " ".join(problem.split())
