"""Run the notebooks' cells in a kernel, and look at what they leave."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LEFT = """
assert mx.exit_scores(outputs)[-1]["accuracy"] > 0.8
assert model.policy.certificate.rows >= 70
assert advice.row.speedup_layers > 1.5
"""

for path in sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LEFT))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # the kernel's
        client = NotebookClient(notebook, resources={"metadata": {"path": folder}})
        outputs = [out for cell in client.execute().cells for out in cell.get("outputs", [])]
    assert any("max-prob" in out.get("text", "") for out in outputs), path.name
    print(path.name, "runs")
