"""The countable rules of the house, held against every notebook, and each rule held against a notebook that breaks it."""
import ast
import base64
import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
KERNELSPEC = {"display_name": "python3", "language": "python", "name": "python3"}
LANDING = {"index.ipynb", "tokenize.ipynb"}   # a package's front door, which has no place in the order of a folder
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)", re.MULTILINE)
CHECK = re.compile(r"\bassert\b|\bassert_\w+\(|pytest\.raises|gradcheck")
VOLATILE = {
    "an absolute path": r"(?<![\w.:/<])/(?:home|root|tmp|usr|workspace|work|Users|var|opt|mnt|private)/\w|\b[A-Z]:\\\w",
    "a date": r"\b20\d\d-[01]\d-[0-3]\d\b|\b[0-3]?\d (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* 20\d\d\b",
    "a memory address": r"\b0x[0-9a-f]{8,}\b",
    "a timing": r"\d ?(?:ms|µs|it/s|s/it|tokens/s)\b",
}


@dataclass
class Notebook:
    "A notebook, as the rules see it."
    path: str   # below nbs
    cells: list[dict]
    metadata: dict

    def code(self) -> Iterator[tuple[int, str]]:
        "The code cells: position and source."
        return ((i, text(cell["source"])) for i, cell in enumerate(self.cells) if cell["cell_type"] == "code")

    def exported(self) -> Iterator[tuple[int, str]]:
        "The code cells that go into the package."
        return ((i, source) for i, source in self.code() if "export" in directives(source))

    def outputs(self) -> Iterator[tuple[int, dict]]:
        "All outputs: the cell's position and the output."
        return ((i, output) for i, cell in enumerate(self.cells) for output in cell.get("outputs", []))

    def module(self) -> str | None:
        "What the notebook exports to."
        found = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", "\n".join(source for _, source in self.code()), re.MULTILINE)
        return found and found[1]


def text(source: str | list[str]) -> str:
    "A string that nbformat may have stored as a list of lines."
    return source if isinstance(source, str) else "".join(source)


def directives(source: str) -> set[str]:
    return set(DIRECTIVE.findall(source))


def parse(source: str) -> list[ast.stmt]:
    "The statements of a cell, magics left out."
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)).body


def public_names(source: str) -> list[str]:
    "The names that a cell defines for others."
    names = []
    for node in parse(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [name.id for target in targets for name in ast.walk(target)
                      if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def is_literal(node: ast.expr) -> bool:
    "Whether the expression is plain data: a text, a number, a table of them."
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


# One function a rule. It yields what is wrong: the cell's position, or None for the whole notebook, and a sentence.

def name_and_place(nb):
    parts = Path(nb.path).parts
    if len(parts) > 2:
        yield None, "folders are one level deep"
    if parts[-1] not in LANDING and not re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+\.ipynb", parts[-1]):
        yield None, "a notebook is called NN_topic.ipynb, in lower case"


def one_default_exp(nb):
    cells = [(i, source) for i, source in nb.code() if "default_exp" in directives(source)]
    if len(cells) > 1:
        yield cells[1][0], "a second default_exp"
    for i, source in cells[:1]:
        if i != 0 or len(source.strip().splitlines()) > 1:
            yield i, "default_exp stands alone in the first cell"
    if not cells and any(True for _ in nb.exported()):
        yield None, "exports, but has no default_exp"


def title_and_promise(nb):
    first = 1 if nb.module() else 0
    cell = nb.cells[first] if len(nb.cells) > first else {"cell_type": None, "source": ""}
    if cell["cell_type"] != "markdown" or not re.match(r"# \S.*\n+> \S", text(cell["source"])):
        yield first, "a notebook starts with `# Title` and a quoted sentence that says what the reader can do afterwards"


def imports_alone(nb):
    for i, source in nb.code():
        body = parse(source)
        searched = body if "export" in directives(source) else [node for statement in body for node in ast.walk(statement)]
        imports = [node for node in searched if isinstance(node, (ast.Import, ast.ImportFrom))]
        if imports and not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body):
            yield i, "an import cell holds imports only"


def one_public_name(nb):
    for i, source in nb.exported():
        if len(names := public_names(source)) > 1:
            yield i, f"a definition cell holds one public name, not {len(names)}: {', '.join(names)}"


def short_definitions(nb):
    for i, source in nb.exported():
        lines = [line for line in source.splitlines() if line.strip() and not DIRECTIVE.match(line)]
        body = parse(source)
        if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body):
            continue
        is_data = all(isinstance(node, ast.Assign) and is_literal(node.value) for node in body)
        is_class = any(isinstance(node, ast.ClassDef) for node in body)
        kind, limit = ("a text or a table", 60) if is_data else ("a class", 40) if is_class else ("a function", 25)
        if len(lines) > limit:
            yield i, f"{kind} has at most {limit} lines, not {len(lines)}"


