"""Weights of other sizes: what each rule does to real models' answers, and what has no rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from m2f.checkpoint.adapting import adapt, resize_bias_tables, resize_position_grids
from m2f.checkpoint.rows import ClassLists, carry_class_rows, fit_queries
from m2f.checkpoint.schemes import State
from m2f.config import get_cfg
from m2f.modeling.build import build_model
from m2f.modeling.maskformer import MaskFormer
from m2f.structures.metadata import Category, Metadata

TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
GRID = "backbone.absolute_pos_embed"
WEIGHT, BIAS = "transformer_decoder.class_embed.weight", "transformer_decoder.class_embed.bias"
QUERIES = ("transformer_decoder.query_feat.weight", "transformer_decoder.query_embed.weight")
NO_CLASSES = ClassLists()


def make_model(
    names: Sequence[str] = ("cat", "dog", "sky"), seed: int = 0, queries: int = 5, **swin: object
) -> MaskFormer:
    """A small MaskFormer with a Swin, all of whose weights are random."""
    sizes = {"type": "custom", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 3}
    former = {"hidden_dim": 16, "dim_feedforward": 16, "nheads": 2, "num_object_queries": queries, "dec_layers": 3}
    head = {"num_classes": len(names), "convs_dim": 16, "mask_dim": 16, "transformer_enc_layers": 1}
    cfg = get_cfg()
    backbone = {"type": "swin", "swin": {**sizes, **swin}}
    head["encoder_dim_feedforward"] = 16
    cfg.merge({"model": {"backbone": backbone, "sem_seg_head": head, "mask_former": former}}, "test")
    torch.manual_seed(seed)
    model = build_model(cfg, Metadata("tiny", tuple(Category(i, name) for i, name in enumerate(names))))
    assert isinstance(model, MaskFormer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def answers(model: MaskFormer, size: tuple[int, int] = (64, 96)) -> tuple[Tensor, Tensor]:
    """Class and mask logits for one image."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(7))
    final = model.layers(images)[-1]
    return final.class_logits[0], final.mask_logits(0)


def transfer(source: MaskFormer, model: MaskFormer, *, complete: bool = False, names: bool = True) -> list[str]:
    """What a file of `source` does to `model`, by the rules alone."""
    lists = ClassLists(source.metadata.names if names else None, model.metadata.names)
    fitting, lines = adapt(model.state_dict(), source.state_dict(), lists, complete=complete)
    model.load_state_dict(fitting, strict=False)
    return lines


# Positions.


