from __future__ import annotations

import pytest
import yaml

from m2f.config import SpecError
from m2f.config.reader import SpecDumper, SpecLoader, read_value, read_yaml


def read(text: str):
    return yaml.load(text, Loader=SpecLoader)


@pytest.mark.parametrize(
    "text", ["1e-4", "1E-4", "1.e-4", "1.0e-4", "0.0001", ".0001", "+1e-4", "1e-04", ".1e-3", "100.0e-6"]
)
def test_every_way_to_write_a_small_number(text):
    value = read(f"lr: {text}")["lr"]
    assert type(value) is float and value == pytest.approx(1e-4, rel=1e-12)
    assert read_value("train.optim.lr", text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.", 0.0), ("1.", 1.0), ("12", 12), ("-1", -1), ("010", 10), ("0x10", 16), ("1_000", 1000), ("'1e-4'", "1e-4")],
)
def test_numbers(text, value):
    assert read(f"a: {text}")["a"] == value and type(read(f"a: {text}")["a"]) is type(value)


@pytest.mark.parametrize("text", ["2024-01-01", "12:30:45", "1e", "e4", "1.2.3", "res2", "model_epoch=049.pth"])
def test_what_only_looks_like_a_number_is_text(text):
    assert read(f"a: {text}")["a"] == text
    assert read_value("a", text) == text


@pytest.mark.parametrize(
    "text", ["# 3", "a: b", "@home", "runs #2", "%x", "*star", "C:\\data: x", "1e-4", "true", "", "null", "0o7", "3."]
)
def test_strings_survive_a_dump(text):
    assert read(yaml.dump({"a": text}, Dumper=SpecDumper)) == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[44,48]", [44, 48]),
        ("", None),
        ("null", None),
        ("true", True),
        ("'5'", "5"),
        ("a: b", "a: b"),
        ("#x", "#x"),
        ("@x", "@x"),
    ],
)
def test_values_of_the_command_line(text, value):
    assert read_value("key", text) == value


def test_a_broken_value_of_the_command_line_is_named():
    with pytest.raises(SpecError, match=r"command line: the value of 'train.freeze', '\[a, b'"):
        read_value("train.freeze", "[a, b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"spec.yaml, line 3: key 'a' is already in line 1"),
        ("x:\n  a: 1\n  b: {c: 1, c: 2}\n", r"line 3: key 'c' is already in line 3"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "a spec is a mapping of sections; this is a list"),
        ("just text", "a spec is a mapping of sections; this is a str"),
        ("a: 1\n---\nb: 2\n", "several documents"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a:\n\tb: 1\n", "line 2: a tab"),
        ("a: [1, 2\nb: 3\n", "line 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
        ("a: b: c\n", "line 1"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_missing_folder_and_binary_files_are_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(SpecError, match=str(path)):
            read_yaml(path)