def prose_between(nb):
    run = 0
    for i, cell in enumerate(nb.cells):
        run = run + 1 if cell["cell_type"] == "code" else 0
        if run == 5:
            yield i, "at most four code cells in a row without prose"


def checked(nb):
    defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for _, source in nb.exported() for node in parse(source))
    checks = any(CHECK.search(source) for _, source in nb.code() if "export" not in directives(source))
    if defines and not checks:
        yield None, "exports definitions, but no visible cell checks them"


def small_outputs(nb):
    size = sum(len(json.dumps(output)) for _, output in nb.outputs())
    if size > 300_000:
        yield None, f"outputs have at most 300 KB a notebook, not {size // 1000}"
    for i, output in nb.outputs():
        plain = text(output.get("text") or output.get("data", {}).get("text/plain", ""))
        if len(plain.splitlines()) > 20:
            yield i, f"a text output has at most 20 lines, not {len(plain.splitlines())}"
        if "image/png" in output.get("data", {}):
            picture = base64.b64decode(text(output["data"]["image/png"]))
            width, = struct.unpack(">I", picture[16:20])
            density = re.search(rb"pHYs(.{4})", picture[:1000], re.DOTALL)
            dpi = struct.unpack(">I", density[1])[0] * .0254 if density else 0
            if width > 1200 or dpi > 101:
                yield i, f"a picture has at most 1200 pixels a line and 100 dpi, not {width} and {dpi:.0f}"


def clean_outputs(nb):
    for i, cell in enumerate(nb.cells):
        if cell.get("execution_count") is not None or any(o.get("execution_count") is not None for o in cell.get("outputs", [])):
            yield i, "execution counts are not stored"
    for i, output in nb.outputs():
        if output["output_type"] == "error" or output.get("name") == "stderr":
            yield i, "errors and what goes to stderr are not stored"
        if any("widget-view" in mime for mime in output.get("data", {})):
            yield i, "a widget is stored as its static HTML, not as a view that needs a kernel"
    if "widgets" in nb.metadata:
        yield None, "widget state is not stored"


def lasting_outputs(nb):
    for i, output in nb.outputs():
        said = [output.get("text", "")] + [data for mime, data in output.get("data", {}).items() if mime in ("text/plain", "text/markdown", "text/html")]
        for what, pattern in VOLATILE.items():
            if found := re.search(pattern, "\n".join(map(text, said))):
                yield i, f"{what} in an output changes with the machine or the day: {found[0]!r}"


def same_kernel(nb):
    if nb.metadata.get("kernelspec") != KERNELSPEC:
        yield None, f"the kernelspec is {json.dumps(KERNELSPEC)}, not {json.dumps(nb.metadata.get('kernelspec'))}"


RULES = [name_and_place, one_default_exp, title_and_promise, imports_alone, one_public_name, short_definitions, prose_between, checked,
         small_outputs, clean_outputs, lasting_outputs, same_kernel]


# Rules for all notebooks together: they yield sentences.

def unique_modules(notebooks):
    owners = defaultdict(list)
    for nb in notebooks:
        owners[nb.module()].append(nb.path)
    for module, paths in owners.items():
        if module and len(paths) > 1:
            yield f"default_exp {module} stands in {', '.join(paths)}: the last one would silently win"


def unique_numbers(notebooks):
    owners = defaultdict(list)
    for nb in notebooks:
        path = Path(nb.path)
        if path.name not in LANDING:
            number, _, topic = path.stem.partition("_")
            owners[path.parent, number].append(nb.path)
            owners[path.parent, topic].append(nb.path)
    for paths in owners.values():
        if len(paths) > 1:
            yield f"one number and one topic for {', '.join(paths)}"


