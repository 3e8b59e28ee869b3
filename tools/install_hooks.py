"""Install the hooks that keep notebooks clean: in the virtual environment and in this repository's .git, nowhere else.

    python tools/install_hooks.py

JupyterLab cleans a notebook when it saves it, git refuses to commit an unclean one and merges through nbdev.
`nbdev_install_hooks` alone would write to the home directory, and its git hooks find nbdev's programs only in
an activated environment.
"""
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.prefix) / "bin"
HOOKS = {"pre-commit": ("python", "tools/check_clean.py"), "post-merge": ("nbdev_trust",)}
MARK = "# Written by tools/install_hooks.py."


def command(program: str, *arguments: str) -> str:
    "A shell command for a program of this environment, by its full name."
    return shlex.join([str(PROGRAMS / program), *arguments])


def install_jupyter_hook() -> None:
    "Let nbdev write its save hook to an empty home, and move it into this environment's configuration."
    config = "jupyter_server_config.py"
    folder = Path(sys.prefix) / "etc/jupyter"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "GIT_DIR": os.devnull}   # no repository: git's part is done below
        subprocess.run([PROGRAMS / "nbdev_install_hooks"], env=env, check=True, capture_output=True)
        (folder / config).write_text((Path(home) / ".jupyter" / config).read_text() + "\n")


def install_git_hooks() -> None:
    "The merge driver that .gitattributes names, and two hooks; a hook that somebody else wrote stays."
    for key, value in {"name": "nbdev_merge", "driver": command("nbdev_merge") + " %O %A %B %P"}.items():
        subprocess.run(["git", "config", "--local", f"merge.nbdev-merge.{key}", value], cwd=ROOT, check=True)
    (ROOT / ".git/hooks").mkdir(exist_ok=True)
    for name, (program, *arguments) in HOOKS.items():
        path = ROOT / ".git/hooks" / name
        if path.exists() and MARK not in path.read_text():
            print(f"{path.relative_to(ROOT)} is not ours and stays as it is")
            continue
        path.write_text(f"#!/bin/sh\n{MARK}\n[ -x {command(program)} ] || exit 0\nexec {command(program, *arguments)}\n")
        path.chmod(0o755)


if __name__ == "__main__":
    install_jupyter_hook()
    if (ROOT / ".git").is_dir():
        install_git_hooks()
