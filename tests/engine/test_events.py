"""Storage and writers."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from m2f.engine.events import EventStorage
from m2f.engine.writers import ConsoleWriter, JsonWriter, StatusWriter, TensorBoardWriter


def filled(start: int, stop: int, storage: EventStorage | None = None) -> EventStorage:
    storage = storage or EventStorage(start)
    for storage.iteration in range(start, stop):
        losses = {"loss_ce": 1.0, "loss_mask": 2.0, "loss_dice": 3.0, "loss_ce_0": 10.0, "loss_dice_11": 20.0}
        storage.put_scalars({"total_loss": torch.tensor(36.0), **losses, "time": 0.5, "data_time": 0.125})
        storage.put_scalar("lr", 1e-4, smoothed=False)
    return storage


def test_median_of_the_last_20_and_latest():
    storage = EventStorage()
    for value in [1000.0] * 30 + list(range(20)):
        storage.put_scalar("x", value)
    assert storage.median("x") == 9.5
    assert storage.latest("x") == 19
    assert storage.shown()["x"].value == 9.5
    storage.put_scalar("lr", 0.1, smoothed=False)
    storage.put_scalar("lr", 0.2, smoothed=False)
    assert storage.shown()["lr"].value == 0.2


def test_tensors_wait_until_someone_asks():
    storage = EventStorage()
    weight = torch.tensor([2.0], requires_grad=True)
    storage.put_scalar("x", weight * 3)
    storage.put_scalar("x", torch.tensor(7, dtype=torch.int64))
    assert all(isinstance(value, torch.Tensor) for value in storage._history["x"])
    assert not storage._history["x"][0].requires_grad
    assert storage.median("x") == 6.5
    assert all(isinstance(value, float) for value in storage._history["x"])


def test_nan_is_not_hidden_by_the_median():
    storage = EventStorage()
    for value in (1.0, math.nan, 2.0):
        storage.put_scalar("x", value)
    assert math.isnan(storage.median("x"))


def test_a_name_that_was_never_put():
    with pytest.raises(KeyError, match="nothing"):
        EventStorage().latest("nothing")


def test_console_line(caplog):
    writer = ConsoleWriter(max_iters=100, iters_per_epoch=30)
    with caplog.at_level(logging.INFO):
        storage = filled(0, 40)
        writer.write(storage)
        writer.write(storage)  # nothing new
    writer.close()
    assert len(caplog.records) == 1
    line = caplog.text
    parts = ("epoch 2/4", "iteration 40/100", "total_loss 36", "loss_ce 1", "loss_mask 2", "loss_dice 3")
    for part in (*parts, "loss_aux 30", "lr 0.0001", "data_time 0.1250s", "time 0.5000s", "eta 0:00:30", "max_mem "):
        assert part in line, part
    assert int(line.split("max_mem ")[1].split("MiB")[0]) > 10


def test_metrics_json_after_a_resume_says_everything_once(tmp_path):
    path = tmp_path / "deep" / "metrics.json"
    writer, storage = JsonWriter(path), EventStorage()
    for stop in (20, 40, 60):
        writer.write(filled(stop - 20, stop, storage))
    storage.put_scalar("panoptic/PQ", math.nan, smoothed=False)
    writer.write(storage)
    writer.close()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [19, 39, 59, 59]
    assert json.loads(path.read_text().splitlines()[-1]) == {"iteration": 59, "panoptic/PQ": None}
    with path.open("a") as file:
        file.write('{"iteration": 30, "total')  # killed while writing

    writer = JsonWriter(path, start_iteration=40)
    writer.write(filled(40, 60))
    writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [19, 39, 59]
    assert rows[2]["total_loss"] == 36
    assert rows[2]["loss_dice_11"] == 20
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_status_json_has_taos_words(tmp_path):
    path = tmp_path / "train" / "status.json"
    writer = StatusWriter(path, max_iters=10, iters_per_epoch=4)
    writer.report("STARTED", "Starting training.")
    storage = EventStorage()
    for iteration in range(10):
        writer.tick(filled(iteration, iteration + 1, storage))
    writer.report("FAILURE", "out of memory", kpi={"mIoU": math.nan})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "RUNNING", "RUNNING", "RUNNING", "FAILURE"]
    assert all({"date", "time", "status", "verbosity", "message"} <= line.keys() for line in lines)
    assert [line["epoch"] for line in lines[1:4]] == [0, 1, 2]
    assert lines[1]["kpi"] == {"train_loss": 36.0}
    assert (lines[1]["step"], lines[1]["max_step"], lines[1]["max_epoch"]) == (3, 10, 3)
    assert lines[1]["eta"] == "0:00:03"
    assert {"time_per_epoch", "time_per_step"} <= lines[1].keys()
    assert (lines[4]["verbosity"], lines[4]["kpi"]) == ("ERROR", {"mIoU": None})


def test_tensorboard_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    storage = filled(0, 20)
    writer.write(storage)
    writer.write(filled(20, 40, storage))
    writer.write(storage)
    writer.add_image("val/first", np.full((4, 6, 3), 200, dtype=np.uint8), 39)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("total_loss")] == [(19, 36.0), (39, 36.0)]
    assert [(e.step, e.width, e.height) for e in events.Images("val/first")] == [(39, 6, 4)]
