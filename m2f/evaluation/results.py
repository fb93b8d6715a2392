"""Results as a table for the console and as files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

Results = Mapping[str, Mapping[str, float]]  # dataset -> "<task>/<metric>" -> value
PER_CLASS_COLUMNS = 3  # pairs of class and value beside each other
_INNER_LOSS = re.compile(r"val_loss_.*_\d+$")


def format_results(results: Results) -> str:
    """Tables of all datasets: per task one headline row, then the classes; last, lines to copy into a sheet."""
    return "\n\n".join(_format_dataset(name, metrics) for name, metrics in results.items() if metrics)


def _format_dataset(dataset: str, metrics: Mapping[str, float]) -> str:
    parts = []
    for task, values in _by_task(metrics).items():
        headline = {name: value for name, value in values.items() if "-" not in name}
        parts.append(f"{dataset}: {task}\n" + tabulate([[_text(v) for v in headline.values()]], list(headline), "pipe"))
        kinds = dict.fromkeys(name.split("-", 1)[0] for name in values if "-" in name)
        parts += [_class_table(kind, values) for kind in kinds]
        parts += [
            f"copypaste: Task: {task}",
            f"copypaste: {','.join(headline)}",
            f"copypaste: {','.join(_text(value, 4) for value in headline.values())}",
        ]
    return "\n".join(parts)


def _by_task(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics under their task's word; a name without one ("val_loss") is a loss, those of inner layers left out."""
    tasks: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if _INNER_LOSS.match(name):
            continue
        task, metric = name.split("/", 1) if "/" in name else ("loss", name)
        tasks.setdefault(task, {})[metric] = value
    return tasks


def _class_table(kind: str, values: Mapping[str, float]) -> str:
    """Classes of one metric ("IoU"), several beside each other."""
    prefix = f"{kind}-"
    rows = [(name.removeprefix(prefix), _text(value)) for name, value in values.items() if name.startswith(prefix)]
    columns = min(PER_CLASS_COLUMNS, len(rows))
    lines = [sum(rows[i : i + columns], ()) for i in range(0, len(rows), columns)]
    return tabulate(lines, ["class", kind] * columns, "pipe", disable_numparse=True)


def _text(value: float, digits: int = 3) -> str:
    return "nan" if math.isnan(value) else f"{value:.{digits}f}"


def write_results(path: str | Path, results: Results) -> None:
    """Write results.json, `{dataset: {metric: value}}`, whole or not at all; NaN becomes null."""
    plain = {d: {k: v if math.isfinite(v) else None for k, v in m.items()} for d, m in results.items()}
    _write_whole(Path(path), json.dumps(plain, indent=1) + "\n")


def write_class_csv(path: str | Path, results: Results) -> None:
    """Write a table for spreadsheets, whole or not at all: a row per dataset, task and class, a column per metric.

    The columns are dataset, task, class, and then the metrics of all tasks ("IoU", "PQ", "AP", ...), in percent; a
    cell is empty where the task does not have the metric, and where there was nothing to measure.
    """
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for dataset, metrics in results.items():
        for task, values in _by_task(metrics).items():
            for name, value in values.items():
                metric, is_of_class, class_name = name.partition("-")
                if is_of_class:
                    row = rows.setdefault((dataset, task, class_name), {})
                    row[metric] = "" if math.isnan(value) else _text(value, 4)
    columns = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["dataset", "task", "class", *columns])
    table.writerows([*key, *(row.get(column, "") for column in columns)] for key, row in rows.items())
    _write_whole(Path(path), text.getvalue())


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(text, encoding="utf-8", newline="")
    os.replace(fresh, path)
