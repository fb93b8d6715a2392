"""A simplified graph computes what the graph did, with less."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from m2f.export.simplify import simplify


def parse(text: str) -> ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')


def simplified(text: str, *inputs: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """The nodes left and the constants, once it is sure that the outputs are the same."""
    before, after = parse(text), simplify(parse(text))
    onnx.checker.check_model(after, full_check=True)
    feeds = dict(zip([entry.name for entry in before.graph.input], inputs, strict=True))
    for expected, got in zip(
        ReferenceEvaluator(before).run(None, feeds), ReferenceEvaluator(after).run(None, feeds), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    return [node.op_type for node in after.graph.node], constants


def test_a_view_of_a_known_frame_needs_no_shape() -> None:
    left, constants = simplified(
        """
        g (float[batch, 4, 6, 8] x) => (float[batch, 48, 4] y) {
            shape = Shape (x)
            zero = Constant <value = int64 {0}> ()
            one = Constant <value = int64 {1}> ()
            batch = Gather (shape, zero)
            channels = Gather (shape, one)
            axis = Constant <value = int64[1] {0}> ()
            a = Unsqueeze (batch, axis)
            b = Unsqueeze (channels, axis)
            rest = Constant <value = int64[1] {-1}> ()
            target = Concat <axis = 0> (a, b, rest)
            flat = Reshape (x, target)
            y = Transpose <perm = [0, 2, 1]> (flat)
        }""",
        np.random.default_rng(0).random((3, 4, 6, 8), np.float32),
    )
    assert left == ["Reshape", "Transpose"]
    assert [value.tolist() for value in constants.values()] == [[0, 4, 48]]


def test_a_batch_folded_into_another_axis_is_the_one_that_is_inferred() -> None:
    left, constants = simplified(
        """
        g (float[batch, 4, 6] x) => (float[rows, 6] y) {
            shape = Shape (x)
            zero = Constant <value = int64 {0}> ()
            batch = Gather (shape, zero)
            four = Constant <value = int64 {4}> ()
            rows = Mul (batch, four)
            axis = Constant <value = int64[1] {0}> ()
            a = Unsqueeze (rows, axis)
            six = Constant <value = int64[1] {6}> ()
            target = Concat <axis = 0> (a, six)
            y = Reshape (x, target)
        }""",
        np.random.default_rng(0).random((5, 4, 6), np.float32),
    )
    assert left == ["Reshape"]
    assert [value.tolist() for value in constants.values()] == [[-1, 6]]


def test_two_free_sizes_that_are_not_kept_stay_computed() -> None:
    text = """
        g (float[batch, height, width] x) => (float[height, batch, width] y) {
            shape = Shape (x)
            order = Constant <value = int64[3] {1, 0, 2}> ()
            target = Gather (shape, order)
            y = Reshape (x, target)
        }"""
    left, _ = simplified(text, np.random.default_rng(0).random((2, 3, 4), np.float32))
    assert left == ["Shape", "Gather", "Reshape"]


def test_what_torch_writes_for_an_expand_becomes_one() -> None:
    left, _ = simplified(
        """
        g (float[batch, 2] x, float[1, 3] row) => (float[batch, 3] y) {
            shape = Shape (x)
            first = Constant <value = int64[1] {0}> ()
            batch = Gather (shape, first)
            three = Constant <value = int64[1] {3}> ()
            target = Concat <axis = 0> (batch, three)
            minus = Constant <value = int64[2] {-1, -1}> ()
            ones = Constant <value = int64[2] {1, 1}> ()
            keeps = Equal (target, minus)
            sizes = Where (keeps, ones, target)
            y = Expand (row, sizes)
        }""",
        np.ones((4, 2), np.float32),
        np.arange(3, dtype=np.float32)[None],
    )
    assert left == ["Shape", "Gather", "Concat", "Expand"]


def test_constants_are_computed_equal_ones_shared_and_the_unread_left_out() -> None:
    left, constants = simplified(
        """
        g (float[2, 3] x) => (float[2, 3] y) {
            length = Constant <value = int64 {3}> ()
            zero = Constant <value = int64 {0}> ()
            one = Constant <value = int64 {1}> ()
            steps = Range (zero, length, one)
            a = Cast <to = 1> (steps)
            b = Constant <value = float[3] {0.0, 1.0, 2.0}> ()
            first = Mul (x, a)
            same = Mul (x, b)
            again = Mul (x, b)
            unread = Exp (again)
            copy = Identity (again)
            already = Cast <to = 1> (copy)
            half = Add (first, same)
            y = Add (half, already)
        }""",
        np.random.default_rng(0).random((2, 3), np.float32),
    )
    assert left == ["Mul", "Mul", "Add", "Add"]
    assert [value.tolist() for value in constants.values()] == [[0.0, 1.0, 2.0]]


def test_tables_of_numbers_are_not_taken_for_shapes() -> None:
    left, constants = simplified(
        """
        g (int64[2] x) => (int64[2] y) {
            table = Constant <value = int64[2, 2] {1, 2, 3, 4}> ()
            from = Constant <value = int64[1] {1}> ()
            to = Constant <value = int64[1] {9223372036854775807}> ()
            axis = Constant <value = int64[1] {1}> ()
            column = Slice (table, from, to, axis)
            list = Squeeze (column, axis)
            y = Mul (list, x)
        }""",
        np.array([5, 6]),
    )
    assert left == ["Mul"]
    assert [value.tolist() for value in constants.values()] == [[2, 4]]


def test_a_large_constant_is_left_to_the_runtime() -> None:
    text = """
        g (float[1] x) => (float[n] y) {
            size = Constant <value = int64[1] {%d}> ()
            zeros = ConstantOfShape (size)
            y = Add (zeros, x)
        }"""
    assert simplified(text % 2**10, np.ones(1, np.float32))[0] == ["Add"]
    assert simplified(text % 2**21, np.ones(1, np.float32))[0] == ["ConstantOfShape", "Add"]


@pytest.mark.parametrize("condition", [True, False])
def test_a_graph_with_branches_stays_as_it_is(condition: bool) -> None:
    text = """
        g (bool c, float[2] x) => (float[2] y) {
            same = Identity (x)
            y = If (c) <
                then_branch = a () => (float[2] t) { t = Identity (same) },
                else_branch = b () => (float[2] f) { f = Neg (same) }
            >
        }"""
    left, _ = simplified(text, np.array(condition), np.ones(2, np.float32))
    assert left == ["Identity", "If"]
