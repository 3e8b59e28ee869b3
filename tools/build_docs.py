"""Build the website into `_docs/` from the notebooks and `_quarto.yml`.

    python tools/build_docs.py [--out _docs] [--root .] [--renderer smalldocs]

nbdev turns the notebooks into pages (`_proc`); `quarto` renders them where it is installed, smalldocs
otherwise. Everything happens in a temporary copy, so the source tree stays as it is. The finished site
loads nothing from another host and has only relative links; what breaks that is printed, and the
exit status is 1.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from html.parser import HTMLParser
from importlib.metadata import EntryPoint
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

# ---------------------------------------------------------------- sidebar


def sidebar_entries(contents: list) -> list[str]:
    "Every page that a sidebar's `contents` lists, in order."
    pages = []
    for entry in contents:
        if isinstance(entry, str):
            pages.append(entry)
        else:
            pages += [entry["href"]] if "href" in entry else []
            pages += sidebar_entries(entry.get("contents", []))
    return pages


def notebooks(root: Path) -> list[str]:
    "Every notebook under `nbs/`, relative to it."
    found = (path.relative_to(root / "nbs") for path in (root / "nbs").rglob("*.ipynb"))
    return sorted(path.as_posix() for path in found if not any(part[0] in "._" for part in path.parts))


def sidebar_problems(root: Path) -> list[str]:
    "Notebooks that the sidebar misses, and sidebar entries without a notebook."
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    listed, there = sidebar_entries(config["website"]["sidebar"]["contents"]), notebooks(root)
    return ([f"_quarto.yml: the sidebar misses {page}" for page in there if page not in listed]
            + [f"_quarto.yml: the sidebar lists {page}, which does not exist" for page in listed if page not in there]
            + [f"_quarto.yml: the sidebar lists {page} twice" for page in sorted(set(listed)) if listed.count(page) > 1])


# ---------------------------------------------------------------- notebooks to pages


def show_definitions(notebook: dict) -> None:
    "Show the source of exported cells on the page (nbdev hides `export`), except in an `__init__` notebook."
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if any(re.match(r"#\|\s*default_exp\s+\S*__init__\b", cell["source"]) for cell in code):
        return
    for cell in code:
        cell["source"] = re.sub(r"^#\|\s*export\s*$", "#| exports", cell["source"], count=1, flags=re.M)


def split_title(notebook: dict) -> None:
    "Leave only title and one-line quote in the title cell: nbdev drops everything else that stands in it."
    for position, cell in enumerate(notebook["cells"]):
        match = re.match(r"\s*(# .+)\n?(\s*(?:^>.*\n?)+)?", cell["source"], flags=re.M)
        if cell["cell_type"] == "markdown" and match:
            rest = cell["source"][match.end():].strip()
            quote = " ".join(line.lstrip("> ").strip() for line in (match[2] or "").strip().splitlines())
            cell["source"] = match[1] + (f"\n\n> {quote}" if quote else "")
            if rest:
                notebook["cells"].insert(position + 1, {"cell_type": "markdown", "metadata": {}, "source": rest})
            return


def stage(root: Path, stage_dir: Path) -> None:
    "Copy what nbdev needs to `stage_dir`, the notebooks prepared for the website."
    shutil.copy(root / "settings.ini", stage_dir)
    skip = shutil.ignore_patterns("_*", ".*", "__pycache__", "nbdev.yml", "sidebar.yml")
    shutil.copytree(root / "nbs", stage_dir / "nbs", ignore=skip)
    shutil.copy(root / "_quarto.yml", stage_dir / "nbs")
    for path in (stage_dir / "nbs").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        show_definitions(notebook)
        split_title(notebook)
        path.write_text(json.dumps(notebook), encoding="utf-8")


def process(root: Path, stage_dir: Path) -> Path:
    "Let nbdev make the pages of the staged notebooks; returns their folder."
    sys.path.insert(0, str(root))
    os.chdir(stage_dir)
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    name = nbdev.config.get_config().lib_path.name
    index = EntryPoint(name=name, value=f"{name}._modidx:d", group="nbdev")
    nbdev.doclinks.entry_points = lambda group: [index]  # this tree's names, whatever is installed
    refresh_quarto_yml()
    try:
        pages = proc_nbs(str(stage_dir / "nbs"), n_workers=0, force=True)
    finally:
        os.chdir(root)
    for path in pages.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["metadata"].pop("widgets", None)  # our widgets are static HTML; the state would load a CDN's manager
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                polish(cell)
        path.write_text(json.dumps(notebook), encoding="utf-8")
    return pages


def polish(cell: dict) -> None:
    "Fold imports, label sources, and write `class` where nbdev writes `def` for a class."
    options = re.compile(r"(?:#\|[^\n]*\n)*")
    source = "".join(cell["source"])
    code = source[options.match(source).end():]
    if re.fullmatch(r"(?:(?:import|from)\s[^\n(]*(?:\([^)]*\)[^\n]*)?\n*|\s*\n)+", code.strip() + "\n"):
        source = f'#| code-fold: true\n#| code-summary: "Imports"\n{code.strip()}'
    cell["source"] = source.replace('"Exported source"', '"Source"')
    for output in cell["outputs"]:
        if "text/markdown" in output.get("data", {}):
            text = "".join(output["data"]["text/markdown"])
            output["data"]["text/markdown"] = re.sub(r"(```python\s+)def (?=[A-Z])", r"\1class ", text)


# ---------------------------------------------------------------- pages to a site


def to_mathml(tex: str, options: dict) -> str:
    "Render TeX as MathML, which browsers draw without a script."
    from latex2mathml.converter import convert

    known = tex.replace("{aligned}", "{split}")  # the same table under the name that latex2mathml knows
    mathml = convert(known, display="block" if options.get("display_mode") else "inline")
    mathml = re.sub(r"\\([_%#$])", r"\1", mathml)  # characters that TeX wants escaped, inside \text{}
    mathml = re.sub(r"<mi>(ln|log|exp|sin|cos|tan|max|min)</mi>", r'<mo lspace="0" rspace="0.167em">\1</mo>', mathml)
    unknown = re.findall(r"\\[a-zA-Z]*|<mi>&</mi>", mathml)
    if unknown:
        raise ValueError(f"latex2mathml doesn't know {', '.join(unknown)} in the formula {tex!r}")
    return mathml


def render_with_smalldocs(pages: Path) -> Path:
    "Render nbdev's pages without Quarto; returns the site's folder."
    from smalldocs import config, highlight, markdown, site

    class Site(site.Site):
        "smalldocs's site with nbdev's file names, and maths that is already drawn."

        def read(self, src):
            page = super().read(src)
            page.out = page.out.with_name(page.meta.get("output-file") or page.out.name)
            return page

        def render_page(self, page):
            super().render_page(page)
            page.env.pop("math", None)
            if page.env.get("mermaid"):
                self.warn(f"{page.src}: Mermaid needs a script of another host; draw the diagram in code")

    markdown.math_renderer = to_mathml
    highlight.css_class = cache(highlight.css_class)   # half a million tokens, few of them different
    built = Site(config.load(pages), quiet=True)
    built.build()
    handled_here = ("html-math-method is ignored", "output-file is not read", ": broken link")
    for warning in built.warnings:
        if not any(text in warning for text in handled_here):
            print("smalldocs:", warning)
    search_without_fetch(built.out)
    return built.out


def search_without_fetch(site_dir: Path) -> None:
    "Load the search index as a script, since pages opened as files may not fetch."
    script = site_dir / "site_libs/smalldocs.js"
    fetching = re.compile(r'const r = await fetch\(offset \+ "search\.json"\);\s*index = await r\.json\(\);')
    loading = ('await new Promise((done, failed) => { const s = document.createElement("script"); '
               's.src = offset + "search.js"; s.onload = done; s.onerror = failed; document.head.append(s); });\n'
               "      index = window.searchIndex;")
    source, replaced = fetching.subn(lambda _: loading, script.read_text(encoding="utf-8"))
    if replaced != 1:
        raise RuntimeError("smalldocs.js loads its search index in an unknown way")
    script.write_text(source, encoding="utf-8")
    index = site_dir / "search.json"
    (site_dir / "search.js").write_text(f"window.searchIndex = {index.read_text(encoding='utf-8')};", encoding="utf-8")
    index.unlink()


def render_with_quarto(pages: Path) -> Path:
    "Render nbdev's pages as `nbdev_docs` does; returns the site's folder."
    subprocess.run(["quarto", "render", "--no-cache"], cwd=pages, check=True)
    config = yaml.safe_load((pages / "nbdev.yml").read_text(encoding="utf-8"))
    return pages / config["project"]["output-dir"]


def relative_links(site_dir: Path, site_url: str) -> None:
    "Make the links that nbdev wrote to the published address relative, and name folders' pages, so that the site works anywhere."
    absolute = re.compile(rf'(<a\b[^>]*?href=["\']){re.escape(site_url.rstrip("/"))}/')
    folder = re.compile(r'(<a\b[^>]*?href="(?:[\w.%-]+/)+)(?=["#])')
    for path in site_dir.rglob("*.html"):
        up = "../" * (len(path.relative_to(site_dir).parts) - 1) or "./"
        text = absolute.sub(rf"\g<1>{up}", path.read_text(encoding="utf-8"))
        path.write_text(folder.sub(r"\g<1>index.html", text), encoding="utf-8")


# ---------------------------------------------------------------- checking the site

CSS_LOADS = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s;]+)""")
REMOTE = re.compile(r"^(?:https?:)?//", re.I)


