"""The page of runs: it holds what the files hold, and nothing from them is markup or script."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch

import multiexit as mx
from multiexit.evaluation.examples import examples_json
from multiexit.evaluation.page.markup import element
from multiexit.evaluation.page.page import html_page
from multiexit.evaluation.results import results_json
from multiexit.files.json_files import write_json

EVIL = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">&amp;'\""
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


class Parsed(HTMLParser):
    """Elements, their attributes and their text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def made(folder, title="a run", text="a text", label="a label", command="multiexit train"):
    """A run's folder with all that a page reads."""
    torch.manual_seed(0)
    exits, rows = 5, 60
    labels_B = torch.randint(2, (rows,))
    logits_MBC = torch.randn(exits, rows, 2)
    logits_MBC[torch.arange(exits)[:, None], torch.arange(rows)[None], labels_B] += 1
    layers = tuple(range(1, exits + 1))
    outputs = mx.Outputs(logits_MBC, labels_B, mx.Cost(layers, layers, layers, full_macs=exits))
    kinds = [mx.MaxProb(t) for t in (0.6, 0.8, 0.9)] + [mx.Patience(n) for n in (1, 2, 3)]
    judged = mx.sweep(outputs, [*kinds, mx.FixedExit(4)])
    W_MM = [[1.0 + 0.1 * (i - j) if j >= i else None for j in range(exits)] for i in range(exits)]
    history = mx.History(
        steps=[{"step": s, "phase": 0, "loss": 9.0 - s, "W_MM": W_MM} for s in range(1, 6)],
        epochs=[{"step": 5, "phase": 0, "epoch": 0, "mean": 0.6, "seconds": 1.0}],
    )
    folder.mkdir(parents=True)
    about = {"title": title, "recipe": title, "command": command, "note": text}
    data = results_json(outputs, judged, history, **about)
    write_json(folder / "results.json", data)
    names = [label, "other"]
    found = examples_json(outputs, mx.MaxProb(0.8), lambda row: {"text": [text]}, names)
    write_json(folder / "examples.json", found)
    history.save(folder / "history.json")
    return data, found


def test_the_page_holds_what_the_files_hold(tmp_path):
    data, found = made(tmp_path / "run")
    page = html_page([tmp_path / "run"])
    parsed = Parsed(page)
    text = " ".join(parsed.texts)
    for row in data["exits"]:
        assert f"{100 * row['scores']['score']:.2f}" in text
    for row in data["policies"]:
        assert f"{row['mean_layers']:.2f}" in text
    for part in ("Learned weights", "Can confidence be trusted?", "Easiest", "Loss"):
        assert part in text
    cards = [t for t, a in parsed.tags if a.get("class") == "example"]
    assert len(cards) == sum(len(rows) for rows in found["groups"].values())
    assert len(page.encode()) < 300_000
    metas = [a for t, a in parsed.tags if t == "meta"]
    assert any(a.get("name") == "viewport" for a in metas)
    assert "prefers-color-scheme: dark" in page
    assert all("src" not in a or a["src"].startswith("data:") for _, a in parsed.tags)
    assert not [a for t, a in parsed.tags if t == "link" or "href" in a]


def test_nothing_from_the_files_is_markup(tmp_path):
    made(tmp_path / "run", EVIL, EVIL, EVIL, EVIL)
    page = html_page([tmp_path / "run"])
    parsed = Parsed(page)
    assert [t for t, _ in parsed.tags if t == "script"] == ["script"]
    assert "img" not in [t for t, _ in parsed.tags]
    assert html.escape(EVIL, quote=False) in page
    assert not [name for _, a in parsed.tags for name in a if name.startswith("on")]


def test_pictures_are_pngs_or_nothing(tmp_path):
    _, found = made(tmp_path / "run")
    for url, shown in (
        ("data:image/png;base64,iVBORw0KGgo=", True),
        ("data:text/html;base64,AAAA", False),
        ("https://example.org/a.png", False),
        ('data:image/png;base64,AA" onload="x', False),
    ):
        found["groups"]["easy"][0]["image"] = url
        write_json(tmp_path / "run" / "examples.json", found)
        tags = [t for t, _ in Parsed(html_page([tmp_path / "run"])).tags]
        assert ("img" in tags) == shown


def test_the_model_s_policy_is_shown_where_it_was_not_judged(tmp_path):
    made(tmp_path / "run")
    backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
    model, folder = mx.MultiExitModel(backbone, 2), tmp_path / "run" / "model"
    for policy, said in (
        (mx.MaxProb(0.77), "now stops by max-prob=0.77, which isn't judged here"),
        (mx.MaxProb(0.8), "now stops by max-prob=0.8."),
    ):
        model.policy = policy
        model.save_pretrained(folder)
        assert said in " ".join(Parsed(html_page([tmp_path / "run"])).texts)
    labels_B = torch.arange(60) % 2
    sure_MBC = torch.eye(2)[labels_B].expand(2, -1, -1)
    outputs = mx.Outputs(sure_MBC, labels_B, mx.Cost((1, 2), (1, 2), (1, 2), full_macs=2))
    model.policy = mx.calibrate(outputs, mx.MaxProb, risk=0.1)
    model.save_pretrained(folder)
    text = " ".join(Parsed(html_page([tmp_path / "run"])).texts)
    assert "a mean loss of at most 0.1 (disagreement)" in text


