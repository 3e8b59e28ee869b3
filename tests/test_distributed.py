"""Two ranks do what one process does, whoever wrote the checkpoint, and however they were started."""
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.run import main as torchrun_main, run_script_path
from torch.testing import assert_close

from multiformer.cells.attention import Attention
from multiformer.cells.feedforward import MLP
from multiformer.cells.normalization import LayerNorm
from multiformer.cells.residual import Block
from multiformer.models.base import Config, Model
from multiformer.optimization.checkpoint import find_checkpoints
from multiformer.optimization.distributed import FabricTrainer, launch_ranks, open_fabric, run_rank, train_distributed
from multiformer.optimization.trainer import TrainConfig, Trainer, next_token_loss, train, training

pytest.importorskip("lightning_fabric")

torch.manual_seed(0)
WINDOWS = (torch.randint(11, (100, 1)) + torch.randint(1, 5, (100, 1)) * torch.arange(9)) % 11
VALID = WINDOWS[80:]
CONFIG = TrainConfig(steps=20, batch_size=8, lr=1e-2, warmup=4, ema=.9, log_every=5, eval_every=10, save_every=10, keep_best=True)
SHORT = replace(CONFIG, steps=4, warmup=1, eval_every=4, save_every=4)
COMBINATIONS = [(first, second) for first in ("one", "ddp", "fsdp") for second in ("one", "ddp", "fsdp") if (first, second) != ("one", "one")]


class Counter(Model):
    config_class = Config

    def __init__(self, config, dropout=0.):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Embedding(11, 16), nn.Dropout(dropout), Block(Attention(16, 2), MLP(16, 64), lambda: LayerNorm(16)), nn.Linear(16, 11))

    def forward(self, tokens):
        return self.layers(tokens)


class Until:
    "A callback that stops the run after `step`."
    def __init__(self, step):
        self.step = step

    def after_update(self, trainer):
        return trainer.step == self.step


def new_model(dropout=0., seed=1):
    torch.manual_seed(seed)
    return Counter(Config(vocab_size=11, context=8), dropout)


def run(kind, out, until=None, config=CONFIG, **options):
    "A run in this process, which is one rank unless `kind` is one; it may stop early. Returns history and weights."
    model, callbacks = new_model(**options), [Until(until)]
    if kind == "one":
        history = train(model, WINDOWS[:80], config, VALID, out=out, callbacks=callbacks)
    else:
        fabric = open_fabric(kind, 2, accelerator="cpu")
        with training(model, config.seed):
            history = run_rank(FabricTrainer(fabric, model, WINDOWS[:80], config, VALID, callbacks=callbacks), out)
    return history.losses, history.norms, history.valid, {name: tensor.clone().numpy() for name, tensor in model.state_dict().items()}


def go_through(folder):
    "All that two ranks have to do, in one launch."
    rank, done = int(os.environ["RANK"]), {}
    for kind in ("ddp", "fsdp"):
        done[f"dropout {kind}"] = run(kind, folder / f"dropout-{kind}", config=SHORT, dropout=.3)
        run(kind, folder / f"again-{kind}", until=2, config=SHORT, dropout=.3)
        done[f"again {kind}"] = run(kind, folder / f"again-{kind}", config=SHORT, dropout=.3)
        done[f"seeds {kind}"] = run(kind, folder / f"seeds-{kind}", config=SHORT, seed=1 + rank)
        run(kind, folder / f"half-{kind}", until=10)
    done["muon"] = run("ddp", folder / "muon-ddp", config=replace(SHORT, optimizer="muon"))
    for first, second in COMBINATIONS:
        if second != "one":
            if rank == 0:
                shutil.copytree(folder / f"half-{first}", folder / f"{first}-{second}")
            done[f"{first} {second}"] = run(second, folder / f"{first}-{second}")
    return done


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "What each of two ranks got, and one process."
    folder = tmp_path_factory.mktemp("runs")
    alone = {"one": run("one", folder / "one"), "short": run("one", folder / "short", config=SHORT),
             "muon": run("one", folder / "muon", config=replace(SHORT, optimizer="muon"))}
    run("one", folder / "half-one", until=10)
    ranks = launch_ranks(go_through, 2, folder)
    for first in ("ddp", "fsdp"):
        alone[f"{first} one"] = run("one", folder / f"half-{first}")
    return folder, alone, ranks


def same(found, expected, atol=1e-5):
    for ours, theirs in zip(found, expected):
        assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(done, kind):
    folder, alone, ranks = done
    assert len(alone["one"][0]) == 20 and alone["one"][0][-1] < alone["one"][0][0] - .5
    for rank in ranks:
        same(rank[f"{kind} {kind}"], alone["one"])
    same(ranks[1][f"seeds {kind}"], alone["short"])                 # a model that only rank 0 had
    for kind_of in ("step", "best"):
        ours, theirs = find_checkpoints(folder / f"{kind}-{kind}", kind_of)[-1], find_checkpoints(folder / "one", kind_of)[-1]
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for name in ("model", "optimizer", "ema"):
            assert_close(load_file(ours / f"{name}.safetensors"), load_file(theirs / f"{name}.safetensors"), rtol=0, atol=1e-5)


def test_muon_on_two_ranks_is_muon(done):
    _, alone, ranks = done
    same(ranks[0]["muon"], alone["muon"])


