"""Pixels against the data room, frames against the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.data.images import read_image
from m2f.data.mappers import EvalMapper
from m2f.data.transforms import ShortestEdge
from m2f.export.runtime.preprocess import evaluation_resize, fit, make_batch, read_picture
from m2f.structures.image_batch import ImageBatch

RNG = np.random.default_rng(0)


def pixels_of(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_files_are_decoded_as_the_data_room_decodes_them(tmp_path: Path, orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(pixels_of(5, 7)).convert(mode), tmp_path / "a.png", exif=exif)
    expected = read_image(str(path)).pixels
    assert (read_picture(path) == expected).all()
    with Image.open(path) as image:
        assert (read_picture(image) == expected).all()


def test_every_mode_becomes_rgb_as_in_the_data_room(tmp_path: Path) -> None:
    rgb = Image.fromarray(pixels_of(5, 7))
    see_through = rgb.convert("P")
    wide = Image.fromarray(RNG.integers(0, 65536, (4, 6), dtype=np.uint16))
    files = [save(rgb.convert(mode), tmp_path / f"{mode}.png") for mode in ("1", "LA", "RGBA")]
    files += [save(see_through, tmp_path / "t.png", transparency=bytes(256)), save(wide, tmp_path / "w.png")]
    files += [save(rgb.convert("CMYK"), tmp_path / "c.jpg"), save(rgb, tmp_path / "e.png", exif=b"Exif\0\0garbage!")]
    for path in files:
        assert (read_picture(path) == read_image(str(path)).pixels).all(), path.name


def test_pictures_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot read image .*broken\.jpg"):
        read_picture(broken)
    with pytest.raises(FileNotFoundError, match=r"no such image: .*gone\.jpg"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="no fixed white"):
        read_picture(Image.fromarray(np.zeros((4, 4), np.float32)))
    for array in (np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"a picture is \(height, width, 3\) uint8 RGB"):
            read_picture(array)


@pytest.mark.parametrize("size", [(480, 640), (97, 33), (31, 400), (64, 64), (1, 1), (640, 427), (64, 128)])
@pytest.mark.parametrize("target_size", [(), (100, 70)])
def test_the_resize_is_that_of_evaluation(make_info, tmp_path: Path, size, target_size) -> None:
    path = save(Image.fromarray(pixels_of(*size)), tmp_path / "a.png")
    info = make_info(target_size=target_size)
    mapper = EvalMapper(info.metadata, ShortestEdge(info.min_size, info.max_size, target_size), ())
    expected = mapper({"file_name": str(path), "image_id": 1}, np.random.default_rng(0))["image"].numpy()
    assert (evaluation_resize(read_picture(path), info).transpose(2, 0, 1) == expected).all()


def test_batches_are_normalised_and_padded_as_by_the_model(make_info) -> None:
    info = make_info()
    images = [pixels_of(h, w).transpose(2, 0, 1) for h, w in ((64, 90), (96, 31))]
    batch = make_batch(images, info)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (info.pixel_mean, info.pixel_std))
    expected = ImageBatch.pad([(torch.from_numpy(i.copy()).float() / 255 - mean) / std for i in images], 32)
    assert (batch.tensor == expected.tensor.numpy()).all()
    assert batch.tensor.dtype == np.float32
    assert batch.sizes == expected.sizes
    assert batch.frame == expected.padded_size


def test_a_graph_that_normalises_gets_bytes_and_mean_colour(make_info) -> None:
    image = pixels_of(40, 50).transpose(2, 0, 1)
    batch = make_batch([image], make_info(normalize_in_graph=True))
    assert batch.tensor.dtype == np.uint8
    assert (batch.tensor[0, :, :40, :50] == image).all()
    assert batch.tensor[0, :, 63, 63].tolist() == [124, 116, 104]


@pytest.mark.parametrize(
    ("frame", "size", "fitted"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (30, 20), (30, 20)),  # never enlarged
        ((64, 96), (128, 96), (64, 48)),
        ((64, 96), (64, 128), (48, 96)),
        ((64, 96), (65, 1), (64, 1)),
        ((64, -1), (128, 400), (64, 200)),
        ((-1, -1), (700, 900), (700, 900)),
    ],
)
def test_what_is_too_large_for_the_frame_is_shrunk_and_keeps_its_aspect(make_info, frame, size, fitted) -> None:
    info = make_info(height=frame[0], width=frame[1])
    image = pixels_of(*size).transpose(2, 0, 1)
    found = fit(image, info)
    assert found.shape == (3, *fitted)
    if size != fitted:
        resized = Image.fromarray(image.transpose(1, 2, 0)).resize(fitted[::-1], Image.Resampling.BILINEAR)
        assert (found.transpose(1, 2, 0) == np.asarray(resized)).all()
    batch = make_batch([found], info)
    padded = tuple(edge if edge > 0 else -(-have // 32) * 32 for edge, have in zip(frame, fitted, strict=True))
    assert batch.frame == padded


def test_a_batch_of_fixed_size_is_filled_up_with_blanks(make_info) -> None:
    batch = make_batch([pixels_of(32, 32).transpose(2, 0, 1)], make_info(batch_size=3, height=32, width=32))
    assert batch.tensor.shape == (3, 3, 32, 32)
    assert not batch.tensor[1:].any()
    assert batch.sizes == [(32, 32)]