@cache
def _keys_kernel(distance: float) -> float:
    """Keys' cubic convolution with a = -3/4, which torch calls bicubic."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def _bicubic_matrix(there: int, here: int) -> Tensor:
    """(here, there): how much of each old sample is in each new one; pixel centres at halves, edges repeated."""
    matrix = torch.zeros(here, there, dtype=torch.float64)
    for i in range(here):
        place = (i + 0.5) * there / here - 0.5
        for j in range(int(place // 1) - 1, int(place // 1) + 3):
            matrix[i, min(max(j, 0), there - 1)] += _keys_kernel(place - j)
    return matrix


def test_a_table_of_the_same_window_stays_bit_for_bit() -> None:
    table = torch.randn(25, 2)
    fitted, lines = resize_bias_tables({TABLE: torch.zeros(25, 2)}, {TABLE: table})
    assert torch.equal(fitted[TABLE], table)
    assert lines == []


@pytest.mark.parametrize(("there", "here"), [(7, 12), (12, 7), (1, 3), (3, 1)])
def test_tables_are_resized_bicubically(there: int, here: int) -> None:
    rows, columns = 2 * there - 1, 2 * here - 1
    table = torch.randn(rows**2, 3)
    fitted, lines = resize_bias_tables({TABLE: torch.zeros(columns**2, 3)}, {TABLE: table})
    matrix = _bicubic_matrix(rows, columns)
    expected = torch.einsum("ai,bj,ijm->abm", matrix, matrix, table.double().view(rows, rows, 3))
    torch.testing.assert_close(fitted[TABLE].double(), expected.reshape(-1, 3), atol=1e-5, rtol=0)
    assert lines == [f"relative position tables: 1 from window {there} to {here}, bicubic"]


def _smooth_table(window: int) -> Tensor:
    """((2w-1)^2, 1) samples of one smooth function over the square of relative positions."""
    side = 2 * window - 1
    place = (torch.arange(side) + 0.5) / side - 0.5
    return (torch.cos(2 * place)[:, None] * torch.exp(-3 * place**2)[None] + 0.3 * place[None]).reshape(-1, 1)


@pytest.mark.parametrize(("there", "here"), [(7, 12), (12, 7), (7, 8)])
def test_a_smooth_function_stays_itself(there: int, here: int) -> None:
    fitted, _ = resize_bias_tables({TABLE: torch.zeros((2 * here - 1) ** 2, 1)}, {TABLE: _smooth_table(there)})
    expected = _smooth_table(here)
    torch.testing.assert_close(fitted[TABLE], expected, atol=0.03, rtol=0)  # the edge, repeated, is the worst
    middle = len(expected) // 2  # a token's bias to itself
    torch.testing.assert_close(fitted[TABLE][middle], expected[middle], atol=1e-3, rtol=0)


def test_a_model_takes_the_tables_of_another_window() -> None:
    source, model = make_model(window_size=7), make_model(seed=1, window_size=12)
    lines = transfer(source, model)
    assert lines == ["relative position tables: 5 from window 7 to 12, bicubic"]
    same = make_model(seed=2, window_size=7)
    assert transfer(source, same) == []
    assert all(torch.equal(a, b) for a, b in zip(answers(same), answers(source), strict=True))
    assert all(logits.isfinite().all() for logits in answers(model))
    untouched = set(model.state_dict()) - {name for name in model.state_dict() if name.endswith("_table")}
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name]) for name in untouched)


def test_where_windows_do_not_matter_the_answers_are_the_same() -> None:
    """Constant tables, and maps that both windows divide: a window of 2x2 tokens with equal content sees no size."""
    source, model = make_model(window_size=2), make_model(seed=1, window_size=1)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.fill_(0.5)
    transfer(source, model)
    flat = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(source.backbone(flat).values(), model.backbone(flat).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_absolute_positions_of_the_same_image_size_are_left_alone() -> None:
    source, model = (make_model(seed=seed, ape=True, pretrain_img_size=32) for seed in (0, 1))
    state = source.state_dict()
    assert state[GRID].shape == (1, 8, 8, 8)
    fitting, lines = adapt(model.state_dict(), state, NO_CLASSES)
    model.load_state_dict(fitting)
    assert lines == []
    assert all(torch.equal(a, b) for a, b in zip(answers(model), answers(source), strict=True))


def test_absolute_positions_of_another_image_size_are_resized() -> None:
    grid = torch.randn(1, 4, 7, 7)
    fitted, lines = resize_position_grids({GRID: torch.zeros(1, 4, 12, 10)}, {GRID: grid})
    expected = torch.einsum("ai,bj,ncij->ncab", _bicubic_matrix(7, 12), _bicubic_matrix(7, 10), grid.double())
    torch.testing.assert_close(fitted[GRID].double(), expected, atol=1e-5, rtol=0)
    assert lines == ["absolute position table: from 7x7 to 12x10, bicubic"]


# Classes.


def test_rows_follow_the_names_of_their_classes() -> None:
    source = make_model(["dog", "tree", "Cat ", "car"])
    model = make_model(["cat", "dog", "sky"], seed=1)
    initial = {name: model.state_dict()[name].clone() for name in (WEIGHT, BIAS)}
    lines = transfer(source, model)
    assert lines == ["class head: 2 of 3 rows by category name, fresh: sky; not used of the file's: tree, car"]
    theirs, ours = answers(source)[0], answers(model)[0]
    torch.testing.assert_close(ours[:, [0, 1, 3]], theirs[:, [2, 0, 4]])  # cat, dog, no-object
    assert all(torch.equal(model.state_dict()[name][2], initial[name][2]) for name in initial)


@pytest.mark.parametrize("complete", [False, True])
def test_another_order_of_the_classes_gives_the_same_answers(complete: bool) -> None:
    source, model = make_model(["cat", "dog", "sky"]), make_model(["sky", "cat", "dog"], seed=1)
    lines = transfer(source, model, complete=complete)
    assert lines == ["class head: 3 rows by category name, as the order of the classes is another"]
    torch.testing.assert_close(answers(model)[0], answers(source)[0][:, [2, 0, 1, 3]])
    assert torch.equal(answers(model)[1], answers(source)[1])


def test_the_same_names_in_the_same_order_need_no_rule() -> None:
    source, model = make_model(["cat", "cat", "SKY"]), make_model(["cat", "cat", "sky"], seed=1)
    assert transfer(source, model, complete=True) == []
    assert torch.equal(answers(model)[0], answers(source)[0])


def _head(rows: int, width: int = 2, value: float = 1.0) -> State:
    """A class head whose row i is `value` * (i + 1)."""
    numbers = value * torch.arange(1.0, rows + 1)
    return {WEIGHT: numbers[:, None].expand(rows, width).clone(), BIAS: numbers}


def _rows(ours: Sequence[str] | None, theirs: Sequence[str] | None, here: int, there: int, **more: object) -> tuple:
    """What becomes of the bias of a head of `there` classes in a model of `here`, whose own are negative."""
    complete = bool(more.pop("complete", False))
    lists = ClassLists(theirs, ours, **more)  # type: ignore[arg-type]
    fitted, lines = carry_class_rows(_head(here + 1, value=-1.0), _head(there + 1), classes=lists, complete=complete)
    return fitted[BIAS].tolist() if fitted else None, lines


def test_without_names_a_head_of_as_many_classes_is_taken_as_it_is() -> None:
    for ours, theirs in ((None, None), (["a", "b"], None), (None, ["b", "a"]), (["a", "b"], ["a", "b", "c"])):
        assert _rows(ours, theirs, 2, 2, complete=True) == ([1, 2, 3], [])


def test_without_names_another_number_of_classes_leaves_the_head_fresh() -> None:
    fitted, (line,) = _rows(["a", "b"], None, 2, 5)
    assert fitted is None
    assert line.startswith("class head: left at its initial values, as the file has 5 classes and the model 2")
    with pytest.raises(ValueError, match=r"5 classes and the model 2; set model.sem_seg_head.num_classes to 5"):
        _rows(["a", "b"], None, 2, 5, complete=True)


def test_no_name_in_common_leaves_the_whole_head_fresh() -> None:
    fitted, (line,) = _rows(["a", "b"], ["x", "y"], 2, 2)
    assert fitted is None
    assert "none of the file's 2 classes (x, y) is one of the model's 2 (a, b)" in line


def test_a_name_that_a_side_has_twice_fits_nothing() -> None:
    assert _rows(["a", "b", "b"], ["b", "a", "c"], 3, 3)[0] == [2, -2, -3, 4]
    assert _rows(["a", "b", "c"], ["c", "b", "b"], 3, 3)[0] == [-1, -2, 1, 4]


def test_gaps_have_no_names() -> None:
    names = ["(unused id 1)", "a"]
    assert _rows(names, ["a", "(unused id 1)"], 2, 2, gaps=frozenset([0]))[0] == [-1, 1, 3]
    assert _rows(names, names, 2, 2, gaps=frozenset([0]), complete=True) == ([1, 2, 3], [])


@pytest.mark.parametrize("theirs", [["a", "b", "c"], ["a", "x"], ["x", "y"]])
def test_a_complete_model_needs_the_same_classes(theirs: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"labels would mean something else.*only the file has .*{theirs[-1]}"):
        _rows(["a", "b"], theirs, 2, len(theirs), complete=True)


def test_a_head_in_disagreement_with_itself_is_damaged() -> None:
    theirs = {**_head(4), BIAS: torch.zeros(5)}
    with pytest.raises(ValueError, match=r"class_embed.weight has 4 rows and .*class_embed.bias has 5 rows"):
        carry_class_rows(_head(4), theirs, classes=NO_CLASSES, complete=False)


# Queries.


def test_the_first_queries_are_taken() -> None:
    source, model = make_model(queries=5), make_model(seed=1, queries=3)
    assert transfer(source, model) == ["queries: the first 3 of 5"]
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name][:3]) for name in QUERIES)


def test_repeated_queries_answer_as_often() -> None:
    source, model = make_model(queries=3), make_model(seed=1, queries=6)
    assert transfer(source, model) == ["queries: 3 repeated to 6"]
    for ours, theirs in zip(answers(model), answers(source), strict=True):
        torch.testing.assert_close(ours, torch.cat([theirs, theirs]), atol=1e-4, rtol=1e-4)
    again = make_model(seed=1, queries=8)
    transfer(source, again)
    numbers = [0, 1, 2, 0, 1, 2, 0, 1]
    assert all(torch.equal(again.state_dict()[name], source.state_dict()[name][numbers]) for name in QUERIES)


def test_a_complete_model_needs_all_queries() -> None:
    with pytest.raises(ValueError, match=r"5 queries and the model 3.*set model.mask_former.num_object_queries to 5"):
        transfer(make_model(queries=5), make_model(queries=3), complete=True)
    theirs = dict(zip(QUERIES, (torch.zeros(5, 4), torch.zeros(6, 4)), strict=True))
    with pytest.raises(ValueError, match=r"query_feat.weight has 5 rows and .*query_embed.weight has 6 rows"):
        fit_queries(dict.fromkeys(QUERIES, torch.zeros(5, 4)), theirs, complete=False)


# What has no rule.


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        (TABLE, (25, 4), (25, 2)),  # other heads
        (TABLE, (25, 4), (9, 2)),
        (TABLE, (24, 2), (25, 2)),  # no square
        (TABLE, (16, 2), (25, 2)),  # the square of an even number
        (TABLE, (0, 2), (25, 2)),
        (TABLE, (25,), (25, 2)),
        (GRID, (1, 8, 7, 7), (1, 4, 7, 7)),  # other channels
        (GRID, (1, 50, 4), (1, 4, 7, 7)),  # no square
        (GRID, (1, 4, 0, 7), (1, 4, 7, 7)),
        (GRID, (4,), (1, 4, 7, 7)),
        (WEIGHT, (4, 8), (4, 4)),  # other width
        (BIAS, (), (4,)),
        (BIAS, (0,), (4,)),
        (QUERIES[0], (5, 8), (5, 4)),
        (QUERIES[0], (0, 4), (5, 4)),
        ("pixel_decoder.mask_features.weight", (4, 4, 3, 3), (4, 4, 1, 1)),
    ],
)
def test_a_shape_without_a_rule_is_an_error(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        adapt({name: torch.zeros(ours)}, {name: torch.ones(theirs)}, NO_CLASSES)
    assert str(caught.value).startswith(f"{name} has shape {theirs}, the model's has {ours}")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (torch.ones(3, dtype=torch.int64), r"holds integer numbers \(torch.int64\), the model's floating ones"),
        (torch.ones(3, dtype=torch.bool), "holds boolean numbers"),
        (torch.ones(3, dtype=torch.complex64), "holds complex numbers"),
        (torch.tensor([1.0, float("nan"), 2.0]), "values that are not finite"),
        (torch.tensor([1.0, float("inf"), 2.0]), "values that are not finite"),
        (torch.full((3,), 1e300, dtype=torch.float64), "values that are not finite"),
        (torch.ones(3, device="meta"), "without values"),
        (torch.ones(3).to_sparse(), "sparse"),
    ],
)
def test_values_that_are_no_weights_are_refused(theirs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"backbone.norm0.weight .*{message}|backbone.norm0.weight is .*{message}"):
        adapt({"backbone.norm0.weight": torch.zeros(3)}, {"backbone.norm0.weight": theirs}, NO_CLASSES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken_into_the_models(dtype: torch.dtype) -> None:
    own: State = {TABLE: torch.zeros(9, 2), BIAS: torch.zeros(4), "a.num_batches_tracked": torch.tensor(0)}
    theirs = {TABLE: torch.ones(25, 2), BIAS: torch.arange(4.0), "a.num_batches_tracked": torch.tensor(9)}
    fitted, _ = adapt(own, {name: tensor.to(dtype) for name, tensor in theirs.items()}, NO_CLASSES)
    assert {name: tensor.dtype for name, tensor in fitted.items()} == {n: t.dtype for n, t in own.items()}
    torch.testing.assert_close(fitted[TABLE], torch.ones(9, 2))
    assert fitted[BIAS].tolist() == [0, 1, 2, 3]
    assert fitted["a.num_batches_tracked"] == 9


def test_a_model_of_half_precision_takes_resized_tables() -> None:
    fitted, _ = adapt({TABLE: torch.zeros(9, 2).half()}, {TABLE: torch.ones(25, 2)}, NO_CLASSES)
    assert fitted[TABLE].dtype == torch.float16
