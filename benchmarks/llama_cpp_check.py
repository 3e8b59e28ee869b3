"""The files that `write_gguf` makes, run by llama.cpp itself: same tokens of a text, same greedy tokens, and how far the logits are apart.
And how fast it decodes a model of 10 million parameters in float32, turn by turn with our decoders.

    pip install llama-cpp-python     # builds llama.cpp from source
    python benchmarks/llama_cpp_check.py
"""
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from timing import llama, ratio, report, side_by_side

from multiformer.cells.position import RoPEScaling
from multiformer.data_wrangling import storybook
from multiformer.inference import generate
from multiformer.inference.fast import CompiledDecoder, FastDecoder
from multiformer.models import BLM, GPT2, BLMConfig, GPT2Config, load
from multiformer.models.base import Model
from multiformer.weights_adapter import from_hf, read_gguf, write_gguf

try:
    import llama_cpp
except ImportError:
    llama_cpp = None

TEXTS = [story.text for story in storybook(50, seed=4_000_000)] + ["naïve 東京 🙂\n\n\t  it's 3.14!\r\n", "<|endoftext|> in a text", "    x = [1, 22, 333]\n"]
PROMPT, NEW = 24, 100


def randomized(model: Model, tokenizer) -> Model:
    "Large random weights, so that the greedy choices are clear and no term is too small to matter."
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.08).add_(1. if "ln" in name and name.endswith("weight") else 0.)
    model.tokenizer = tokenizer
    return model.eval()


def models() -> dict[str, Model]:
    "The shipped model, and random ones that use what it doesn't: more positions, other bases and scalings, heads of their own, GPT-2."
    shipped, tokenizer = load("blm-storybook")
    sizes = dict(vocab_size=1040, context=256, d_model=128, n_layers=3, n_heads=4)   # 16 rows more than tokens
    blm = lambda **changes: randomized(BLM(BLMConfig(**sizes, **changes)), tokenizer)
    return {"BLM, shipped": shipped,
            "BLM, multi-head, untied": blm(tied=False, rope_theta=5e5),
            "BLM, grouped, Llama 3's positions": blm(n_kv_heads=2, rope_scaling=RoPEScaling("llama3", 8., original_context=64)),
            "BLM, wide heads, linear positions": blm(n_kv_heads=1, head_width=64, rope_scaling=RoPEScaling("linear", 4.)),
            "GPT2": randomized(GPT2(GPT2Config(**sizes)), tokenizer)}


def run(path: Path, context: int, ids: list[int]) -> tuple[list[list[int]], list[int], torch.Tensor]:
    "What llama.cpp makes of the texts, its greedy tokens after `ids`, and the logits after each of `ids`."
    plain = llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False   # else weights are packed anew for instructions that not every machine with them may run (AMX)
    with patch("llama_cpp.llama_cpp.llama_model_default_params", return_value=plain):
        theirs = llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=1, n_threads_batch=1, logits_all=True, type_k=0, type_v=0, verbose=False)
    texts = [theirs.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS]
    theirs.eval(ids)
    logits, new = torch.tensor(theirs.scores[:len(ids)]), []
    for _ in range(NEW):
        new.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(new[-1:])
    theirs.close()
    return texts, new, logits


def compare(model: Model, dtype: str, folder: Path) -> tuple[bool, int, float]:
    "Whether the tokens of all texts agree, how many greedy tokens agree from the first on, and the largest difference of logits, as a share of the largest logit."
    path, ids = folder / "model.gguf", model.tokenizer.encode(TEXTS[0])[:PROMPT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_gguf(model, path, dtype)
    again = read_gguf(path)
    texts, new, logits = run(path, model.config.context, ids)
    row = torch.tensor([ids])
    with torch.no_grad():
        ours = again(row)[0]
    greedy = generate(again, row, NEW, temperature=0)[0, -NEW:].tolist()
    equal = next((i for i, (a, b) in enumerate(zip(greedy, new)) if a != b), NEW)
    return texts == model.tokenizer.encode_batch(TEXTS), equal, ((logits - ours).abs().max() / ours.abs().max()).item()


def speed(threads: int, folder: Path) -> dict[str, float]:
    "How fast our decoders write the same 100 greedy tokens, as a share of llama.cpp's speed."
    torch.set_num_threads(threads)
    model, path, ids = from_hf(llama()), folder / "model.gguf", list(range(5, 21))
    model.tokenizer = load("blm-storybook")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_gguf(model, path, "F32")
    theirs = llama_cpp.Llama(str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, type_k=0, type_v=0, verbose=False)

    def llama_cpp_writes():
        theirs.reset()
        theirs.eval(ids)
        new = []
        for _ in range(NEW):
            logits = llama_cpp.llama_get_logits_ith(theirs._ctx.ctx, -1)   # where they lie, without a copy
            new.append(int(np.ctypeslib.as_array(logits, (theirs.n_vocab(),)).argmax()))
            theirs.eval(new[-1:])
        return new

    decoders = {"fast": FastDecoder(model)}
    if shutil.which("c++") or shutil.which("g++"):
        decoders["compiled"] = CompiledDecoder(model)
    ways = {name: lambda decoder=decoder: generate(decoder, torch.tensor([ids]), NEW, temperature=0)[0, len(ids):].tolist() for name, decoder in decoders.items()}
    ways["llama.cpp"] = llama_cpp_writes
    texts = [way() for way in ways.values()]
    assert all(text == texts[0] for text in texts), "the greedy tokens differ"
    seconds = side_by_side(ways, rounds=15, warmup=2)
    theirs.close()
    return {name: ratio(seconds, "llama.cpp", name) for name in decoders}


def main() -> None:
    if llama_cpp is None:
        print("llama_cpp is not installed, so nothing was compared; see the head of this script")
        return
    print(f"llama.cpp by llama-cpp-python {llama_cpp.__version__}: {len(TEXTS)} texts, {NEW} greedy tokens")
    failed = []
    with TemporaryDirectory() as folder:
        for name, model in models().items():
            for dtype in ("F32", "F16", "Q8_0", "Q4_0"):
                same, equal, gap = compare(model, dtype, Path(folder))
                bad = not same or (dtype == "F32" and equal < NEW)   # the others round activations too, so a near-tie may fall the other way
                failed += [f"{name} {dtype}"] if bad else []
                print(f"  {name:34} {dtype:5} texts {'equal' if same else 'DIFFER'}, {equal:3} greedy tokens equal, logits within {gap:.1e}{'   FAILED' if bad else ''}")
        for threads in (1, 2):
            rows = {f"{name} decoder": (share, ">=", 0.6) for name, share in speed(threads, Path(folder)).items()}
            report("Decoding in float32, one row, as a share of llama.cpp's speed", rows)
    if failed:
        raise SystemExit(f"differs: {', '.join(failed)}")


if __name__ == "__main__":
    main()