class PageLinks(HTMLParser):
    "What one page loads and links to, the documents inside its iframes included."

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.ids, self.styled = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.styled = tag == "style"
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
        self.loads += [attrs[name] for name in ("src", "poster", "data") if name in attrs and tag != "a"]
        self.loads += [part.split()[0] for part in attrs.get("srcset", "").split(",") if part.strip()]
        self.loads += CSS_LOADS.findall(attrs.get("style", ""))
        if "href" in attrs:
            loaded = tag == "link" and attrs.get("rel") not in ("canonical", "license", "alternate")
            (self.loads if loaded or tag in ("use", "image") else self.links).append(attrs["href"])
        if "srcdoc" in attrs:
            inside = PageLinks(attrs["srcdoc"])
            self.loads += inside.loads
            self.links += [link for link in inside.links if REMOTE.match(link)]

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.loads += CSS_LOADS.findall(data) if self.styled else []

    def handle_endtag(self, tag):
        self.styled = False


def site_problems(site_dir: Path) -> list[str]:
    "What a finished site must not have: anything loaded from another host, absolute or dead local links."
    pages = {path.resolve(): PageLinks(path.read_text(encoding="utf-8")) for path in site_dir.rglob("*.html")}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site_dir.resolve())
        problems += [f"{name} loads {url}" for url in page.loads if REMOTE.match(url)]
        for link in page.loads + page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not link:
                continue
            if parts.path.startswith("/"):
                problems.append(f"{name} has the absolute link {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                problems.append(f"{name} links to {link}: no such place on that page")
    for path in site_dir.rglob("*.css"):
        problems += [f"{path.relative_to(site_dir)} loads {url}" for url in CSS_LOADS.findall(path.read_text(encoding="utf-8"))]
    return sorted(set(problems))


# ---------------------------------------------------------------- the command


def replace_folder(built: Path, out: Path) -> None:
    "Put the site at `out`; refuses to overwrite a folder that is not a site."
    if out.exists() and any(out.iterdir()) and not (out / "site_libs").is_dir():
        raise FileExistsError(f"{out} is not a built site; remove it yourself or choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(built, out)


def build(root: Path, out: Path, renderer: str) -> list[str]:
    "Build the site of the project at `root` into `out`; returns the problems found."
    problems = sidebar_problems(root)
    with tempfile.TemporaryDirectory() as folder:
        stage_dir = Path(folder).resolve()
        stage(root, stage_dir)
        pages = process(root, stage_dir)
        built = render_with_quarto(pages) if renderer == "quarto" else render_with_smalldocs(pages)
        site_url = yaml.safe_load((pages / "nbdev.yml").read_text(encoding="utf-8"))["website"]["site-url"]
        relative_links(built, site_url)
        problems += site_problems(built)
        replace_folder(built, out)
    return problems


def main() -> int:
    "Read the command line, build, and report."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the project")
    parser.add_argument("--out", type=Path, help="folder of the site (default: _docs in the project)")
    parser.add_argument("--renderer", choices=("quarto", "smalldocs"), help="default: quarto where it is installed",
                        default="quarto" if shutil.which("quarto") else "smalldocs")
    args = parser.parse_args()
    root = args.root.resolve()
    out = (args.out or root / "_docs").resolve()
    problems = build(root, out, args.renderer)
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{len(list(out.rglob('*.html')))} pages in {out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
