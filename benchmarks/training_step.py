"""A training step (forward, backward, AdamW) of BLM against transformers' LlamaForCausalLM, and of GPT2 against its GPT2LMHeadModel, with the same weights.

All of them take turns in one process: transformers in float32, and ours in float32, compiled (where there is a C++ compiler;
compiling takes minutes the first time) and in bf16 autocast.

    python benchmarks/training_step.py [rounds]
"""
import shutil
import sys

import torch
from timing import llama, ratio, report, side_by_side
from transformers import GPT2Config, GPT2LMHeadModel

from multiformer.optimization import next_token_loss
from multiformer.weights_adapter import from_hf


def gpt2() -> GPT2LMHeadModel:
    "A random GPT-2 of about 12 million parameters, without dropout."
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_positions=512, n_embd=384, n_layer=6, n_head=6, bos_token_id=0, eos_token_id=0,
                                      resid_pdrop=0., embd_pdrop=0., attn_pdrop=0., loss_type="ForCausalLM"))


def compare(hf, rounds: int) -> dict:
    "The ratios for one model of transformers."
    hf = hf.train()
    ours = from_hf(hf).train()
    windows = torch.randint(hf.config.vocab_size, (4, 257))
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (hf, ours)}

    def step(model, loss_of):
        optimizers[model].zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizers[model].step()
        return loss.item()

    def hf_loss():  # labels are given already shifted, as ours are
        return hf(windows[:, :-1], labels=windows[:, :-1], shift_labels=windows[:, 1:].contiguous(), use_cache=False).loss

    def our_loss(loss=next_token_loss, bf16=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return loss(ours, windows)

    with torch.no_grad():
        gap = abs(hf_loss().item() - our_loss().item())
    assert gap < 1e-4, f"the losses differ by {gap}"
    contenders = {"theirs": lambda: step(hf, hf_loss), "ours": lambda: step(ours, our_loss), "bf16": lambda: step(ours, lambda: our_loss(bf16=True))}
    if shutil.which("c++") or shutil.which("g++"):
        compiled = torch.compile(next_token_loss)  # as the trainer does
        contenders["compiled"] = lambda: step(ours, lambda: our_loss(compiled))
    seconds = side_by_side(contenders, rounds, warmup=2)
    pair = f"{type(hf).__name__} / {type(ours).__name__}"
    bounds = {"ours": ("float32", 1.05), "compiled": ("float32, compiled", 1.12), "bf16": ("float32 / bf16 autocast", 1.8)}
    return {f"{pair}, {what}": (ratio(seconds, "theirs", name), ">=", bound) for name, (what, bound) in bounds.items() if name in seconds}


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    models = {"plain": llama(6), "grouped": llama(2), "gpt2": gpt2()}
    rows = {}
    for name, hf in models.items():
        note = ", 2 of 6 key-value heads" if name == "grouped" else ""
        rows |= {row + note: value for row, value in compare(hf, rounds).items()}
    report("Training step, batch 4 x 256, 10 to 12 M parameters", rows)
