"""What `inference.input` names, and what each file is called in the results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from m2f.config import get_cfg
from m2f.data.inputs import InputNames, Inputs, build_inputs

PHOTOS = ["a.jpg", "b.JPG", "deep/c.Png", "deep/er/d.tiff", "e.webp"]


def touch(root: Path, *names: str) -> Path:
    """Files that look like images from outside: nothing here decodes one."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def inputs(*words: Any, results: tuple[Path, ...] = ()) -> Inputs:
    cfg = get_cfg()
    cfg.inference.input = [str(word) for word in words]
    return build_inputs(cfg, results)


def ids(found: Inputs) -> list[Any]:
    return [record["image_id"] for record in found.images]


def files(found: Inputs, root: Path) -> list[str]:
    return [str(Path(record["file_name"]).relative_to(root)) for record in found.images]


def test_a_folder_gives_its_images_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, *PHOTOS, ".hidden.jpg", "._a.jpg", ".git/x.png", "notes.txt", "clip.mp4")
    found = inputs(tmp_path)
    assert files(found, tmp_path) == sorted(PHOTOS)
    assert ids(found) == ["a", "b", "deep/c", "deep/er/d", "e"]
    assert found.videos == ()


def test_names_are_relative_to_the_folder_that_was_given(tmp_path: Path) -> None:
    touch(tmp_path, "photos/deep/er/d.png", "photos/deep/er/e.png", "more/f.png")
    assert ids(inputs(tmp_path / "photos")) == ["deep/er/d", "deep/er/e"]
    assert ids(inputs(tmp_path / "photos/deep/er/d.png")) == ["d"]
    both = inputs(tmp_path / "photos", tmp_path / "more")
    assert ids(both) == ["photos/deep/er/d", "photos/deep/er/e", "more/f"]


def test_relative_paths_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *PHOTOS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files(inputs("a.jpg", "./deep/../e.webp", "~/b.JPG"), tmp_path) == ["a.jpg", "e.webp", "b.JPG"]


