"""`multiexit report`: a page of what `train` left, where it says, and shown where asked."""

import json

from helpers import command

from multiexit.evaluation import examples


def test_a_run_has_a_page(digits, tmp_path, monkeypatch):
    run, _ = digits
    found = json.loads((run / "examples.json").read_text())
    examples.TABLE("examples", found)
    assert found["groups"]["hard"][0]["image"].startswith("data:image/png;base64,")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    page = tmp_path / "page.html"
    ended = command("report", run, "--output", page, "--open")
    assert ended.code == 0, ended.err
    assert opened == [page.as_uri()]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("data:image/png;base64,") == sum(map(len, found["groups"].values()))
    assert len(text) < 2_000_000


def test_several_runs_have_one_page_here(digits, mrpc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = command("report", digits[0], mrpc[0] / "run")
    assert ended.code == 0, ended.err
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in text
    found = json.loads((mrpc[0] / "run" / "examples.json").read_text())
    pair = found["groups"]["hard"][0]["text"]
    assert len(pair) == 2
    assert all(f"<p>{part}</p>" in text for part in pair)
