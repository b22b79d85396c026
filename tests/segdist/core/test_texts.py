"""User text files are read in the encodings that common programs save."""

from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.core.files import read_text, whole_file
from segdist.core.parsing import read_file
from shards.build.pairs import csv_rows

TEXT = "Größe 1.png\nçédille – 2.png\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_common_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "list.txt") == TEXT
    (tmp_path / "a.toml").write_bytes('name = "Größe"\n'.encode(encoding))
    assert read_file(tmp_path / "a.toml") == {"name": "Größe"}


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\r", b"\xff\xfe\x00", b"text\0", b"a\x81b"])
def test_a_file_that_is_not_text_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt: not a text file"):
        read_text(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"b\.txt: can't be read"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_may_have_short_and_long_rows(tmp_path: Path, encoding: str, delimiter: str) -> None:
    lines = ["image,mask,split", '"ä, b.png",m.png,train', "b.png,m.png", "c.png", "d.png,e,f,g,h", ""]
    text = "\r\n".join(line.replace("ä, b", "ä- b").replace(",", delimiter) for line in lines)
    (tmp_path / "pairs.csv").write_bytes(text.encode(encoding))
    assert [list(row.values()) for row in csv_rows(tmp_path / "pairs.csv")] == [
        ["ä- b.png", "m.png", "train"],
        ["b.png", "m.png", ""],
        ["c.png", "", ""],
        ["d.png", "e", "f"],
    ]


@pytest.mark.parametrize("length", [5, 241, 249, 255])
def test_names_of_any_length_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("n" * length)
    with whole_file(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"
