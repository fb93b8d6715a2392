from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

from m2f.config import CfgNode, dump_spec, load_spec
from m2f.config.validate import validate


def _recording():
    spec = importlib.util.spec_from_file_location("recording", Path(__file__).with_name("recording.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reads_are_recorded_by_full_key_and_reader():
    recording = _recording()
    cfg = recording.record(load_spec(None))
    assert isinstance(cfg, CfgNode) and cfg.is_frozen() and not cfg.reads
    _ = cfg.train.optim.lr
    _ = cfg["model"]["mode"]
    _ = cfg.dataset["val"].get("type")
    _ = dict(cfg.export.items())
    assert {"train.optim.lr", "model.mode", "dataset.val.type", "export.on_cpu"} <= set(cfg.reads)
    assert cfg.reads["train.optim.lr"] == {__file__}
    assert "train.optim.gamma" not in cfg.reads
    assert "train.optim.gamma" in set(recording.unread(cfg)) and "model.mode" not in set(recording.unread(cfg))
    _ = copy.deepcopy(cfg).train.optim.gamma
    assert "train.optim.gamma" in cfg.reads


def test_the_config_room_itself_does_not_count():
    cfg = _recording().record(load_spec(None))
    validate(cfg)
    dump_spec(cfg)
    assert not cfg.reads