def test_runs_stand_side_by_side(tmp_path):
    for seed in range(9):
        made(tmp_path / "both" / f"seed-{seed}", title=f"run {seed % 5}")
    parsed = Parsed(html_page([tmp_path / "both"]))
    assert "9 runs side by side" in parsed.texts
    assert len([t for t, _ in parsed.tags if t == "details"]) == 9


def test_a_run_without_examples_says_so(tmp_path):
    made(tmp_path / "run")
    (tmp_path / "run" / "examples.json").unlink()
    (tmp_path / "run" / "history.json").unlink()
    assert "has no examples.json" in html_page([tmp_path / "run"])


def test_damaged_files_are_named(tmp_path):
    data, found = made(tmp_path / "run")
    place = tmp_path / "run" / "results.json"
    for key in ("exits", "policies", "about"):
        for value in ("x", [], [{}], 3, None):
            place.write_text(json.dumps({**data, key: value}))
            with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
                html_page([tmp_path / "run"])
    place.write_text(json.dumps(data))
    for key, value in (("groups", {"easy": [{}]}), ("calibration", [{}]), ("policy", {})):
        write_json(tmp_path / "run" / "examples.json", {**found, key: value})
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            html_page([tmp_path / "run"])
    with pytest.raises(ValueError, match=r"no results\.json"):
        html_page([tmp_path / "nowhere"])


def test_markup_is_escaped_once():
    assert element("p", "<&>", [1, None, element("b", "<")], title='"<') == (
        '<p title="&quot;&lt;">&lt;&amp;&gt;1<b>&lt;</b></p>'
    )


def test_the_page_s_files_are_in_the_package():
    for name in ("page.css", "sort.js"):
        assert files("multiexit.evaluation.page").joinpath(name).is_file()


def browsed(page, folder, size="1000,1000"):
    """The page after a browser ran it."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"]
    words += [f"--user-data-dir={folder / 'browser'}", "--dump-dom", path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


def unguarded(page):
    """The page without its policy of content, so that a test may add a script."""
    return re.sub(r"<meta http-equiv=[^>]*>", "", page)


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_sorts_and_runs_no_script_of_others(tmp_path):
    data, _ = made(tmp_path / "run", EVIL, EVIL, EVIL, EVIL)
    page = html_page([tmp_path / "run"])
    smuggled = page.replace("</main>", "</main><script>document.title='ran'</script>")
    assert "<title>ran</title>" in browsed(unguarded(smuggled), tmp_path)
    assert "<title>ran</title>" not in browsed(smuggled, tmp_path)
    click = (
        "<script>const b = [...document.querySelectorAll('th button')]"
        ".find(b => b.textContent.startsWith('accuracy')); b.click(); b.click();"
        "document.title = [...b.closest('table').tBodies[0].rows].map(r => r.cells[0].textContent)"
        ".join(' ')</script>"
    )
    seen = browsed(unguarded(page).replace("</body>", f"{click}</body>"), tmp_path)
    order = sorted(range(5), key=lambda m: -data["exits"][m]["scores"]["score"])
    assert f"<title>{' '.join(map(str, order))}</title>" in seen


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_phone_needs_no_scrolling_aside(tmp_path):
    made(tmp_path / "one", title="a run with a rather long name, " * 3)
    made(tmp_path / "two", text="a" * 300)
    page = unguarded(html_page([tmp_path / "one", tmp_path / "two"])).replace(
        "<details>", "<details open>"
    )
    frame = element("iframe", srcdoc=page, width=360, height=800)
    measure = (
        "<script>onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "document.title = d.documentElement.scrollWidth }</script>"
    )
    seen = browsed(f"<!doctype html><title></title>{frame}{measure}", tmp_path)
    assert int(re.search(r"<title>(\d+)</title>", seen)[1]) <= 360


def test_runs_that_are_unlike_are_said_to_be(tmp_path):
    for name in ("one", "two", "three"):
        made(tmp_path / name, title=name)
    assert "Not all of these runs" not in html_page([tmp_path / "one", tmp_path / "two"])
    path = tmp_path / "three" / "results.json"
    for change, said in (
        (lambda data: data.update(labels="other"), "on the same rows."),
        (lambda data: data.update(metric="f1"), "by the same metric and on the same rows."),
        (lambda data: data["exits"].pop(0), "metric and on the same rows and at exits behind"),
    ):
        data = json.loads(path.read_text())
        change(data)
        write_json(path, data)
        assert said in html_page([tmp_path / "one", tmp_path / "three"])
    data = json.loads(path.read_text())
    del data["labels"]  # of an older version
    write_json(path, data)
    assert "by the same metric and at exits" in html_page([tmp_path / "one", tmp_path / "three"])
