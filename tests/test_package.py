"""The package as others get it: the wheel in an empty environment, what an import costs, and what may import what."""
import ast
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from importlib.util import resolve_name
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "multiformer"
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))}
SHIPPED = [f"multiformer/weights/blm-storybook/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]
DEVELOPMENT = {"nbdev", "fastcore", "execnb"}
HEAVY = {"transformers", "datasets", "matplotlib", "transformer_lens", "peft", "ipywidgets", "anywidget", "pandas"}
APART = {"data_wrangling", "tokenize"}   # they know nothing of models, nor models and cells of what is built upon them
MAY_IMPORT = {"cells": {"cells"}, "models": {"cells", "models", "tokenize"}, "data_wrangling": APART, "tokenize": APART}


def imports(path: Path) -> Iterator[str]:
    "The modules that a module imports when it is imported itself, by their full names."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            yield resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module


def everything_imported(path: Path) -> set[str]:
    "The packages that a module imports anywhere, functions included."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return ({alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module})


def python(program: str, interpreter: str = sys.executable, **kwargs) -> str:
    "Run a program in a fresh interpreter, apart from this folder and the caller's settings, and return what it printed."
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([interpreter, "-I", "-c", program], capture_output=True, text=True, env=env, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What may import what

@pytest.mark.parametrize("path", MODULES, ids=MODULES.get)
def test_no_module_needs_the_development_tools(path):
    assert not everything_imported(path) & DEVELOPMENT


@pytest.mark.parametrize("path", MODULES, ids=MODULES.get)
def test_dependence_runs_one_way(path):
    package = MODULES[path].split(".")[1]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("multiformer.")}
    assert used <= MAY_IMPORT.get(package, used)


# What an import costs

CELLS = [name.removesuffix(".__init__") for name in MODULES.values() if name.startswith("multiformer.cells")]
IMPORT = f"""
import importlib, json, sys, time
import torch
start = time.perf_counter()
for name in {CELLS}: importlib.import_module(name)
print(json.dumps([time.perf_counter() - start, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


@pytest.fixture(scope="module")
def cell_imports() -> list:
    "Seconds and packages of importing all cells after torch, in the fastest of up to five fresh interpreters."
    runs = []
    while len(runs) < 5 and (not runs or min(runs)[0] > .2):
        runs.append(json.loads(python(IMPORT)))
    return min(runs)


def test_importing_all_cells_takes_a_moment(cell_imports):
    assert cell_imports[0] <= .3


def test_cells_import_nothing_heavy(cell_imports):
    assert not set(cell_imports[1]) & (HEAVY | DEVELOPMENT)


# The wheel

@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel, built from a copy of the tree."
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(
        ".*", "nbs", "out", "build", "dist", "tests", "benchmarks", "__pycache__", "*.egg-info", "_docs", "_proc"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "tree"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_package_and_its_weights(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    weights = {str(path.relative_to(ROOT)) for path in (PACKAGE / "weights").glob("*/*")}
    assert names == {str(path.relative_to(ROOT)) for path in MODULES} | weights
    assert names >= set(SHIPPED)


def required(lines: list[str]) -> set[Distribution]:
    "The installed distributions that satisfy these requirements, and those that they require in turn."
    found, seen, waiting = set(), set(), [(line, "") for line in lines]
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if (line, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((line, extra))
        there = distribution(requirement.name)
        assert requirement.specifier.contains(there.version, prereleases=True), f"{requirement}, but {there.version} is installed"
        found.add(there)
        waiting += [(line, extra) for line in there.requires or () for extra in ("", *requirement.extras)]
    return found


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory) -> str:
    "The interpreter of an environment that holds the wheel and what it requires, and nothing else."
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(packages)
    for there in required(next(distributions(path=[str(packages)])).requires):
        for name in {file.parts[0] for file in there.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(there.locate_file(name))
    return str(folder / "bin" / "python")


GENERATE = """
import torch
from multiformer.inference import generate
from multiformer.models import load

model, tokenizer = load("blm-storybook")
tokens = torch.tensor([tokenizer.encode("Once upon a time")])
print(tokenizer.decode(generate(model, tokens, max_new_tokens=20, temperature=0)[0].tolist()))
"""


def test_wheel_alone_loads_its_model_and_generates(bare_python, tmp_path):
    story = python(GENERATE, bare_python, cwd=tmp_path).strip()
    assert story.startswith("Once upon a time") and len(story.split()) > 8


def test_wheel_alone_imports_every_module(bare_python, tmp_path):
    names = [name.removesuffix(".__init__") for name in MODULES.values()]
    python(f"import importlib\nfor name in {names}: importlib.import_module(name)", bare_python, cwd=tmp_path)
