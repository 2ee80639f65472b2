"""Lines as they are typed or piped: the same from a file and from stdin."""

import io
import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiexit.cli import typed
from multiexit.files import paths
from multiexit_runner.answering import parts

WAYS = {
    "ends of every kind": (b"fine\r\nold\rmac\nlast", ["fine", "old", "mac", "last"]),
    "last line ended": (b"a\nb\n", ["a", "b"]),
    "empty lines": (b"\n\r\n\nx\r", ["", "", "", "x"]),
    "byte-order mark": (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
    "not only ASCII": ("ä😀\u2028\x85\x0b|\n".encode(), ["ä😀\u2028\x85\x0b|"]),
    "nothing": (b"", []),
}


def read(data: bytes, way: str, folder) -> list[str]:
    if way == "file":
        (folder / "lines.txt").write_bytes(data)
        return list(typed.lines([str(folder / "lines.txt")]))
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii", newline="")):
        return list(typed.lines(None))


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize("name", WAYS)
def test_lines(name, way, tmp_path):
    data, wanted = WAYS[name]
    assert read(data, way, tmp_path) == wanted


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_lines_are_those_of_universal_newlines(text):
    wanted = [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    with patch.object(sys, "stdin", io.StringIO(text, newline="")):
        found = list(typed.lines(["-"]))
    assert found == [
        line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(wanted)
    ]


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize("data", [b"fine\r\n\xff bad\n", b"x\ncut \xf0\x9f", b"\n\xed\xa0\xbd"])
def test_what_is_no_utf_8_is_refused_by_its_line(data, way, tmp_path):
    with pytest.raises(
        ValueError, match=r"(stdin|lines.txt) is no UTF-8 text: byte 0x.. in line 2"
    ):
        read(data, way, tmp_path)


def test_the_locale_does_not_matter():
    code = "from multiexit.cli.typed import lines\nfor line in lines(None): print(ascii(line))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}
    data = "é\r\n".encode() + b"a\n\xff"
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, env=environment
    )
    assert done.stdout.decode().split() == [r"'\xe9'", "'a'"]
    assert b"ValueError: stdin is no UTF-8 text: byte 0xff in line 3" in done.stderr


def test_a_closed_stdin():
    with patch.object(sys, "stdin", None), pytest.raises(ValueError, match="stdin is closed"):
        list(typed.lines(None))


def test_lines_of_a_pipe_come_one_by_one_and_are_answered_so():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        come = parts((line.decode() for line in typed._lines_at_hand(pipe)), "text", 32)
        for words in (b"one\n", b"two\nthree\n"):
            os.write(write, words)
            assert next(come)[0] == words.decode().splitlines(keepends=True)
        os.write(write, b"four")
        os.close(write)
        assert [part for part, _ in come] == [["four"]]


def test_a_folder_that_is_not_to_be_written_in_is_refused_at_once(tmp_path, monkeypatch):
    paths.check_folder("--output", tmp_path / "new")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=r"^--output '.*new': no permission to write in "):
        paths.check_folder("--output", tmp_path / "new")


@pytest.mark.parametrize("value", [True, False, None, 2, 0.5, "lae", (1, 2)])
def test_options_are_read_as_python_writes_them_or_json(value):
    written = {str(value) if value is None or isinstance(value, bool | str) else json.dumps(value)}
    written |= {value if isinstance(value, str) else json.dumps(value)}
    assert {typed.options([f"name={text}"])["name"] for text in written} == {value}
