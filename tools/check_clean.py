"""Refuse notebooks that nbdev_clean would change. Runs before each commit, on what is staged.

    python tools/check_clean.py
"""
import subprocess
import sys
import tempfile
from pathlib import Path

CLEAN = Path(sys.prefix) / "bin/nbdev_clean"


def unclean(root: Path) -> list[str]:
    "Clean the notebooks under `root`, a copy, and return the names of those that changed."
    before = {path: path.read_bytes() for path in sorted(root.rglob("*.ipynb"))}
    subprocess.run([CLEAN], cwd=root, check=True)
    return [str(path.relative_to(root)) for path, content in before.items() if path.read_bytes() != content]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    staged = git("diff", "--cached", "--name-only", "-z", "--diff-filter=ACMR", "--", "nbs/*.ipynb").split("\0")[:-1]
    if not staged:
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        git("checkout-index", f"--prefix={folder}/", "--", "settings.ini", *staged)
        names = unclean(Path(folder))
    if names:
        sys.exit("\n".join(["These notebooks are staged unclean:", *names, "Run `make export`, look, and add them again."]))
