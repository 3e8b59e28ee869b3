"""The command `multiformer` and its server as programs of their own: pipes, signals, ports."""
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from multiformer.inference import command

MODEL = "blm-storybook"
PROGRAM = [sys.executable, "-c", "import sys; from multiformer.inference.command import main; sys.exit(main())"]
STORY = "One day, Lily was in the garden. She found a red ball. Max came along to play. Lily gave the ball to Max. In the end, the red ball was with"
LOCAL = "127.0.0.1"
SETTINGS = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(*argv: str) -> subprocess.Popen:
    "The command with three pipes."
    return subprocess.Popen([*PROGRAM, *argv], env=SETTINGS, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
    "Exit code, stdout and stderr."
    with start(*argv) as process:
        out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out, err


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("multiformer")
    done = subprocess.run([program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "generate" in done.stdout and "serve" in done.stdout


def test_generate_reads_a_pipe():
    assert run("generate", MODEL, "-", "--temperature", "0", "--stop", ".", stdin=STORY + "\n") == (0, " Max\n", "")


def test_a_reader_that_leaves_is_no_error():
    with start("generate", MODEL, "One day,", "--seed", "1") as process:
        assert process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("code, argv", [(2, ["generate", MODEL]), (2, ["generate", MODEL, "a", "--top-p", "2"]), (1, ["generate", "blm-storybok", "a"])])
def test_an_error_is_one_line(code, argv):
    found, out, err = run(*argv)
    assert (found, out) == (code, "") and err.startswith("multiformer") and err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin, code", [(Terminal, 0), (io.StringIO, 130)])
def test_interrupt_ends_the_answer_on_a_terminal_and_all_in_a_script(stdin, code, monkeypatch, capsys):
    pieces = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "write", write)
    monkeypatch.setattr(sys, "stdin", stdin("One day,\nTwo days later,\n"))
    assert command.main(["chat", MODEL, "--max-new-tokens", "20", "--seed", "3"]) == code
    out, err = capsys.readouterr()
    if code:
        assert len(pieces) == 3
    else:
        assert out.replace("> ", "") == "\n\n" and not err and len(pieces) > 10   # two answers, of which one was cut short after three tokens


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, subprocess.Popen]]:
    "The address of a server, and its process; it ends by Ctrl-C."
    process = start("serve", MODEL, "--port", "0")
    said = process.stdout.readline()
    yield said.split(" at ")[1].split()[0], process
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err.strip() == ""


def test_serves_texts_on_this_machine_only(server):
    address, _ = server
    assert address.startswith(f"http://{LOCAL}:")
    answer = httpx.post(f"{address}/completions", json={"model": MODEL, "prompt": STORY, "temperature": 0, "stop": ["."]}, timeout=60).json()
    assert answer["choices"][0]["text"] == " Max" and answer["choices"][0]["finish_reason"] == "stop"


def test_a_port_in_use_is_one_line(server):
    port = server[0].rsplit(":", 1)[1].removesuffix("/v1")
    code, out, err = run("serve", MODEL, "--port", port)
    assert (code, out) == (1, "") and f"port {port}" in err and "in use" in err and err.count("\n") == 1


def test_clients_that_vanish_leave_the_turn_to_others(server):
    address, _ = server
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    for stream in (True, False, True):
        body = json.dumps({"model": MODEL, "prompt": "One day,", "max_tokens": 150, "stream": stream}).encode()
        with socket.create_connection((host, int(port))) as line:
            line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            if stream: assert line.recv(15) == b"HTTP/1.1 200 OK"
    answer = httpx.post(f"{address}/completions", json={"model": MODEL, "prompt": STORY, "temperature": 0, "max_tokens": 1}, timeout=60).json()
    assert answer["choices"][0]["text"] == " Max"


@pytest.mark.parametrize("declared", [True, False], ids=["length declared", "in chunks"])
def test_a_request_that_is_too_large_is_not_parsed(server, declared):
    body = b'{"model": "blm-storybook", "prompt": ' + b"a" * 10_000_000   # no JSON: had it been parsed, the answer would be 400
    pieces = (body[i:i + 100_000] for i in range(0, len(body), 100_000))
    answer = httpx.post(f"{server[0]}/completions", content=body if declared else pieces, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 413 and answer.json()["error"]["message"] == "the request has more than 4000000 bytes"
