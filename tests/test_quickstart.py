"""examples/quickstart.ipynb: what is stored names no machine and is small, and every cell runs."""

import json
import os
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mammoclip_jax import run

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "quickstart.ipynb"
DEMO = ROOT / "runs" / "demo"  # where `bash launch/demo.sh` leaves it


def test_what_is_stored_is_small_and_names_no_machine():
    text = FILE.read_text()
    assert len(text) < 300_000
    written = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(home|root|tmp|work|usr)\b|localhost|\d{4}-\d\d-\d\d|File \\\"", written)
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)) and not any(
        cell.metadata for cell in notebook.cells
    )
    assert all(
        output.output_type in ("stream", "display_data", "execute_result") for c in cells for output in c.outputs
    )
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    """On the demo where it has run here, else on a tiny run of two steps."""
    workdir = DEMO
    if not (DEMO / "checkpoints").is_dir():
        workdir = tmp_path / "run"
        config = runpy.run_path(str(ROOT / "tests" / "configs" / "tiny.py"))["get_config"]("training")
        config.train.update(steps=2, warmup_steps=1, checkpoint_every=2, batch_size=8)
        config.compilation_cache = ""
        run.pretrain(config, str(workdir))
    monkeypatch.setenv("MAMMOCLIP_RUN", str(workdir))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    notebook = nbformat.read(FILE, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=place
    ).execute()  # an error in a cell is raised
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "zero-shot AUROC of a mass" in said and "20 pictures" in said and "exam: {'mass'" in said
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in json.dumps(output)
    ]
    assert len(pictures) == 1