# The notebooks of the project

def read(path: Path) -> Notebook:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Notebook(path.relative_to(NBS).as_posix(), content["cells"], content["metadata"])


PATHS = sorted(path for path in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in path.relative_to(NBS).parts))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(NBS).as_posix())
def test_notebook(path):
    nb = read(path)
    problems = [f"nbs/{nb.path}" + (f", cell {i}" if i is not None else "") + f": {problem} ({rule.__name__})"
                for rule in RULES for i, problem in rule(nb)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("rule", [unique_modules, unique_numbers], ids=lambda rule: rule.__name__)
def test_notebooks_together(rule):
    if problems := list(rule([read(path) for path in PATHS])):
        pytest.fail("\n".join(problems), pytrace=False)


# The rules themselves: a good notebook passes all of them, and each way to be bad breaks the one rule that is meant.

def code(source: str, *outputs: dict, **extra) -> dict:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": None, "metadata": {}, **extra}


def prose(source: str = "Some prose.") -> dict:
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def shown(said: str = "", mime: str = "text/plain", **extra) -> dict:
    return {"output_type": "display_data", "data": {mime: said}, "metadata": {}, **extra}


def png(width: int = 600, dpi: int = 100) -> dict:
    "An output with the head of a picture."
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, 400) + b"\x08\x06\0\0\0\0\0\0\0"
    density = struct.pack(">I4sIIB", 9, b"pHYs", round(dpi / .0254), round(dpi / .0254), 1)
    return shown(base64.b64encode(head + density).decode(), "image/png")


def notebook(*cells: dict, path: str = "anatomy/00_double.ipynb", **metadata) -> Notebook:
    return Notebook(path, list(cells), {"kernelspec": KERNELSPEC, **metadata})


HEAD = code("#| default_exp cells.double")
TITLE = prose("# Doubling\n\n> Double any number.")
DOUBLE = code('#| export\ndef double(x): return 2 * x')
ASSERT = code("assert double(2) == 4")
GOOD = (HEAD, TITLE, code("#| export\nimport math"), DOUBLE, ASSERT, prose(), code("double(3)", shown("6"), png()))
LONG_FUNCTION = "#| export\ndef double(x):\n" + "    x = x\n" * 25
LONG_CLASS = "#| export\nclass Double:\n" + "    x = 1\n" * 40
LONG_TEXT = '#| export\nSTYLE = """\n' + "p {}\n" * 60 + '"""'

