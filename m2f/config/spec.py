"""A spec file and a command line become the frozen, validated tree, and the tree becomes YAML again.

Files and command line are layers, each a nested mapping with a source; later layers overwrite earlier ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from m2f.config.defaults import get_cfg
from m2f.config.node import CfgNode, SpecError
from m2f.config.projects import import_project, locate_project
from m2f.config.reader import SpecDumper, SpecLoader, read_value, read_yaml
from m2f.config.secret import SECRET
from m2f.config.shipped import located, with_located_files
from m2f.config.tao import FOREIGN_KEYS, FOREIGN_SECTIONS
from m2f.config.validate import reconcile_devices, validate
from m2f.config.variants import apply_variants

logger = logging.getLogger(__name__)

COMMAND_LINE = "command line"
SPLITS = ("train", "val", "test")


class _Layer(NamedTuple):
    source: str  # how errors name it
    values: dict[str, Any]
    projects: list[str]  # located


def load_spec(path: str | Path | None, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a spec and the overrides into a frozen tree.

    Args:
        path: a YAML file, or `m2f://NAME`, one of the shipped specs; None: defaults and overrides only.
        overrides: `KEY VALUE` pairs and `key=value` words, in any mixture; values are YAML.

    Raises:
        SpecError: anything that the user must correct; nothing was written.
    """
    layers = _file_layers(located(path), ()) if path is not None else []
    layers.append(_command_line_layer(overrides))
    cfg = get_cfg()
    cfg.set_projects(_import_projects(cfg, layers))
    for layer in layers:
        _check_reserved(layer)
        _rename_data(layer)
        _share_type(layer)
    _drop_foreign(cfg, layers)
    for layer in layers:
        cfg.merge(with_located_files(layer.values), layer.source)
    _share_workers(cfg)
    apply_variants(cfg, [layer.source for layer in layers])
    reconcile_devices(cfg)
    validate(cfg)
    cfg.freeze()
    return cfg


def dump_spec(cfg: CfgNode) -> str:
    """The whole resolved tree as YAML that `load_spec` reads back equal, projects as absolute paths.

    Note: `encryption_key` is empty there, whatever it is.
    """
    return _to_yaml(cfg, {**cfg.to_dict(), SECRET: ""})


def diff_spec(cfg: CfgNode) -> str:
    """Like `dump_spec`, but only the keys whose value is not the default.

    Note: `dataset.workers` is left out; the splits' num_workers already have its value. So is `encryption_key`.
    """
    defaults = dict(_defaults_with_projects(cfg).leaves())
    changed: dict[str, Any] = {}
    for key, value in cfg.leaves():
        if value != defaults[key] and key not in ("dataset.workers", SECRET):
            _put(changed, key, value)
    return _to_yaml(cfg, changed)


def dumped_leaves(text: str) -> dict[str, Any]:
    """Full dotted key -> value of what `dump_spec` wrote, without importing its projects."""
    document = yaml.load(text, Loader=SpecLoader)
    document.pop("_PROJECTS_", None)
    return dict(_flattened(document, ""))