def test_a_list_names_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, *PHOTOS, "lists/near.png", "elsewhere/x.bmp")
    lines = ["\ufeff# photos", "", f"  {tmp_path / 'a.jpg'}  ", "near.png", "../deep", "#../b.JPG"]
    (tmp_path / "lists/mine.TXT").write_text("\r\n".join(lines), encoding="utf-8")
    assert files(inputs(tmp_path / "lists/mine.TXT"), tmp_path) == [
        "a.jpg",
        "lists/near.png",
        "deep/c.Png",
        "deep/er/d.tiff",
    ]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, *PHOTOS)
    found = inputs(tmp_path / "e.webp", tmp_path, tmp_path / "deep/c.Png")
    assert files(found, tmp_path) == ["e.webp", "a.jpg", "b.JPG", "deep/c.Png", "deep/er/d.tiff"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x.jpg", "x.png", "y.png"], ["x.jpg", "x.png", "y"]),
        (["x.jpg", "x.png", "x.jpg.png"], ["x.jpg", "x.jpg.png", "x.png"]),
        (["deep/x.jpg", "x.jpg"], ["deep/x", "x"]),
        (["x.jpg", "x/y.jpg"], ["x", "x/y"]),
    ],
)
def test_no_two_images_share_a_name(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    touch(tmp_path, *names)
    assert sorted(ids(inputs(tmp_path))) == sorted(expected)


def test_frames_of_a_video_cannot_be_mistaken_for_images(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    touch(tmp_path, "clip/000000.jpg", "clip.mp4", "other.webm", "third.avi", "third.jpg")
    found = inputs(tmp_path, *(tmp_path / name for name in ("clip.mp4", "other.webm", "third.avi")))
    assert [found.name_of(video) for video in found.videos] == ["clip.mp4", "other", "third.avi"]
    assert ids(found) == ["clip/000000", "third.jpg"]


def test_earlier_results_are_no_inputs_unless_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "results/overlays/a.jpg", "results/overlays_of_mine/b.jpg")
    overlays = tmp_path / "results/overlays"
    assert files(inputs(tmp_path, results=(overlays,)), tmp_path) == ["a.jpg", "results/overlays_of_mine/b.jpg"]
    assert files(inputs(overlays / "a.jpg", results=(overlays,)), tmp_path) == ["results/overlays/a.jpg"]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "empty/notes.md", "x.heic", "nothing.txt", "nested.txt", "binary.txt", "gone.txt")
    (tmp_path / "nothing.txt").write_text("\n# none yet\n")
    (tmp_path / "nested.txt").write_text("nothing.txt\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "gone.txt").write_text("a.jpg\n\nb.jpg\n")
    for word, kind, message in [
        ("b.jpg", FileNotFoundError, "inference.input: no such file or folder: {root}/b.jpg"),
        ("c.txt", FileNotFoundError, "inference.input: no such file or folder: {root}/c.txt"),
        ("empty", ValueError, "inference.input: the folder {root}/empty holds no image"),
        ("x.heic", ValueError, "inference.input: {root}/x.heic does not end like an image (.bmp"),
        ("nothing.txt", ValueError, "inference.input: the list {root}/nothing.txt names no file"),
        ("nested.txt", ValueError, "{root}/nested.txt:1: {root}/nothing.txt does not end like"),
        ("binary.txt", ValueError, "inference.input: {root}/binary.txt is no list of paths"),
        ("gone.txt", FileNotFoundError, "{root}/gone.txt:3: no such file or folder: {root}/b.jpg"),
    ]:
        with pytest.raises(kind) as caught:
            inputs(tmp_path / "a.jpg", tmp_path / word)
        assert message.format(root=tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_video_takes_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    touch(tmp_path, "clip.MOV", "a.jpg")
    with pytest.raises(ValueError, match=r"clip\.MOV is a video.*pip install opencv-python-headless"):
        inputs(tmp_path / "clip.MOV")
    assert ids(inputs(tmp_path)) == ["a"]


def test_without_input_the_test_split_is_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "deep/b.png", "overlays/c.jpg")
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"inference\.input is empty, and dataset\.test names no data"):
        build_inputs(cfg)
    cfg.dataset.test.img_dir = str(tmp_path)
    assert ids(build_inputs(cfg, (tmp_path / "overlays",))) == ["a.jpg", "a.png", "deep/b"]
    cfg.dataset.test.img_dir = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"dataset\.test\.img_dir: no such folder"):
        build_inputs(cfg)
    (tmp_path / "empty").mkdir()
    cfg.dataset.test.img_dir = str(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"dataset\.test\.img_dir: the folder .*empty holds no image"):
        build_inputs(cfg)


def test_an_annotated_test_split_keeps_its_ids(shapes_root: Path) -> None:
    cfg = get_cfg()
    cfg.dataset.test.name = "shapes_panoptic_val"
    found = build_inputs(cfg)
    assert len(found.images) == 6 and all(isinstance(image_id, int) for image_id in ids(found))
    for record in found.images:
        assert found.name_of(record["file_name"]) == Path(record["file_name"]).stem


def test_input_wins_over_the_test_split(tmp_path: Path, shapes_root: Path) -> None:
    touch(tmp_path, "a.jpg")
    cfg = get_cfg()
    cfg.dataset.test.name = "shapes_panoptic_val"
    cfg.inference.input = [str(tmp_path)]
    assert ids(build_inputs(cfg)) == ["a"]


def test_names_are_one_to_one(tmp_path: Path) -> None:
    endings = ["", ".jpg", ".png", ".jpg.png", ".mp4"]
    paths = [
        f"/r/{folder}{stem}{a}{b}" for folder in ("", "x/", "x.mp4/") for stem in "xy" for a in endings for b in endings
    ]
    paths = sorted(set(paths) - {"/r/x", "/r/x.mp4"})  # folders cannot be files too
    names = InputNames.of(paths, ["/r"])
    assert len({names(path) for path in paths}) == len(paths)
