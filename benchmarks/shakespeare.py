"""Validation loss of a character model on tinyshakespeare after 2,000 steps at the size of nanoGPT's run for CPUs, with Muon and with AdamW.

    OMP_NUM_THREADS=1 python benchmarks/shakespeare.py tinyshakespeare.txt [--optimizer muon] [--lr 0.007] [--seeds 0 1 2] [--steps 2000]
"""
import argparse
from pathlib import Path
from statistics import mean

import torch
from tqdm import trange

from multiformer.models import BLM, BLMConfig
from multiformer.optimization import TrainConfig, Trainer
from multiformer.optimization.optimizers import build_optimizer
from multiformer.optimization.trainer import mean_loss, training

CONTEXT = 64


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    "Overlapping windows of the first nine tenths of the characters, the windows of the last tenth, and the size of the vocabulary."
    text = path.read_text(encoding="utf-8")
    number = {letter: i for i, letter in enumerate(sorted(set(text)))}
    if len(number) > 256:
        raise ValueError(f"{path} holds {len(number)} different characters; expected at most 256")
    letters = torch.tensor([number[letter] for letter in text], dtype=torch.uint8)
    cut = int(.9 * len(letters))
    return letters[:cut].unfold(0, CONTEXT + 1, 1), letters[cut:].unfold(0, CONTEXT + 1, CONTEXT), len(number)


def run(data: tuple, optimizer: str, lr: float, steps: int, seed: int) -> float:
    "Train one model; returns its loss on the windows for validation, in nats per character."
    train_windows, valid_windows, vocab_size = data
    torch.manual_seed(seed)
    model = BLM(BLMConfig(vocab_size=vocab_size, context=CONTEXT, d_model=128, n_layers=4, n_heads=4))
    config = TrainConfig(steps=steps, batch_size=12, lr=lr, min_lr_ratio=0., warmup=.05, seed=seed)
    trainer = Trainer(model, train_windows, config)
    trainer.optimizer = build_optimizer(model, config, optimizer)
    with training(model, seed):
        for _ in trange(steps, leave=False):
            trainer.advance()
    return mean_loss(model, valid_windows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=7e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    data, losses = read(given.path), []
    for seed in given.seeds:
        losses.append(run(data, given.optimizer, given.lr, given.steps, seed))
        print(f"{given.optimizer}, lr {given.lr}, seed {seed}: {losses[-1]:.4f}", flush=True)
    print(f"mean of {len(losses)}: {mean(losses):.4f} (nanoGPT's README: 1.88)")
