"""m2f against the stored answers of the official implementations: every .npz of the folder named by M2F_ORACLES.

Sizes, thresholds and weights all come from the file, see `conftest.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.schemes import from_m2f
from m2f.layers.mask_prediction import MaskPrediction, resize_features
from m2f.modeling.postprocess import answer
from m2f.solver.build import build_optimizer
from m2f.solver.clipping import build_clipper
from m2f.structures.panoptic import PanopticMap
from m2f.structures.sample import TASKS, ModelOutput

pytestmark = pytest.mark.realdata

# Source of all: "Tolerances a faithful implementation meets" in the README beside the oracles.
STAGE = 1e-4  # of a stage's largest value
LOSS = 1e-5
GRADIENT_NORM = 1e-3
TRAJECTORY = 1e-4
AFTER_NORM = 1e-5
AFTER_A_FLIP = 1e-3  # both of the above, where rounding flips an attention mask on the way
ROUNDING = 1e-7  # relative; what another order of summation may change
SEMANTIC = 1e-5
PIXELS = 1e-4  # share of an image's pixels in which a mask may differ
SCORE = 1e-5
EFFICIENTVIT = 1e-5  # of a stage's largest value
NORMALISED = 1e-5  # of a stage's largest value: the input is only scaled and shifted

# Gradients below this share of the largest are rounding errors of a zero gradient, such as of a bias before a norm.
NO_GRADIENT = 1e-6


def assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal shapes, and every difference at most `tolerance` of the largest expected value."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"


def test_every_weight_has_a_place_and_a_way_back(mask2former: Any) -> None:
    weights = mask2former.weights()
    model = mask2former.model
    back = from_m2f({**model.state_dict(), "criterion.empty_weight": model.criterion.class_weights}, "official")
    assert sorted(back) == sorted(weights)
    for name, tensor in weights.items():
        assert torch.equal(back[name].to(tensor.dtype), tensor), name


def test_input_is_normalised_and_padded(mask2former: Any) -> None:
    found = mask2former.model.preprocess(mask2former.inputs).tensor
    assert_near(found, mask2former.tensor("padded"), NORMALISED, "padded")


@torch.no_grad()
def test_stages(mask2former: Any) -> None:
    model = mask2former.model
    features = model.backbone(mask2former.tensor("padded"))
    for name, found in features.items():
        assert_near(found, mask2former.tensor(f"backbone/{name}"), STAGE, name)
    pixels = model.pixel_decoder(features)
    assert_near(pixels.mask_features, mask2former.tensor("pixel_decoder/mask_features"), STAGE, "mask features")
    assert_near(pixels.multi_scale[0], mask2former.tensor("pixel_decoder/encoder_features"), STAGE, "encoder")
    for level, found in enumerate(pixels.multi_scale):
        expected = mask2former.tensor(f"pixel_decoder/multi_scale/{level}")
        assert_near(found, expected, STAGE, f"level {level}")


def test_predictions_of_every_layer(mask2former: Any) -> None:
    assert len(mask2former.predictions) == mask2former.config["dec_layers"] + 1
    for layer, found in enumerate(mask2former.predictions):
        for name, tensor in (("pred_logits", found.class_logits), ("pred_masks", found.all_mask_logits())):
            assert_near(tensor, mask2former.tensor(f"decoder/{layer}/{name}"), STAGE, f"layer {layer} {name}")


def test_losses(mask2former: Any) -> None:
    expected = mask2former.json("losses")
    with torch.no_grad():
        losses = mask2former.model.losses(mask2former.inputs)
    found = {name: float(loss) for name, loss in losses.items()}
    assert found == pytest.approx(expected, rel=LOSS, abs=LOSS)


def test_matches(mask2former: Any) -> None:
    model, inputs = mask2former.model, mask2former.inputs
    targets = model.targets(inputs, model.preprocess(inputs).padded_size)
    matches = model.criterion.match(mask2former.predictions, targets)
    official_order = [matches[-1], *matches[:-1]]
    found = [[[queries.tolist(), rows.tolist()] for queries, rows in layer] for layer in official_order]
    expected = mask2former.json("matches")  # without deep supervision perhaps the first call only
    assert len(expected) == len(found) or not mask2former.config["deep_supervision"]
    assert found[: len(expected)] == expected


def test_gradient_norms(mask2former: Any) -> None:
    model = mask2former.fresh_model().train()
    torch.stack(list(model.losses(mask2former.inputs).values())).sum().backward()
    parameters = dict(model.named_parameters())
    expected = mask2former.json("grad_norms")
    floor = NO_GRADIENT * max(norm for norm in expected.values() if norm is not None)
    for official, norm in expected.items():
        gradient = parameters[mask2former.our_name(official)].grad
        if norm is None:
            assert gradient is None, official
        else:
            assert gradient is not None, official
            assert float(gradient.norm()) == pytest.approx(norm, rel=GRADIENT_NORM, abs=floor), official


def test_optimizer_groups(mask2former: Any) -> None:
    model = mask2former.fresh_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: [group["lr"], group["weight_decay"]]
        for group in build_optimizer(mask2former.cfg, model).param_groups
        for parameter in group["params"]
    }
    expected = {mask2former.our_name(name): rates for name, rates in mask2former.json("optimizer_groups").items()}
    assert found == {name: [pytest.approx(rate, rel=1e-12) for rate in rates] for name, rates in expected.items()}


class Run(NamedTuple):
    """What the stored training steps do to a model."""

    losses: list[float]  # total, before each step
    norms: list[float]  # of each parameter after the last step, in the file's order
    blocked: list[Tensor]  # every attention mask on the way


def train(oracle: Any, noise: float = 0.0) -> Run:
    """Repeat the stored steps, from weights that are off by a relative `noise`."""
    model = oracle.fresh_model().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + noise * torch.randn_like(parameter))
    optimizer, clip = build_optimizer(oracle.cfg, model), build_clipper(oracle.cfg)
    losses: list[float] = []
    blocked: list[Tensor] = []
    model.transformer_decoder.register_forward_hook(lambda _, args, out: blocked.extend(attention_masks(args, out)))
    for _ in range(oracle.config["steps"]):
        total = torch.stack(list(model(oracle.inputs).values())).sum()
        losses.append(float(total.detach()))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip(model.parameters())
        optimizer.step()
    parameters = dict(model.named_parameters())
    norms = [float(parameters[oracle.our_name(name)].detach().norm()) for name in oracle.json("after_norms")]
    return Run(losses, norms, blocked)


def attention_masks(args: tuple[list[Tensor], Tensor], predictions: list[MaskPrediction]) -> list[Tensor]:
    """The masks that a transformer decoder of these inputs and outputs used, one per layer."""
    features = resize_features(args[1], [(level.shape[2], level.shape[3]) for level in args[0]])
    return [p.blocked(features[layer % len(features)]) for layer, p in enumerate(predictions[:-1])]


def rounding_flips_a_mask(oracle: Any, run: Run) -> bool:
    """Whether an attention mask of the run changes when the weights start off by no more than rounding."""
    again = [train(oracle, ROUNDING).blocked for _ in range(3)]
    return any(not a.equal(b) for blocked in again for a, b in zip(blocked, run.blocked, strict=True))


def largest_error(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


def test_trajectory_and_weights_after_it(mask2former: Any) -> None:
    run = train(mask2former)
    trajectory = largest_error(run.losses, mask2former.tensor("trajectory").tolist())
    norms = largest_error(run.norms, list(mask2former.json("after_norms").values()))
    if trajectory > TRAJECTORY or norms > AFTER_NORM:
        report = f"largest relative error {trajectory:.1e} of the losses, {norms:.1e} of the norms afterwards"
        assert rounding_flips_a_mask(mask2former, run), f"{report}, and no attention mask is on the brink"
        print(f"{report}: rounding flips an attention mask")
        assert max(trajectory, norms) <= AFTER_A_FLIP, report


def assert_same_segments(found: PanopticMap, ids: Tensor, segments: list[dict[str, Any]]) -> None:
    assert found.ids.shape == ids.shape
    assert float((found.ids != ids).double().mean()) <= PIXELS
    expected = [(s["id"], s["category_id"], s["isthing"]) for s in segments]
    assert [(s.id, s.label, s.is_thing) for s in found.segments] == expected


def assert_same_instances(found: ModelOutput, expected: ModelOutput) -> None:
    """Equal as sets: each expected object has one found object of its class, score and mask."""
    ours, theirs = found["instance"], expected["instance"]
    assert ours.scores is not None
    assert theirs.scores is not None
    assert len(ours) == len(theirs)
    left = list(range(len(ours)))
    for label, score, mask in zip(theirs.labels, theirs.scores, theirs.masks, strict=True):
        twins = [
            i
            for i in left
            if ours.labels[i] == label
            and abs(float(ours.scores[i] - score)) <= SCORE
            and float((ours.masks[i] != mask).double().mean()) <= PIXELS
        ]
        assert twins, f"no object of label {int(label)} with score {float(score):.6f} and the same mask"
        left.remove(twins[0])


def assert_same_answers(oracle: Any, image: int, found: ModelOutput) -> None:
    expected = oracle.output(image)
    assert found["semantic"].shape == expected["semantic"].shape
    assert float((found["semantic"] - expected["semantic"]).abs().max()) <= SEMANTIC
    ids, segments = oracle.tensor(f"panoptic/{image}"), oracle.json(f"panoptic_segments/{image}")
    assert_same_segments(found["panoptic"], ids, segments)
    assert_same_instances(found, expected)


def test_answers_of_a_whole_model(mask2former: Any) -> None:
    assert len(mask2former.outputs) == len(mask2former.inputs)
    for image, output in enumerate(mask2former.outputs):
        assert_same_answers(mask2former, image, output)


def test_answers_of_crafted_predictions(postprocess: Any) -> None:
    for image in range(len(postprocess.prediction.class_logits)):
        frame, metadata, rule = postprocess.frame(image), postprocess.metadata(), postprocess.rule()
        assert_same_answers(postprocess, image, answer(postprocess.prediction, image, frame, metadata, rule, TASKS))


@torch.no_grad()
def test_efficientvit_features(efficientvit: Any) -> None:
    features = efficientvit.backbone()(efficientvit.tensor("input"))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for stage, found in enumerate(features.values(), start=1):
        assert_near(found, efficientvit.tensor(f"features/stage{stage}"), EFFICIENTVIT, f"stage {stage}")
