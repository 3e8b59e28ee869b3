"""One step of the house's Muon against torch.optim.Muon on the hidden matrices of a BLM of 12 million parameters; fused AdamW moves the rest in both.
The house takes four rounds of different polynomials by default; with torch's five rounds of one polynomial it must give torch's weights.

    python benchmarks/muon.py [rounds]
"""
import copy
import sys
from statistics import median

import torch
from timing import ratio, report, side_by_side

from multiformer.models import BLM, BLMConfig
from multiformer.optimization import TrainConfig
from multiformer.optimization.optimizers import JORDAN, build_optimizer, hidden_matrices


def twin(model: BLM) -> BLM:
    "A copy with the same gradients."
    other = copy.deepcopy(model)
    for a, b in zip(other.parameters(), model.parameters()):
        a.grad = b.grad.clone()
    return other


def compare(rounds: int) -> None:
    "Print the seconds of both and their ratio; fail if they disagree."
    torch.manual_seed(0)
    model = BLM(BLMConfig(vocab_size=4096, context=256, d_model=384, n_layers=6, n_heads=6, d_ff=1024))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    models = {name: twin(model) for name in ("ours", "ours, 5 rounds", "torch")}
    config, inner = TrainConfig(lr=1e-3), hidden_matrices(models["torch"])
    taken = {id(p) for p in inner}
    rest = [p for p in models["torch"].parameters() if id(p) not in taken]
    ours, same = (build_optimizer(models[name], config, "muon") for name in ("ours", "ours, 5 rounds"))
    same.rounds = JORDAN
    pair = (torch.optim.Muon(inner, lr=config.lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True))
    steps = {"ours": ours.step, "ours, 5 rounds": same.step, "torch": lambda: [optimizer.step() for optimizer in pair]}
    seconds = side_by_side(steps, rounds=rounds)
    worst = max((a - b).abs().max().item() for a, b in zip(hidden_matrices(models["ours, 5 rounds"]), inner))
    assert worst < 1e-4, f"after {rounds + 1} steps of the same polynomial the matrices differ by {worst}"
    for name, each in seconds.items():
        print(f"  {name:14} {1e3 * median(each):7.0f} ms (median), {1e3 * min(each):7.0f} ms (least)")
    report(f"One step on {model.n_parameters / 1e6:.1f} M parameters", {"torch.optim.Muon + AdamW / ours": (ratio(seconds, "torch", "ours"), ">=", 3.3),
           "the same with torch's five rounds in ours": (ratio(seconds, "torch", "ours, 5 rounds"), ">=", 1.0),
           "milliseconds of ours (least)": (1e3 * min(seconds["ours"]), "<=", 150)})


if __name__ == "__main__":
    compare(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
