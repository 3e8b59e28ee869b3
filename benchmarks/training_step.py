"""A training step (forward, backward, AdamW) of BLM against transformers' LlamaForCausalLM with the same weights.

    python benchmarks/training_step.py
"""
import torch
from timing import llama, ratio, report, side_by_side

from multiformer.optimization import next_token_loss
from multiformer.weights_adapter import from_hf


def compare(n_kv_heads: int) -> dict:
    "The ratios for one number of key-value heads."
    hf = llama(n_kv_heads).train()
    blm = from_hf(hf).train()
    windows = torch.randint(hf.config.vocab_size, (4, 257))
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (hf, blm)}

    def step(model, loss_of):
        optimizers[model].zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizers[model].step()
        return loss.item()

    def hf_loss():  # labels are given already shifted, as ours are
        return hf(windows[:, :-1], labels=windows[:, :-1], shift_labels=windows[:, 1:].contiguous(), use_cache=False).loss

    def blm_loss(bf16=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return next_token_loss(blm, windows)

    with torch.no_grad():
        gap = abs(hf_loss().item() - blm_loss().item())
    assert gap < 1e-4, f"the losses differ by {gap}"
    seconds = side_by_side({"llama": lambda: step(hf, hf_loss), "blm": lambda: step(blm, blm_loss),
                            "bf16": lambda: step(blm, lambda: blm_loss(bf16=True))}, rounds=12, warmup=2)
    return {f"LlamaForCausalLM / BLM, float32, {n_kv_heads} of 6 key-value heads": (ratio(seconds, "llama", "blm"), ">=", 1.0),
            f"BLM float32 / bf16 autocast, {n_kv_heads} of 6 key-value heads": (ratio(seconds, "blm", "bf16"), ">=", 1.65)}


if __name__ == "__main__":
    parameters = from_hf(llama()).n_parameters
    report(f"Training step, batch 4 x 256, {parameters / 1e6:.1f} M parameters", compare(6) | compare(2))
