"""Run notebooks and store their outputs the way the repository keeps them.

    python tools/store_outputs.py nbs/anatomy/00_hooks.ipynb …

A notebook runs in its own folder. What is stored: no execution counts, no progress bars (stderr), no
cell metadata, and for a widget its static HTML, which works without a kernel.
"""
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def keep(output) -> bool:
    "Whether an output is worth storing: everything but stderr and widgets that have no static form."
    if output.output_type == "stream":
        return output.name != "stderr"
    return "data" not in output or bool(output.data)


def tidy(cell) -> None:
    "Bring one executed cell into the stored form, in place."
    cell.metadata.clear()
    if cell.cell_type != "code":
        return
    cell.execution_count = None
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = None
        if "data" in output:
            output.metadata = {}
            if output.data.pop(WIDGET_VIEW, None) and "text/html" not in output.data:
                output.data.clear()
            if "text/html" in output.data and "<iframe" in output.data["text/html"]:
                output.data.pop("text/plain", None)
    cell.outputs = [o for o in cell.outputs if keep(o)]


def skipped(cell) -> bool:
    "Whether the cell is marked as slow, net or gpu: not run here either, its stored output is kept."
    first_lines = [line for line in cell.source.splitlines() if line.startswith("#|")]
    return any(mark in line.split() for line in first_lines for mark in ("slow", "net", "gpu"))


def store_outputs(path: Path) -> None:
    "Run the notebook at `path` and write it back with clean outputs."
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}}, store_widget_state=False)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code" and not skipped(cell):
                client.execute_cell(cell, index, store_history=True)
            tidy(cell)
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}})
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in sys.argv[1:]:
        store_outputs(Path(name))
        print(f"stored {name}")
