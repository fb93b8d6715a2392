"""Projects: code outside m2f that a spec names under `_PROJECTS_`.

Importing a project runs its decorators and so its code: load specs from strangers with the care due to programs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from m2f.config.node import SpecError


def import_projects(projects: Sequence[str]) -> list[ModuleType]:
    """Import what `cfg.projects()` lists; for processes that are spawned and so start without them.

    Raises:
        SpecError: one of them is not there or fails to import.
    """
    return [import_project(project, "_PROJECTS_") for project in projects]


def locate_project(entry: str, folder: Path) -> str:
    """The entry of a `_PROJECTS_` list as an absolute path, or unchanged when it is a dotted module.

    Args:
        entry: a path relative to `folder` (it has a slash, starts with a dot, or exists), or a dotted module.
        folder: the folder of the spec file.
    """
    path = folder / Path(entry).expanduser()
    is_path = "/" in entry or entry.startswith(".") or entry.endswith(".py") or path.exists()
    return str(path.resolve()) if is_path else entry


def import_project(project: str, source: str) -> ModuleType:
    """Import one located project; a second import, under whatever spelling, gives the same module.

    Raises:
        SpecError: it is not there or fails to import.
    """
    try:
        if Path(project).is_absolute():
            return _import_path(Path(project), source)
        spec = importlib.util.find_spec(project)
        if spec is None:
            raise SpecError(f"{source}: there is no module {project!r}; a path has a slash, as in './{project}'")
        loaded = _loaded_from(Path(spec.origin)) if spec.origin else None
        return loaded or importlib.import_module(project)
    except (ImportError, SyntaxError, KeyError) as error:
        text = error.args[0] if error.args else error
        raise SpecError(f"{source}: project {project!r} cannot be imported: {type(error).__name__}: {text}") from error


def _import_path(path: Path, source: str) -> ModuleType:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        raise SpecError(f"{source}: project {str(path)!r}: there is no {file.name} in {file.parent}")
    file = file.resolve()
    return _loaded_from(file) or _execute(file)


def _loaded_from(file: Path) -> ModuleType | None:
    """The module that was imported from `file`, under any name."""
    file = file.resolve()
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and origin.endswith(file.name) and Path(origin).resolve() == file:
            return module
    return None


def _execute(file: Path) -> ModuleType:
    folder = file.parent if file.name == "__init__.py" else None
    stem = folder.name if folder else file.stem
    name = f"m2f_project_{stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(folder)] if folder else None
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: relative imports and pickling look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
