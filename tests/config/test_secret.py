"""The encryption key is read and never shown: not in a saved spec, a difference, an error or a logged command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2f.config import SpecError, diff_spec, dump_spec, dumped_leaves, load_spec, split_key, without_key

KEY = "hush-hush"


def test_a_saved_spec_has_the_key_and_not_its_value(tmp_path: Path) -> None:
    cfg = load_spec(None, [f"encryption_key={KEY}", "train.seed=3"])
    assert cfg.encryption_key == KEY
    assert KEY not in dump_spec(cfg) + diff_spec(cfg)
    assert dumped_leaves(dump_spec(cfg)) == {**dict(cfg.leaves()), "encryption_key": ""}
    assert dumped_leaves(diff_spec(cfg)) == {"train.seed": 3}
    (tmp_path / "spec.yaml").write_text(dump_spec(cfg))
    again = load_spec(tmp_path / "spec.yaml", [f"encryption_key={KEY}"])
    assert again == cfg


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("encryption_key=1234567", "'encryption_key' must be str, got int <hidden>; put it in quotes"),
        ("encryption_key=[1234567]", "'encryption_key' must be str, got a list <hidden>"),
        ("encryption_key={a: 1234567}", "'encryption_key' must be str, got a section <hidden>"),
        ("encryption_key=[1234567", "the value of 'encryption_key', <hidden>, is no YAML"),
        ("encryption_kye=1234567", "unknown key 'encryption_kye'; did you mean 'encryption_key'?"),
    ],
)
def test_an_error_about_the_key_does_not_show_it(word: str, shown: str) -> None:
    with pytest.raises(SpecError) as error:
        load_spec(None, [word])
    assert "1234567" not in str(error.value)
    assert str(error.value).startswith(f"command line: {shown}")


def test_a_command_line_is_shown_without_the_key() -> None:
    words = ["-e", "spec.yaml", f"encryption_key={KEY}", "train.seed=1", "encryption_key", KEY, "train.seed", "2"]
    assert without_key(words) == [
        *("-e", "spec.yaml", "encryption_key=<hidden>", "train.seed=1"),
        *("encryption_key", "<hidden>", "train.seed", "2"),
    ]
    assert without_key(["encryption_key"]) == ["encryption_key"]


def test_the_key_is_taken_out_of_overrides() -> None:
    assert split_key(["a.b", "1", f"encryption_key={KEY}", "c=[x, y]"]) == (KEY, ["a.b=1", "c=[x, y]"])
    assert split_key(["encryption_key", f"'{KEY}'"]) == (KEY, [])
    assert split_key(["train.seed=1"]) == ("", ["train.seed=1"])
    with pytest.raises(SpecError, match="must be str, got int <hidden>"):
        split_key(["encryption_key=12"])