BAD = {
    "name without a number": (name_and_place, notebook(*GOOD, path="anatomy/double.ipynb")),
    "name in capitals": (name_and_place, notebook(*GOOD, path="anatomy/00_Double.ipynb")),
    "folder in a folder": (name_and_place, notebook(*GOOD, path="anatomy/more/00_double.ipynb")),
    "two default_exp": (one_default_exp, notebook(*GOOD, code("#| default_exp cells.other"))),
    "default_exp not first": (one_default_exp, notebook(code("# a remark"), TITLE, HEAD, *GOOD[2:])),
    "default_exp not alone": (one_default_exp, notebook(code("#| default_exp cells.double\nx = 1"), *GOOD[1:])),
    "export without default_exp": (one_default_exp, notebook(*GOOD[1:])),
    "no title": (title_and_promise, notebook(HEAD, prose("> Double any number."), *GOOD[2:])),
    "no promise": (title_and_promise, notebook(HEAD, prose("# Doubling\n\nSome prose."), *GOOD[2:])),
    "empty": (title_and_promise, notebook()),
    "import with code": (imports_alone, notebook(*GOOD[:-1], code("import math\nmath.pi"))),
    "import inside a demonstration": (imports_alone, notebook(*GOOD[:-1], code("def f():\n    import math"))),
    "exported import with code": (imports_alone, notebook(*GOOD[:2], code("#| export\nimport math\ndouble = math.pi"), ASSERT)),
    "two functions": (one_public_name, notebook(*GOOD[:3], code("#| export\ndef double(x): return 2 * x\ndef triple(x): return 3 * x"), ASSERT)),
    "two constants": (one_public_name, notebook(*GOOD[:3], code("#| export\nA, B = 1, 2"), DOUBLE, ASSERT)),
    "long function": (short_definitions, notebook(*GOOD[:3], code(LONG_FUNCTION), ASSERT)),
    "long class": (short_definitions, notebook(*GOOD[:3], code(LONG_CLASS), ASSERT)),
    "long text": (short_definitions, notebook(*GOOD[:3], code(LONG_TEXT), ASSERT)),
    "five code cells": (prose_between, notebook(*GOOD[:5], ASSERT, ASSERT)),
    "no check": (checked, notebook(*GOOD[:4], code("double(2)"))),
    "check only in the export": (checked, notebook(*GOOD[:3], code("#| export\ndef double(x):\n    assert x\n    return 2 * x"))),
    "much output": (small_outputs, notebook(*GOOD, code("x", shown("x" * 300_001)))),
    "many lines": (small_outputs, notebook(*GOOD, code("x", shown("x\n" * 21)))),
    "wide picture": (small_outputs, notebook(*GOOD, code("x", png(width=1300)))),
    "dense picture": (small_outputs, notebook(*GOOD, code("x", png(dpi=200)))),
    "execution count": (clean_outputs, notebook(*GOOD, code("x", execution_count=3))),
    "execution count of an output": (clean_outputs, notebook(*GOOD, code("x", shown("1", execution_count=3)))),
    "stderr": (clean_outputs, notebook(*GOOD, code("x", {"output_type": "stream", "name": "stderr", "text": "careful"}))),
    "error": (clean_outputs, notebook(*GOOD, code("x", {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}))),
    "widget view": (clean_outputs, notebook(*GOOD, code("x", shown("{}", "application/vnd.jupyter.widget-view+json")))),
    "widget state": (clean_outputs, notebook(*GOOD, widgets={})),
    "path": (lasting_outputs, notebook(*GOOD, code("x", shown("'/home/ada/model'")))),
    "path in a stream": (lasting_outputs, notebook(*GOOD, code("x", {"output_type": "stream", "name": "stdout", "text": ["read ", "/usr/x"]}))),
    "date": (lasting_outputs, notebook(*GOOD, code("x", shown("2031-05-06")))),
    "address": (lasting_outputs, notebook(*GOOD, code("x", shown("<function f at 0x7f00aa00bb00>")))),
    "timing": (lasting_outputs, notebook(*GOOD, code("x", shown("12.5 ms")))),
    "kernel": (same_kernel, Notebook("anatomy/00_double.ipynb", list(GOOD), {"kernelspec": {**KERNELSPEC, "name": "conda"}})),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_accepts_a_good_notebook(rule):
    teaching = notebook(TITLE, code("import math"), code("math.pi", shown("3.14 in /etc, a/usr/b")), path="walkthrough/01_pi.ipynb")
    landing = notebook(code("#| default_exp cells.__init__"), TITLE, code("#| export\nimport math"),
                       code("#| export\n__getattr__, __all__ = math, []"), path="anatomy/index.ipynb")
    assert [problem for nb in (notebook(*GOOD), teaching, landing) for problem in rule(nb)] == []


@pytest.mark.parametrize("rule, nb", BAD.values(), ids=BAD)
def test_rule_refuses_a_bad_notebook(rule, nb):
    assert [other for other in RULES if list(other(nb))] == [rule]


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _ in BAD.values()} == set(RULES)


def test_rules_for_all_notebooks_refuse():
    same_module = [notebook(*GOOD), notebook(*GOOD, path="anatomy/01_triple.ipynb")]
    same_number = [notebook(*GOOD), notebook(*GOOD, path="anatomy/00_triple.ipynb")]
    same_topic = [notebook(*GOOD), notebook(*GOOD, path="anatomy/01_double.ipynb")]
    elsewhere = [notebook(*GOOD), notebook(*GOOD, path="models/00_double.ipynb")]
    assert list(unique_modules(same_module))
    assert list(unique_numbers(same_number)) and list(unique_numbers(same_topic)) and not list(unique_numbers(elsewhere))
