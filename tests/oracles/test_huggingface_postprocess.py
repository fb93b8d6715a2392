"""Where transformers' answers differ from the official ones, which m2f gives, for the same logits.

A change in transformers that makes one of these tests fail is good news; README says what they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling.postprocess import DecisionRule, Frame, instance, panoptic, semantic
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap

transformers = pytest.importorskip("transformers")

METADATA = Metadata("test", (Category(1, "cat"), Category(2, "sky", False), Category(3, "dog")))
CAT, SKY, DOG, NOTHING = range(4)
SIZE = (64, 64)
RULE = DecisionRule(0.5, 0.8, 100)  # transformers' default thresholds


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


class Answers(NamedTuple):
    """Ours and theirs for one image."""

    class_logits: Tensor
    masks: Tensor
    frame: Frame

    @property
    def ours(self) -> MaskPrediction:
        return MaskPrediction(self.class_logits, torch.eye(self.masks.shape[1])[None], self.masks)

    @property
    def theirs(self) -> SimpleNamespace:
        return SimpleNamespace(class_queries_logits=self.class_logits, masks_queries_logits=self.masks)

    def our_panoptic(self) -> PanopticMap:
        return panoptic(self.ours, 0, self.frame, METADATA, RULE)

    def our_instances(self) -> Instances:
        return instance(self.ours, 0, self.frame, METADATA, RULE)

    def their_answer(self, task: str, **options: Any) -> Any:
        processor = transformers.Mask2FormerImageProcessor()
        answer = getattr(processor, f"post_process_{task}_segmentation")
        return answer(self.theirs, target_sizes=[self.frame.output], **options)[0]


def answers(
    queries: Sequence[tuple[int, float, slice]], inside: float = 8.0, outside: float = -8.0, frame: Frame | None = None
) -> Answers:
    """Queries of (class, its probability, rows of 16 where the mask holds)."""
    probabilities = torch.tensor([[(1 - p) / 3] * 4 for _, p, _ in queries])
    masks = torch.full((1, len(queries), 16, 16), outside)
    for query, (label, probability, rows) in enumerate(queries):
        probabilities[query, label] = probability
        masks[0, query, rows] = inside
    return Answers(probabilities.log()[None], masks, frame or Frame(SIZE, SIZE, SIZE))


def test_there_two_things_may_share_an_id_after_merged_stuff() -> None:
    both = answers([(query, 0.95, slice(4 * i, 4 * i + 4)) for i, query in enumerate((SKY, CAT, SKY, DOG))])
    assert [(segment.id, segment.label) for segment in both.our_panoptic().segments] == [(1, SKY), (2, CAT), (3, DOG)]
    theirs = both.their_answer("panoptic", label_ids_to_fuse={SKY})
    assert [(s["id"], s["label_id"]) for s in theirs["segments_info"]] == [(1, SKY), (2, CAT), (1, SKY), (2, DOG)]


def test_there_stuff_is_merged_only_where_the_caller_says_so() -> None:
    both = answers([(SKY, 0.95, slice(8)), (SKY, 0.95, slice(8, 16))])
    assert len(both.our_panoptic().segments) == 1
    assert len(both.their_answer("panoptic")["segments_info"]) == 2


def test_there_a_mask_counts_where_its_probability_times_the_score_is_one_half() -> None:
    """0.7 * 0.6: no pixel of it, so the segment is gone."""
    both = answers([(CAT, 0.6, slice(8)), (DOG, 0.95, slice(8, 16))], inside=0.85)
    assert [segment.label for segment in both.our_panoptic().segments] == [CAT, DOG]
    theirs = both.their_answer("panoptic", label_ids_to_fuse={SKY})
    assert [segment["label_id"] for segment in theirs["segments_info"]] == [DOG]


def test_there_a_segment_has_all_pixels_it_wins_also_those_outside_its_mask() -> None:
    both = answers([(CAT, 0.95, slice(14))], inside=5.0, outside=-0.5)
    ours, theirs = both.our_panoptic().ids, both.their_answer("panoptic", label_ids_to_fuse={SKY})["segmentation"]
    assert 0.85 < float((ours == 1).float().mean()) < 0.95
    assert bool((theirs == 1).all())


def test_there_an_image_without_segments_is_minus_one() -> None:
    both = answers([(NOTHING, 0.95, slice(8))])
    assert both.our_panoptic().ids.unique().tolist() == [0]
    assert both.their_answer("panoptic", label_ids_to_fuse=set())["segmentation"].unique().tolist() == [-1]


def test_there_padding_is_squeezed_into_the_answer() -> None:
    """48 of 64 rows are the image; the two masks meet in the middle of these."""
    frame = Frame((64, 64), (48, 64), (48, 64))
    both = answers([(CAT, 0.95, slice(6)), (DOG, 0.95, slice(6, 12))], frame=frame)
    theirs = both.their_answer("panoptic", label_ids_to_fuse=set())["segmentation"]
    assert int((both.our_panoptic().ids == 1).sum()) == 24 * 64
    assert int((theirs == 1).sum()) == 18 * 64
    ours = semantic(both.ours, 0, frame, METADATA).argmax(0)
    assert int((ours == CAT).sum()) == 24 * 64
    assert int((both.their_answer("semantic")[:24] == CAT).sum()) == 18 * 64


def test_there_instances_may_be_stuff_and_need_a_score_of_one_half() -> None:
    both = answers([(SKY, 0.95, slice(8)), (CAT, 0.45, slice(8, 16))])
    ours, theirs = both.our_instances(), both.their_answer("instance")["segments_info"]
    assert CAT in ours.labels.tolist()
    assert SKY not in ours.labels.tolist()
    assert [segment["label_id"] for segment in theirs] == [SKY]


def test_there_as_many_pairs_of_query_and_class_are_looked_at_as_there_are_queries() -> None:
    both = answers([(CAT, 0.95, slice(8)), (DOG, 0.9, slice(8, 16))])
    theirs = both.their_answer("instance", threshold=0.0)["segments_info"]
    assert len(theirs) == 2
    assert len(both.our_instances().labels) == 4  # every class of every query that is a thing


def test_semantic_answers_without_padding_agree() -> None:
    both = answers([(CAT, 0.95, slice(5)), (SKY, 0.6, slice(4, 13)), (DOG, 0.8, slice(11, 16))])
    ours = semantic(both.ours, 0, both.frame, METADATA).argmax(0)
    assert float((ours == both.their_answer("semantic")).float().mean()) > 0.98