@pytest.mark.parametrize("pair", COMBINATIONS, ids=" to ".join)
def test_a_checkpoint_of_one_is_read_by_the_other(done, pair):
    folder, alone, ranks = done
    name = " ".join(pair)
    same(alone[name] if pair[1] == "one" else ranks[1][name], alone["one"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_dropout_resumes_to_the_last_bit(done, kind):
    _, alone, ranks = done
    for rank in ranks:
        straight, again = rank[f"dropout {kind}"], rank[f"again {kind}"]
        assert straight[:3] == again[:3] and straight[0] != alone["short"][0]
        same(straight[3:], again[3:], 0)


def test_shares_of_different_weight_add_up():
    documents = torch.zeros_like(WINDOWS)
    documents[::3, 5:] = -1                     # every third window ends early
    documents[1::3] = -1                        # and every third has no target at all, so that a rank may have none
    config = replace(SHORT, batch_size=2, clip=.3, ema=None, keep_best=False)

    def loss(model, windows):
        return next_token_loss(lambda tokens, documents: model(tokens), windows)

    def steps(kind):
        given = new_model(), (WINDOWS, documents), config
        trainer = Trainer(*given, loss=loss) if kind == "one" else FabricTrainer(open_fabric(kind, 2, accelerator="cpu"), *given, loss=loss)
        for _ in range(4):
            trainer.advance()
        trainer.flush()
        return trainer.history.losses, trainer.history.norms

    alone = steps("one")
    for rank in launch_ranks(lambda: (steps("ddp"), steps("fsdp")), 2):
        for found in rank:
            same(found, alone)


@pytest.fixture
def no_hang():
    "Ends a test that waits for a rank that is gone."
    def give_up(*_):
        raise TimeoutError("a rank waits for another that is gone")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("end, message", [("raise", "rank 1 failed: OSError: the disk is on fire"), ("kill", "rank . failed")])
def test_one_rank_ends_all(tmp_path, no_hang, end, message):
    calls = []

    def loss(model, windows):
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            if end == "raise":
                raise OSError("the disk is on fire")
            os.kill(os.getpid(), signal.SIGKILL)
        return model(windows[:, :-1]).square().mean()

    with pytest.raises(RuntimeError, match=message):
        train_distributed(new_model(), WINDOWS[:80], replace(CONFIG, keep_best=False), tmp_path, loss=loss, accelerator="cpu")
    assert not find_checkpoints(tmp_path)


def test_a_signal_ends_the_ranks_and_says_so(no_hang):
    "As a time limit sends it: no failed rank, but the end of this process too, unless somebody catches it."
    def wait():
        while True:         # the first may come while the fork is still on its way, and get lost
            if os.environ["RANK"] == "0":
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(20)      # a second one, while the first is being answered, would end the tests

    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        launch_ranks(wait, 2)


def test_what_cannot_be_dealt_is_refused_before_a_rank_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("multiformer.optimization.distributed.launch_ranks", lambda *_: pytest.fail("a rank was started"))
    for options, message in (({"devices": 3}, "8 windows can't be dealt to 3"), ({"strategy": "zero"}, "expected one of"), ({"nodes": 2}, "torchrun or SLURM")):
        with pytest.raises(ValueError, match=message):
            train_distributed(new_model(), WINDOWS[:80], CONFIG, tmp_path, VALID, **options)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        train_distributed(new_model(), WINDOWS + 5, CONFIG, tmp_path, VALID)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"multiformer\[distributed\]"):
        train_distributed(new_model(), WINDOWS, CONFIG, tmp_path, VALID)


SCRIPT = """
import sys
import torch
from test_distributed import SHORT, VALID, WINDOWS, new_model, train_distributed
torch.set_num_threads(1)
model = new_model()
train_distributed(model, WINDOWS[:80], SHORT, sys.argv[1], VALID, strategy=sys.argv[2], accelerator="cpu")
print("sum", float(sum(p.sum() for p in model.parameters())))
"""


def start(function, *args, **variables):
    "A fork, which need not import torch again, with the environment that the program of another would give it."
    def run():
        os.environ.update(variables)
        torch.set_num_threads(1)
        function(*args)
    process = get_context("fork").Process(target=run)
    process.start()
    return process


def test_torchrun_and_slurm_start_the_same_script(done, tmp_path):
    _, alone, _ = done
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    torchrun = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--redirects", "3", "--log-dir", str(tmp_path / "logs"), "--run-path", "--start-method", "fork"]
    running = [start(torchrun_main, [*torchrun, str(script), str(tmp_path / "torchrun"), "ddp"])]
    for rank in ("0", "1"):  # what srun sets
        slurm = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_PROCID": rank, "SLURM_LOCALID": rank,
                 "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        running.append(start(run_script_path, str(script), str(tmp_path / "slurm"), "fsdp", **slurm))
    try:
        for process in running:
            process.join(120)
        assert [process.exitcode for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
    for started in ("torchrun", "slurm"):
        assert_close(load_file(find_checkpoints(tmp_path / started)[-1] / "model.safetensors"), load_file(find_checkpoints(done[0] / "short")[-1] / "model.safetensors"), rtol=0, atol=1e-5)
    shown = [next((tmp_path / "logs").rglob(f"{rank}/stderr.log")).read_text() for rank in (0, 1)]
    assert "4/4" in shown[0] and "4/4" not in shown[1]
    sums = {next((tmp_path / "logs").rglob(f"{rank}/stdout.log")).read_text().split()[-1] for rank in (0, 1)}
    assert len(sums) == 1 and abs(float(sums.pop()) - sum(weights.sum() for weights in alone["short"][3].values())) < 1e-2
