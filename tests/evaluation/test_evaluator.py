"""The loop: what it reports, and that training does not notice it."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from m2f.config import get_cfg
from m2f.evaluation import (
    EVALUATOR_REGISTRY,
    Evaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluators,
    inference_on_dataset,
)
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, contiguous_metadata
from m2f.structures.panoptic import PanopticMap, Segment

TOY = contiguous_metadata("toy", [Category(1, "disc"), Category(2, "sky", is_thing=False)])


class TruthTeller(nn.Module):
    """Answers the truth; its loss is the number of targets of its image plus one random number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
        self.frozen = nn.Dropout(0.5)
        self.modes: list[tuple[bool, ...]] = []

    def forward(self, inputs):
        self.modes.append(tuple(module.training for module in self.modules()))
        assert not torch.is_grad_enabled()
        return [{**s, "semantic": nn.functional.one_hot(s["semantic"], 2).permute(2, 0, 1).float()} for s in inputs]

    def losses(self, inputs, num_masks):
        assert num_masks >= 1
        targets = sum(len(sample["instances"]) for sample in inputs) / len(inputs)
        return {"loss_ce": torch.tensor(float(targets)), "loss_mask": torch.rand(())}


def sample(image_id: int, targets: int = 1):
    ids = torch.ones(6, 8, dtype=torch.int64)
    ids[3:] = 2
    mask = ids[None] == 1
    truth = Instances(torch.zeros(1, dtype=torch.int64), mask, scores=torch.ones(1))
    return {
        "image_id": image_id,
        "height": 6,
        "width": 8,
        "image": torch.zeros(3, 6, 8, dtype=torch.uint8),
        "semantic": ids - 1,
        "panoptic": PanopticMap(ids, [Segment(1, 0, True), Segment(2, 1, False)]),
        "instance": truth,
        "instances": Instances(torch.zeros(targets, dtype=torch.int64), torch.ones(targets, 6, 8) > 0),
    }


def test_the_truth_as_prediction_scores_100_in_all_three():
    evaluators = build_evaluators(get_cfg(), TOY, ("semantic", "panoptic", "instance"))
    metrics = inference_on_dataset(TruthTeller(), [[sample(1)], [sample(2), sample(3)]], evaluators)
    for name in ("semantic/mIoU", "panoptic/PQ", "panoptic/PQ_stuff", "instance/AP", "instance/box_AP50"):
        assert metrics[name] == pytest.approx(100, abs=1e-9), name


def test_every_module_gets_its_own_mode_back():
    model = TruthTeller().train()
    model.frozen.eval()
    before = {name: module.training for name, module in model.named_modules()}
    inference_on_dataset(model, [[sample(1)]], [])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["frozen"] is False and before["layer.0"] is True
    assert not any(model.modes[0])


def test_modes_come_back_after_an_error_too():
    model = TruthTeller().train()
    with pytest.raises(KeyError):
        inference_on_dataset(model, [[{}]], [])
    assert all(module.training for module in model.modules())


def test_validation_loss_is_repeatable_and_leaves_the_random_state():
    batches = [[sample(1, targets=4)], [sample(2, targets=1), sample(3, targets=1)]]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = inference_on_dataset(TruthTeller(), batches, [], losses=True)
    assert torch.equal(torch.rand(3), expected)
    second = inference_on_dataset(TruthTeller(), batches, [], losses=True)
    assert first == second
    assert first["val_loss_ce"] == pytest.approx((4 + 1 + 1) / 3)
    assert first["val_loss"] == pytest.approx(first["val_loss_ce"] + first["val_loss_mask"])
    assert 0 < first["val_loss_mask"] < 1


def test_an_image_without_targets_still_has_a_loss():
    assert inference_on_dataset(TruthTeller(), [[sample(1, targets=0)]], [], losses=True)["val_loss_ce"] == 0


def test_an_empty_shard_is_fine(caplog):
    evaluators = build_evaluators(get_cfg(), TOY, ("semantic", "panoptic", "instance"))
    with caplog.at_level(logging.INFO):
        metrics = inference_on_dataset(TruthTeller(), [], evaluators, losses=True)
    assert np.isnan(metrics["panoptic/PQ"])
    assert "val_loss" not in metrics
    assert "evaluated 0 images" in caplog.text


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_an_input_without_a_truth_is_named(task):
    (evaluator,) = build_evaluators(get_cfg(), TOY, (task,))
    bare = {"image_id": 1, "height": 6, "width": 8, "file_name": "street.png"}
    with pytest.raises(ValueError, match=rf"street\.png has no {task} truth"):
        evaluator.process([bare], [sample(1)])


def test_on_batch_sees_every_batch():
    seen = []
    batches = [[sample(1)], [sample(2), sample(3)]]
    inference_on_dataset(TruthTeller(), batches, [], on_batch=lambda i, o: seen.append((len(i), len(o))))
    assert seen == [(1, 1), (2, 2)]


def test_evaluators_are_reset_first():
    evaluator = PanopticEvaluator(TOY)
    wrong = PanopticMap(torch.ones(6, 8).long(), [Segment(1, 1, False)])
    evaluator.process([sample(1)], [{"panoptic": wrong}])
    assert inference_on_dataset(TruthTeller(), [[sample(1)]], [evaluator])["panoptic/PQ"] == 100


def test_two_evaluators_of_one_metric_are_refused():
    with pytest.raises(ValueError, match=r"semantic/mIoU"):
        inference_on_dataset(TruthTeller(), [[sample(1)]], [SemanticEvaluator(TOY), SemanticEvaluator(TOY)])


def test_a_registered_evaluator_joins_by_name():
    @EVALUATOR_REGISTRY.register("image_count")
    class ImageCount(Evaluator):
        def __init__(self, *context):
            self.name = context[1].name

        def reset(self):
            self.count = 0

        def process(self, inputs, outputs):
            self.count += len(list(zip(inputs, outputs, strict=True)))

        def evaluate(self):
            return {f"{self.name}/images": float(self.count)}

    cfg = get_cfg()
    cfg.evaluate.evaluators = ["image_count"]
    evaluators = build_evaluators(cfg, TOY, ("semantic",))
    assert inference_on_dataset(TruthTeller(), [[sample(1), sample(2)]], evaluators)["toy/images"] == 2


def test_an_unknown_evaluator_lists_the_members():
    with pytest.raises(KeyError, match=r"panoptik.*panoptic.*Registered: .*instance"):
        build_evaluators(get_cfg(), TOY, ("panoptik",))
