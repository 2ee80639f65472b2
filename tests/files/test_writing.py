"""Folders that appear whole or not at all."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError

from multiexit.files.writing import whole_folder, write, write_all


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, text, replaced=None, error=None):
    with whole_folder(folder, folder.with_name("aside"), replaced) as aside:
        assert names(aside) == []
        (aside / "inner").mkdir()
        (aside / "inner" / "text").write_text(text)
        if error is not None:
            raise error


def text_in(folder):
    return (folder / "inner" / "text").read_text()


def test_a_folder_appears_when_it_is_filled(tmp_path):
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "left").write_text("of a process that was ended")
    fill(tmp_path / "new", "all")
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["inner"]
    assert text_in(tmp_path / "new") == "all"


def test_one_that_mustn_t_be_replaced_stays(tmp_path):
    fill(tmp_path / "new", "first")
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "new", "second")
    assert names(tmp_path) == ["new"]
    assert text_in(tmp_path / "new") == "first"


@pytest.mark.parametrize("error", [None, OSError(28, "No space left"), KeyboardInterrupt()])
def test_another_is_replaced_or_stays(error, tmp_path):
    folder, gone = tmp_path / "new", tmp_path / "gone"
    for text in ("first", "second"):
        fill(folder, text, gone)
        assert text_in(folder) == text
    if error is not None:
        with pytest.raises(type(error)):
            fill(folder, "third", gone, error)
        assert text_in(folder) == "second"
    assert names(tmp_path) == ["new"]


def test_what_was_replaced_comes_back_where_the_second_rename_fails(tmp_path, monkeypatch):
    folder, gone = tmp_path / "new", tmp_path / "gone"
    fill(folder, "first", gone)
    real = type(folder).rename

    def rename(path, to):
        if path.name == "aside":
            raise OSError(5, "Input/output error")
        return real(path, to)

    monkeypatch.setattr(type(folder), "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        fill(folder, "second", gone)
    assert names(tmp_path) == ["new"]
    assert text_in(folder) == "first"


def test_what_could_not_be_written_is_named(tmp_path):
    def full(path):
        raise SafetensorError("No space left on device")

    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(OSError, match=f"^could not write {one}, {two}: No space left on device$"):
        write_all({one: lambda path: path.write_text("1"), two: full})
    assert names(tmp_path) == []


def in_a_process(made, *args):
    process = multiprocessing.get_context("fork").Process(target=made, args=args)
    process.start()
    process.join()
    return process.exitcode


def killed(path: Path, folder: bool):
    if not folder:
        write(path, lambda aside: os.kill(os.getpid(), signal.SIGKILL))
    with whole_folder(path):
        os.kill(os.getpid(), signal.SIGKILL)


def made(path: Path, folder: bool):
    if not folder:
        return write(path, lambda aside: aside.write_text("all"))
    with whole_folder(path) as aside:
        (aside / "text").write_text("all")


@pytest.mark.parametrize("folder", [True, False])
def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_stays(
    folder, tmp_path
):
    one = tmp_path / "on[e]"
    assert in_a_process(killed, one, folder) == -signal.SIGKILL
    (left,) = names(tmp_path)
    os.utime(tmp_path / left, (0, 0))

    def beside(aside):
        assert left not in names(tmp_path)
        os.utime(aside, (0, 0))  # which alone says nothing
        assert in_a_process(made, one, folder) == 0
        assert one.exists()
        assert aside.exists()

    if folder:
        with pytest.raises(OSError, match="not empty"), whole_folder(one) as aside:
            beside(aside)
    else:
        write(one, beside)
    assert names(tmp_path) == [one.name]


def test_bytes_are_on_the_disk_before_a_file_is_renamed(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync

    def fsync(file):
        assert names(tmp_path) != ["one"]
        flushed.append(os.fstat(file).st_ino)
        flush(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "one", lambda path: path.write_text("1"))
    assert flushed == [(tmp_path / "one").stat().st_ino]
