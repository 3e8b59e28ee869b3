"""A process that is killed and started again ends with the losses of one that was left alone; a full disk costs no checkpoint."""
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from multiformer.optimization.checkpoint import find_checkpoints, read_state

STEPS, KILLS = 150, 20
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["multiformer.optimization.trainer", "multiformer.cells.residual", "multiformer.cells.attention", "multiformer.cells.feedforward"])   # torch is imported once, and forked


def run(out, size_limit=None):
    "The run; with `size_limit`, no file may grow beyond so many bytes, as on a full disk."
    import torch
    from torch import nn

    from multiformer.cells.attention import Attention
    from multiformer.cells.feedforward import MLP
    from multiformer.cells.normalization import LayerNorm
    from multiformer.cells.residual import Block
    from multiformer.optimization.trainer import TrainConfig, train

    class Toy(nn.Sequential):
        config = SimpleNamespace(vocab_size=11, context=8)

    torch.set_num_threads(1)
    torch.manual_seed(1)
    block = Block(Attention(16, 2), MLP(16, 64), lambda: LayerNorm(16))
    model = Toy(nn.Embedding(11, 16), nn.Dropout(.1), block, nn.Linear(16, 11))
    windows = (torch.randint(11, (100, 1)) + torch.randint(1, 5, (100, 1)) * torch.arange(9)) % 11
    config = TrainConfig(steps=STEPS, batch_size=16, accumulate=2, lr=1e-2, ema=.9, batch_ramp=.5, eval_every=25, save_every=5)
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    if size_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, size_limit))
    train(model, windows[:80], config, windows[80:], out=out)


def start(out, size_limit=None):
    "The run, in a process of its own."
    process = FORKS.Process(target=run, args=(str(out), size_limit))
    process.start()
    return process


def wait_for(out, process, after):
    "Wait until a checkpoint past step `after` is there."
    while process.is_alive() and not any(int(path.name[5:]) > after for path in find_checkpoints(out)):
        time.sleep(.005)


def finish(out, size_limit=None):
    "Let the run come to its end; returns its exit code and its messages."
    process = start(out, size_limit)
    process.join(120)
    return process.exitcode, Path(f"{out}.log").read_text()


def history(out):
    "The history in the newest checkpoint, all of whose files are read."
    folder = find_checkpoints(out)[-1]
    for path in folder.glob("*.safetensors"):
        load_file(path)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len(rows) == read_state(folder)["progress"]["step"]
    return rows


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    "The history of a run that nobody disturbs."
    out = tmp_path_factory.mktemp("runs") / "calm"
    code, messages = finish(out)
    assert code == 0, messages
    assert [row["step"] for row in history(out)] == list(range(1, STEPS + 1))
    return history(out)


def test_killed_run_repeats_every_loss(tmp_path, expected):
    "SIGKILL at twenty random moments: each checkpoint can be read, and holds the beginning of the undisturbed run."
    out, draw = tmp_path / "stormy", random.Random(0)
    for kill in range(KILLS):
        process = start(out)
        wait_for(out, process, kill * (STEPS - 10) // KILLS)
        time.sleep(draw.uniform(0, .04))
        process.kill()
        process.join()
        rows = history(out)
        assert rows == expected[:len(rows)], f"kill {kill}"
    code, messages = finish(out)
    assert code == 0, messages
    assert history(out) == expected


def test_asked_to_end_it_saves_first(tmp_path, expected):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run", process, 20)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode != 0 and "the same call goes on from there" in Path(f"{tmp_path / 'run'}.log").read_text()
    rows = history(tmp_path / "run")
    assert 20 < len(rows) < STEPS and rows == expected[:len(rows)]


def test_full_disk_leaves_the_last_checkpoint(tmp_path, expected):
    "A file that can't be written to its end costs its own checkpoint only; with room again, the run goes on."
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run", process, 20)
    process.kill()
    process.join()
    before = len(history(tmp_path / "run"))
    code, messages = finish(tmp_path / "run", size_limit=12_000)   # less than the weights take
    assert code == 1 and "can't be written" in messages and f"step-{before:08d} is still there" in messages, messages
    assert len(history(tmp_path / "run")) == before and not list((tmp_path / "run").glob("*.tmp"))
    assert finish(tmp_path / "run")[0] == 0 and history(tmp_path / "run") == expected