def _flattened(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _to_yaml(cfg: CfgNode, tree: dict[str, Any]) -> str:
    head = {"_PROJECTS_": cfg.projects()} if cfg.projects() else {}
    document = {**head, **tree}
    text: str = yaml.dump(document, Dumper=SpecDumper, sort_keys=False, default_flow_style=None, width=10**6)
    return text


def _defaults_with_projects(cfg: CfgNode) -> CfgNode:
    defaults = get_cfg()
    _import_projects(defaults, [_Layer(COMMAND_LINE, {}, cfg.projects())])
    return defaults


def _file_layers(path: Path, visiting: tuple[Path, ...]) -> list[_Layer]:
    """The layers of a file: those of its bases first."""
    real = path.resolve()
    if real in visiting:
        circle = " -> ".join(str(p) for p in (*visiting[visiting.index(real) :], real))
        raise SpecError(f"{path}: _BASE_ goes in a circle: {circle}")
    values = read_yaml(path)
    bases = _string_list(str(path), "_BASE_", values.pop("_BASE_", None))
    projects = _string_list(str(path), "_PROJECTS_", values.pop("_PROJECTS_", None))
    layers: list[_Layer] = []
    for base in bases:
        base_path = path.parent / located(base)
        if not base_path.is_file():
            raise SpecError(f"{path}: _BASE_ {base!r} is not there (looked for {base_path})")
        layers += _file_layers(base_path, (*visiting, real))
    return [*layers, _Layer(str(path), values, [locate_project(p, real.parent) for p in projects])]


def _string_list(source: str, key: str, value: Any) -> list[str]:
    entries = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        raise SpecError(f"{source}: {key!r} must be a path or a list of paths, got {value!r}")
    return entries


def split_key(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The `encryption_key` among overrides, empty where it is not, and the other ones.

    Raises:
        SpecError: a key has no value, or `encryption_key` is no text.
    """
    pairs = _pairs(overrides)
    cfg = get_cfg()
    for text in (text for key, text in pairs if key == SECRET):
        cfg.merge({SECRET: read_value(SECRET, text)}, COMMAND_LINE)
    return cfg[SECRET], [f"{key}={text}" for key, text in pairs if key != SECRET]


def _command_line_layer(overrides: Sequence[str]) -> _Layer:
    values: dict[str, Any] = {}
    for key, text in _pairs(overrides):
        _put(values, key, read_value(key, text))
    projects = _string_list(COMMAND_LINE, "_PROJECTS_", values.pop("_PROJECTS_", None))
    return _Layer(COMMAND_LINE, values, [locate_project(p, Path.cwd()) for p in projects])


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    known = {key for key, _ in get_cfg().leaves()}
    pairs: list[tuple[str, str]] = []
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        if not equals:
            if not words or words[0].partition("=")[0] in known:
                raise SpecError(f"{COMMAND_LINE}: {key!r} has no value; write {key}=VALUE or {key} VALUE")
            text = words.pop(0)
        pairs.append((key, text))
    return pairs


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Write into a nested mapping by a dotted key."""
    *sections, name = key.split(".")
    if not all((*sections, name)):
        raise SpecError(f"{COMMAND_LINE}: {key!r} is no dotted key")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SpecError(f"{COMMAND_LINE}: {key!r} is inside {section!r}, which already has the value {inner!r}")
        tree = inner
    tree[name] = value


def _import_projects(cfg: CfgNode, layers: Sequence[_Layer]) -> list[str]:
    """Import every project once, in order of mention, and let it add its keys."""
    done: dict[str, str] = {}  # module name -> project
    for layer in layers:
        for project in layer.projects:
            module = import_project(project, layer.source)
            if module.__name__ in done:
                continue
            done[module.__name__] = project
            if hasattr(module, "add_config"):
                module.add_config(cfg)
    return list(done.values())


def _check_reserved(layer: _Layer) -> None:
    for key in ("_BASE_", "_PROJECTS_"):
        if key in layer.values:
            raise SpecError(f"{layer.source}: {key!r} works in files only; name a spec file with it")


def _rename_data(layer: _Layer) -> None:
    """`data:` is what the documentation's sample calls `dataset:`."""
    if "data" not in layer.values:
        return
    if "dataset" in layer.values:
        raise SpecError(f"{layer.source}: 'data' and 'dataset' are two names of one section; keep 'dataset'")
    layer.values["dataset"] = layer.values.pop("data")
    logger.info("%s: section 'data' is read as 'dataset'", layer.source)


def _share_type(layer: _Layer) -> None:
    """A `type` above the splits is that of every split which does not name its own in the same layer."""
    data = layer.values.get("dataset")
    if not isinstance(data, dict) or "type" not in data:
        return
    kind = data.pop("type")
    for split in SPLITS:
        section = data.setdefault(split, {})
        if section is None:
            section = data[split] = {}
        if isinstance(section, dict):
            section.setdefault("type", kind)
    logger.info("%s: dataset.type is taken for the splits that do not name theirs", layer.source)


def _share_workers(cfg: CfgNode) -> None:
    """`dataset.workers`, where it is set, is the num_workers of every split whose own is not."""
    if not cfg.was_set("dataset.workers"):
        return
    splits = [split for split in SPLITS if not cfg.was_set(f"dataset.{split}.num_workers")]
    for split in splits:
        cfg.dataset[split].num_workers = cfg.dataset.workers
    if splits:
        logger.info("dataset.workers: %d is taken as num_workers of %s", cfg.dataset.workers, ", ".join(splits))


def _drop_foreign(cfg: CfgNode, layers: Sequence[_Layer]) -> None:
    """Take out what belongs to other TAO commands, and say so once."""
    known = dict.fromkeys([key for key, _ in cfg.leaves()])
    dropped: list[str] = []
    for layer in layers:
        for key in (*FOREIGN_SECTIONS, *FOREIGN_KEYS):
            if not any(k == key or k.startswith(f"{key}.") for k in known):  # unless a project has brought it
                dropped += _take_out(layer.values, key)
    if dropped:
        logger.warning("without effect in m2f, keys of other TAO commands: %s", ", ".join(dict.fromkeys(dropped)))


def _take_out(tree: Any, key: str) -> list[str]:
    """Remove a dotted key from a nested mapping; the full names of the leaves that were there."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.get(section) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or name not in tree:
        return []
    return _leaf_names(key, tree.pop(name))


def _leaf_names(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [leaf for name, inner in value.items() for leaf in _leaf_names(f"{key}.{name}", inner)]
    return [key]
