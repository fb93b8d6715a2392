from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from m2f.data.transforms import (
    ColorJitter,
    ColorShift,
    Geometry,
    LargeScaleJitter,
    ResizeCrop,
    ShortestEdge,
    expand_min_sizes,
)

SIZE = (37, 53)


def _pixels(size=SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _random_geometry(rng: np.random.Generator, size=SIZE) -> Geometry:
    """Resize, flips and crops in a random order."""
    geometry = Geometry.identity(size)
    for _ in range(3):
        step = rng.integers(3)
        if step == 0:
            geometry = geometry.resized((int(rng.integers(8, 90)), int(rng.integers(8, 90))))
        elif step == 1:
            geometry = geometry.flipped(horizontal=bool(rng.integers(2)), vertical=bool(rng.integers(2)))
        else:
            crop = tuple(int(rng.integers(2, edge + 1)) for edge in geometry.size)
            top, left = (int(rng.integers(edge - c + 1)) for edge, c in zip(geometry.size, crop, strict=True))
            geometry = geometry.cropped(top, left, crop)
    return geometry


def test_flipping_twice_and_doing_nothing_change_nothing() -> None:
    identity = Geometry.identity(SIZE)
    assert identity.is_identity
    twice = identity.flipped(horizontal=True, vertical=True).flipped(horizontal=True, vertical=True)
    assert twice == identity
    pixels = _pixels()
    assert (identity.apply_image(pixels) == pixels).all()
    flipped = identity.flipped(horizontal=True)
    assert (flipped.apply_image(pixels) == pixels[:, ::-1]).all()
    assert (flipped.flipped(vertical=True).apply_ids(pixels[..., 0]) == pixels[::-1, ::-1, 0]).all()


def test_crop_after_flip_is_in_the_flipped_frame() -> None:
    pixels = _pixels()
    geometry = Geometry.identity(SIZE).flipped(horizontal=True, vertical=True).cropped(3, 5, (10, 12))
    expected = pixels[::-1, ::-1][3:13, 5:17]
    assert (geometry.apply_image(pixels) == expected).all()
    assert (geometry.apply_ids(pixels[..., 1]) == expected[..., 1]).all()


def test_one_resampling_equals_resizing_everything_and_cutting() -> None:
    pixels = _pixels()
    for size in ((20, 31), (90, 100), (37, 80)):
        whole = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        geometry = Geometry.identity(SIZE).resized(size).cropped(4, 7, (13, 21))
        cut = geometry.apply_image(pixels).astype(int)
        assert np.abs(cut - whole[4:17, 7:28]).max() <= 1


def test_a_cut_of_an_id_map_is_a_part_of_the_whole_map() -> None:
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    whole = Geometry.identity(SIZE).resized((71, 29)).flipped(horizontal=True)
    cut = whole.cropped(11, 3, (50, 20))
    assert (cut.apply_ids(ids) == whole.apply_ids(ids)[11:61, 3:23]).all()


def test_image_ids_and_points_move_together() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        geometry = _random_geometry(rng)
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        rows, columns = geometry.apply_ids(y), geometry.apply_ids(x)
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
        moved = geometry.apply_points(centres).reshape(*geometry.size, 2)
        here = np.stack(np.meshgrid(np.arange(geometry.size[1]), np.arange(geometry.size[0])), axis=-1) + 0.5
        # The nearest source centre lies within half a source pixel of where the result pixel looks.
        reach = 0.5 / np.array(geometry.scale[::-1]) + 1e-6
        assert (np.abs(moved - here) <= reach).all()


def test_smooth_image_follows_its_ids() -> None:
    ramp = np.repeat(np.linspace(0, 255, SIZE[1]).round().astype(np.uint8)[None, :, None], SIZE[0], axis=0).repeat(
        3, axis=2
    )
    rng = np.random.default_rng(4)
    for _ in range(20):
        geometry = _random_geometry(rng)
        image = geometry.apply_image(ramp)[..., 0].astype(int)
        looked_up = geometry.apply_ids(ramp[..., 0]).astype(int)
        step = 255 / SIZE[1] * max(1.0, geometry.scale[1])
        assert np.abs(image - looked_up).max() <= step + 2


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie inside"):
        Geometry.identity(SIZE).cropped(30, 0, (10, 10))
    with pytest.raises(ValueError, match="applied to"):
        Geometry.identity(SIZE).apply_ids(np.zeros((4, 4)))


def test_expand_min_sizes_is_taos() -> None:
    assert expand_min_sizes([640], [512, 512]) == tuple(range(320, 1281, 64))
    assert len(expand_min_sizes([1024], [512, 512])) == 25
    assert expand_min_sizes([], [480, 640]) == (480,)
    assert expand_min_sizes([300, 200], [480, 640]) == (300, 200)


def test_shortest_edge() -> None:
    rng, policy = np.random.default_rng(0), ShortestEdge(800, 1333)
    assert policy.draw(rng, (480, 640), _never).size == (800, 1067)
    assert policy.draw(rng, (300, 900), _never).size == (444, 1333)
    assert ShortestEdge(32, 640, (64, 48)).draw(rng, (480, 480), _never).size == (32, 43)


def _never() -> np.ndarray:
    raise AssertionError("the label map is asked for in vain")


def test_resize_crop_draws_every_size_and_place() -> None:
    policy = ResizeCrop((40, 60), 1000, (32, 48), horizontal_flip=0.5, vertical_flip=0.25)
    rng = np.random.default_rng(0)
    drawn = [policy.draw(rng, SIZE, _never) for _ in range(400)]
    assert {geometry.size for geometry in drawn} == {(32, 48)}
    assert len({round(geometry.scale[0], 3) for geometry in drawn}) == 2
    assert 0.4 < np.mean([geometry.hflip for geometry in drawn]) < 0.6
    assert 0.18 < np.mean([geometry.vflip for geometry in drawn]) < 0.32
    for geometry in drawn:
        x0, y0, x1, y1 = geometry.box
        assert min(x0, y0) > -1e-9 and x1 <= SIZE[1] + 1e-9 and y1 <= SIZE[0] + 1e-9


def test_resize_crop_caps_and_keeps_small_images_small() -> None:
    policy = ResizeCrop((64,), 50, (512, 512))
    assert policy.draw(np.random.default_rng(0), (40, 100), _never).size == (20, 50)
    resized_first = ResizeCrop((64,), 500, (512, 512), target_size=(30, 60))
    assert resized_first.draw(np.random.default_rng(0), (40, 100), _never).size == (128, 64)


def test_category_area_check_avoids_crops_of_one_class() -> None:
    labels = np.zeros((80, 80), dtype=np.int64)
    labels[:, 60:] = 1
    labels[:10] = -1

    def share(policy: ResizeCrop) -> float:
        rng, misses = np.random.default_rng(0), 0
        for _ in range(200):
            x0, y0, x1, y1 = (int(edge) for edge in policy.draw(rng, (80, 80), lambda: labels).box)
            counts = np.bincount(labels[y0:y1, x0:x1][labels[y0:y1, x0:x1] >= 0], minlength=2)
            misses += counts.max() >= 0.75 * counts.sum()
        return misses / 200

    assert share(ResizeCrop((80,), 80, (30, 30), 1.0)) > 0.6
    assert share(ResizeCrop((80,), 80, (30, 30), 0.75)) < 0.1


def test_large_scale_jitter_covers_its_range_and_both_axes_apart() -> None:
    policy = LargeScaleJitter((64, 64), 0.1, 2.0)
    rng = np.random.default_rng(0)
    drawn = [policy.draw(rng, (60, 60), _never) for _ in range(500)]
    scales = np.array([60 / 64 / geometry.scale[0] for geometry in drawn])
    assert 0.08 < scales.min() < 0.2 and 1.9 < scales.max() <= 2.02
    assert max(max(geometry.size) for geometry in drawn) == 64
    assert min(min(geometry.size) for geometry in drawn) < 12
    boxes = np.array([geometry.box for geometry in drawn])
    room = 60.0 - (boxes[:, 2:] - boxes[:, :2])
    cut = room.min(axis=1) > 5
    places = boxes[cut, :2] / room[cut]
    assert len(places) > 100 and abs(np.corrcoef(places.T)[0, 1]) < 0.2
    assert min(LargeScaleJitter((8, 8), 0.01, 0.01).draw(rng, (60, 2), _never).size) == 1


def test_color_table_is_near_the_formula() -> None:
    pixels = _pixels((64, 64))
    rng = np.random.default_rng(5)
    for _ in range(20):
        shift = ColorJitter().draw(rng)
        exact = shift.exact(pixels.reshape(-1, 3).astype(np.float64)).reshape(pixels.shape)
        error = np.abs(shift.apply_image(pixels) - exact)
        assert error.mean() < 1.0 and error.max() < 16.0


def test_color_formula_on_known_colors() -> None:
    red = np.array([[200.0, 0.0, 0.0]])
    assert ColorShift(hue=60.0).exact(red).tolist() == [[200.0, 200.0, 0.0]]
    assert ColorShift(hue=-120.0).exact(red).tolist() == [[0.0, 0.0, 200.0]]
    assert ColorShift(saturation=0.5).exact(red).tolist() == [[200.0, 100.0, 100.0]]
    grey = np.array([[90.0, 90.0, 90.0]])
    assert ColorShift(saturation=1.5, hue=18.0).exact(grey).tolist() == grey.tolist()
    assert ColorShift(brightness=30.0, contrast=0.5).exact(grey).tolist() == [[60.0] * 3]
    pixels = _pixels()
    assert (ColorShift().apply_image(pixels) == pixels).all()
    brighter = ColorShift(brightness=32.0).apply_image(pixels)
    assert (brighter == np.minimum(pixels.astype(int) + 32, 255)).all()


def test_color_jitter_changes_each_thing_half_of_the_time_and_within_bounds() -> None:
    rng = np.random.default_rng(0)
    drawn = [ColorJitter().draw(rng) for _ in range(400)]
    for name, neutral, low, high in (
        ("brightness", 0.0, -32, 32),
        ("contrast", 1.0, 0.5, 1.5),
        ("saturation", 1.0, 0.5, 1.5),
        ("hue", 0.0, -18, 18),
    ):
        values = np.array([getattr(shift, name) for shift in drawn])
        assert 0.4 < (values != neutral).mean() < 0.6
        assert low <= values.min() < neutral - 0.4 * (neutral - low) and neutral < values.max() <= high
