"""A process that is killed and started again ends with the losses of one that was left alone."""
import json
import signal
import subprocess
import sys
import time

from multiformer.optimization.checkpoint import find_checkpoints

STEPS = 150
RUN = f"""
import sys
from types import SimpleNamespace
import torch
from torch import nn
from multiformer.cells.attention import Attention
from multiformer.cells.feedforward import MLP
from multiformer.cells.normalization import LayerNorm
from multiformer.cells.residual import Block
from multiformer.optimization import TrainConfig, train

class Toy(nn.Sequential):
    config = SimpleNamespace(vocab_size=11, context=8)

torch.manual_seed(1)
block = Block(Attention(16, 2), MLP(16, 64), lambda: LayerNorm(16))
model = Toy(nn.Embedding(11, 16), nn.Dropout(.1), block, nn.Linear(16, 11))
windows = (torch.randint(11, (100, 1)) + torch.randint(1, 5, (100, 1)) * torch.arange(9)) % 11
config = TrainConfig(steps={STEPS}, batch_size=16, accumulate=2, lr=1e-2, eval_every=25, save_every=5)
train(model, windows[:80], config, windows[80:], out=sys.argv[1])
"""


def start(out):
    "The run, in a process of its own."
    return subprocess.Popen([sys.executable, "-c", RUN, str(out)], stderr=subprocess.PIPE, text=True)


def interrupt(out, after, number):
    "Start or continue the run, send signal `number` when a checkpoint past step `after` is there; returns exit code, messages and last step."
    process = start(out)
    while not any(int(path.name[5:]) > after for path in find_checkpoints(out)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(.001)
    process.send_signal(number)
    messages = process.communicate(timeout=60)[1]
    return process.returncode, messages, int(find_checkpoints(out)[-1].name[5:])


def finish(out):
    "Let the run come to its end; returns its history."
    process = start(out)
    messages = process.communicate(timeout=120)[1]
    assert process.returncode == 0, messages
    folder, = find_checkpoints(out)
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_killed_run_repeats_every_loss(tmp_path):
    expected = finish(tmp_path / "calm")
    code, _, step = interrupt(tmp_path / "stormy", 20, signal.SIGKILL)
    assert code == -signal.SIGKILL and 20 < step < STEPS
    code, messages, step = interrupt(tmp_path / "stormy", step + 20, signal.SIGTERM)
    assert code != 0 and "the same call goes on from there" in messages and step < STEPS
    assert finish(tmp_path / "stormy") == expected
    assert [row["step"] for row in expected] == list(range(1, STEPS + 1))
