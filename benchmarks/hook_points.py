"""What hook points cost: idle, and while everything or the residual stream is recorded, at 128 tokens.

A pass that records everything holds some 20 MB at its end. By default glibc gives them back to the system when they
are freed, and the next pass pays for fresh pages, a second cost beside the recording; so both are measured.

    python benchmarks/hook_points.py
"""
import copy
import tempfile

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from timing import keep_freed_memory, llama, ratio, report, side_by_side

from multiformer.cells.hooks import HookPoint, record
from multiformer.weights_adapter import from_hf


class Nothing:
    "Stands where a hook point was: no module, no hooks."
    active = False

    def __call__(self, x):
        return x


def without_hook_points(model: nn.Module) -> nn.Module:
    "A copy of the model from which every hook point is taken out."
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, HookPoint):
                delattr(parent, name)
                object.__setattr__(parent, name, Nothing())
    return model


def bridge(hf):
    "The same weights in TransformerLens."
    from transformer_lens.model_bridge import TransformerBridge
    with tempfile.TemporaryDirectory() as folder:
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(hf.config.vocab_size)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w3").save_pretrained(folder)
        hf.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")


def main() -> None:
    hf = llama()
    hf.set_attn_implementation("eager")
    blm = from_hf(hf)
    bare, lens = without_hook_points(blm), bridge(hf)
    tokens = torch.randint(hf.config.vocab_size, (1, 128))

    def recorded(names):
        with record(blm, names):
            return blm(tokens)

    with torch.no_grad():
        assert torch.equal(blm(tokens), bare(tokens))
        logits, cache = lens.run_with_cache(tokens)
        torch.testing.assert_close(recorded("*"), logits, atol=1e-4, rtol=1e-4)
        contenders = {"plain": lambda: blm(tokens), "bare": lambda: bare(tokens), "everything": lambda: recorded("*"),
                      "residual": lambda: recorded("*hook_resid*"), "lens": lambda: lens.run_with_cache(tokens)}
        fresh = side_by_side(contenders, rounds=100, warmup=10)
        keep_freed_memory()
        kept = side_by_side(contenders, rounds=200, warmup=10)
    report("Hook points, one text of 128 tokens", {
        "idle hook points / hook points removed": (ratio(kept, "plain", "bare"), "<=", 1.02),
        "record everything / plain forward": (ratio(kept, "everything", "plain"), "<=", 1.25),
        "record everything / plain forward, with fresh memory": (ratio(fresh, "everything", "plain"), "<=", 1.25),
        "record the residual stream / plain forward": (ratio(kept, "residual", "plain"), "<=", 1.03),
        "record everything / TransformerLens run_with_cache": (ratio(kept, "everything", "lens"), "<=", 0.8)})


if __name__ == "__main__":
    main()
