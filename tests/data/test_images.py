from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from m2f.data.images import orient, read_image, read_index_mask, read_segment_ids

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _save(image: Image.Image, path: Path, **options) -> str:
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(Image.fromarray(PIXELS), tmp_path / "a.png", exif=exif)
    picture = read_image(path)
    with Image.open(path) as image:
        assert (picture.pixels == np.asarray(ImageOps.exif_transpose(image))).all()
    assert picture.stored_size == (5, 7)
    assert picture.size == ((7, 5) if orientation > 4 else (5, 7))
    assert (orient(PIXELS, orientation) == picture.pixels).all()


@pytest.mark.parametrize("block", [b"Exif\0\0garbage!", b"Exif\0\0II*\0"])
def test_a_broken_exif_block_breaks_nothing(tmp_path: Path, block: bytes) -> None:
    picture = read_image(_save(Image.fromarray(PIXELS), tmp_path / "a.png", exif=block))
    assert picture.orientation == 1 and (picture.pixels == PIXELS).all()


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(PIXELS)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture = read_image(_save(rgb.convert(mode), tmp_path / f"{mode}.png"))
        assert picture.pixels.shape == (5, 7, 3)
        assert (picture.pixels == np.asarray(rgb.convert(mode).convert("RGB"))).all(), mode
    see_through = rgb.convert("P")
    see_through.info["transparency"] = bytes(range(256))
    assert read_image(_save(see_through, tmp_path / "t.png", transparency=bytes(256))).pixels.shape == (5, 7, 3)
    wide = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert read_image(_save(Image.fromarray(wide), tmp_path / "w.png")).pixels[0, :, 1].tolist() == [0, 1, 255]


def test_masks_are_read_as_indices(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2], [3, 150, 255]], dtype=np.uint8)
    palette = Image.fromarray(ids, mode=None).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9] * 64)
    assert (read_index_mask(_save(palette, tmp_path / "p.png")) == ids).all()
    assert (read_index_mask(_save(Image.fromarray(ids), tmp_path / "l.png")) == ids).all()
    assert (read_index_mask(_save(Image.fromarray(ids).convert("RGB"), tmp_path / "g.png")) == ids).all()
    wide = ids.astype(np.uint16) * 200
    read = read_index_mask(_save(Image.fromarray(wide), tmp_path / "w.png"))
    assert read.dtype == np.uint16 and (read == wide).all()
    with pytest.raises(ValueError, match=r"c\.png.*colours"):
        read_index_mask(_save(Image.fromarray(PIXELS), tmp_path / "c.png"))


def test_panoptic_png(tmp_path: Path) -> None:
    ids = read_segment_ids(_save(Image.fromarray(PIXELS), tmp_path / "a.png"))
    red, green, blue = PIXELS.astype(np.int64).transpose(2, 0, 1)
    assert (ids == red + 256 * green + 65536 * blue).all()
    with pytest.raises(ValueError, match=r"b\.png.*mode L"):
        read_segment_ids(_save(Image.fromarray(PIXELS[..., 0]), tmp_path / "b.png"))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_broken_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole.{suffix}"
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    for name, content in (("cut", path.read_bytes()[:600]), ("empty", b""), ("text", b"not an image")):
        broken = tmp_path / f"{name}.{suffix}"
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.{suffix}"):
            read_image(str(broken))
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(str(tmp_path / "gone.jpg"))
