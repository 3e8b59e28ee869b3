"""One step of the house's Muon against torch.optim.Muon on the hidden matrices of a BLM of 12 million parameters; fused AdamW moves the rest in both.

    python benchmarks/muon.py [rounds]
"""
import copy
import sys
from statistics import median

import torch
from timing import ratio, report, side_by_side

from multiformer.models import BLM, BLMConfig
from multiformer.optimization import TrainConfig
from multiformer.optimization.optimizers import build_optimizer, hidden_matrices


def compare(rounds: int) -> None:
    "Print the seconds of both and their ratio; fail if they disagree."
    torch.manual_seed(0)
    ours = BLM(BLMConfig(vocab_size=4096, context=256, d_model=384, n_layers=6, n_heads=6, d_ff=1024))
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    config, inner = TrainConfig(lr=1e-3), hidden_matrices(theirs)
    taken = {id(p) for p in inner}
    rest = [p for p in theirs.parameters() if id(p) not in taken]
    house = build_optimizer(ours, config, "muon")
    pair = (torch.optim.Muon(inner, lr=config.lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True))
    seconds = side_by_side({"ours": house.step, "torch": lambda: [optimizer.step() for optimizer in pair]}, rounds=rounds)
    worst = max((a - b).abs().max().item() for a, b in zip(hidden_matrices(ours), inner))
    assert worst < 1e-3, f"after {rounds + 1} steps the matrices differ by {worst}"
    for name, each in seconds.items():
        print(f"  {name:6} {1e3 * median(each):7.0f} ms (median), {1e3 * min(each):7.0f} ms (least)")
    report(f"One step on {ours.n_parameters / 1e6:.1f} M parameters", {"torch.optim.Muon + AdamW / ours": (ratio(seconds, "torch", "ours"), ">=", 1.0),
           "milliseconds of ours (least)": (1e3 * min(seconds["ours"]), "<=", 150)})


if __name__ == "__main__":
    compare(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
