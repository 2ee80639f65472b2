"""Loading fetches nothing and opens nothing elsewhere."""

import os
import subprocess
import sys
import textwrap

from folders import MAKERS
from helpers import ROOT, command

WATCHED = """
    import os, sys
    import torch, transformers, timm, torchvision
    import multiexit as mx
    from multiexit.cli import typed
    from multiexit.backbones.transformers import transformer
    from multiexit.backbones.vision import timm, torchvision
    folders, opened = sys.argv[1:], []

    def watch(event, args):
        if event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.Request")):
            opened.append(f"{event} {args}")
        if event in ("subprocess.Popen", "os.system", "os.exec"):
            opened.append(event)
        if event == "open" and isinstance(args[0], (str, bytes)):
            opened.append(os.fsdecode(args[0]))

    sys.addaudithook(watch)
    for folder in folders:
        opened.clear()
        mx.MultiExitModel.from_pretrained(folder)
        if os.path.exists(folder + "/tokenizer.json"):
            typed.tokenizer(folder)
        places = (folder, sys.prefix, sys.base_prefix, os.getcwd(), "/proc/", "/sys/", "/dev/null")
        outside = [name for name in opened if not os.path.abspath(name).startswith(places)]
        print(outside)
"""


def test_loading_makes_no_request_and_opens_no_file_elsewhere(made):
    folders = [str(made(kind)) for kind in MAKERS]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n" * len(folders), done.stdout + done.stderr


NOBODY = """
    import os, pwd, sys

    def unknown(uid):
        raise KeyError(uid)

    pwd.getpwuid = unknown
    from pathlib import Path
    from multiexit import cli
    from multiexit.data import cifar, token_cache
    from multiexit.files.paths import CACHE, home

    assert home(CACHE) is None
    token_cache.LEAST = 0
    try:
        cli.main()
    except SystemExit as end:
        print("ended", end.code)
    try:
        cifar.load("cifar10")
    except ValueError as error:
        print(error)
"""


def test_a_user_without_a_home(made):
    """As a container with any user id has it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOME")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NOBODY), "predict", str(made("bert"))],
        env={**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        input="good film\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"text": "good film"' in done.stdout, done.stderr
    assert "give the data's folder (data_dir, --data-dir)" in done.stdout


def test_pipes_and_devices_are_no_lines(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = folder()
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        ended = command("predict", path, name)
        assert ended.code == 2
        assert "no regular file" in ended.err
