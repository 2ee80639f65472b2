"""Ctrl-C while the libraries load."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("words", [["-m", "multiexit.cli", "recipes"]])
def test_ctrl_c_while_the_libraries_load_is_quiet(words, tmp_path):
    """Sent by the first library that is imported, to its own process."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    ended = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (130, "")
    as_library = [sys.executable, "-c", "import multiexit"]
    ended = subprocess.run(
        as_library,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "KeyboardInterrupt" in ended.stderr
