"""Write README.md from nbs/index.ipynb, with its pictures in README_files/.

    python tools/build_readme.py
"""
import posixpath
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "README_files"
LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|[#/])([^)\"\s]+)")
DIRECTIVE = re.compile(r"^\s*#\|.*\n?", re.MULTILINE)


def relink(match: re.Match) -> str:
    "A link of the notebook, as seen from the folder above it."
    return match[1] + posixpath.normpath("nbs/" + match[2])


def prepare(notebook) -> None:
    "Bring the notebook's cells, in place, into the form of a page that stands beside `nbs`."
    cells = []
    for cell in notebook.cells:
        directives = " ".join(DIRECTIVE.findall(cell.source))
        if cell.cell_type == "raw" or re.search(r"#\|\s*(hide|include:\s*false)", directives):
            continue
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(relink, re.sub(r"^:::.*\n?", "", cell.source, flags=re.MULTILINE))
        else:
            cell.source = DIRECTIVE.sub("", cell.source).strip()
            cell.metadata["transient"] = {"remove_source": bool(re.search(r"#\|\s*echo:\s*false", directives))}
        if cell.source or cell.get("outputs"):
            cells.append(cell)
    notebook.cells = cells
    notebook.metadata["language_info"] = {"name": "python"}   # the language that code blocks are marked with


def render(root: Path = ROOT) -> dict[str, bytes]:
    "The files that the front page consists of: README.md and its pictures, by their paths."
    notebook = nbformat.read(root / "nbs/index.ipynb", as_version=4)
    prepare(notebook)
    config = Config()
    config.NbConvertBase.display_data_priority = ["image/svg+xml", "image/png", "text/markdown", "text/plain"]
    config.ExtractOutputPreprocessor.output_filename_template = PICTURES + "/{cell_index}_{index}{extension}"
    text, resources = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"
    return {"README.md": text.encode(), **{name: bytes(data) for name, data in resources["outputs"].items()}}


def stale(root: Path = ROOT) -> list[str]:
    "The names of the front page's files that differ from what the notebook says, or that it no longer has."
    wanted = render(root)
    present = {str(path.relative_to(root)) for path in (root / PICTURES).glob("*")}
    return sorted([name for name, data in wanted.items() if not (root / name).is_file() or (root / name).read_bytes() != data]
                  + list(present - set(wanted)))


if __name__ == "__main__":
    shutil.rmtree(ROOT / PICTURES, ignore_errors=True)
    for name, data in render().items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
