"""Where the time of a training step goes, on the CPU: forward and backward pass of LoRA (rank 16 on all linear layers) over 8 address rows, as transformers and PEFT compute it and as ftlearn does.

Both begin with the same weights, bfloat16 under autocast, without gradient checkpointing. They are profiled in turns, a step at a time; prints milliseconds by kind of work of the step in the middle (by all it takes) and writes train_profile.json, which 21a_model.fast shows. Times with the profiler on are
higher than without; the whole step is measured without it, in turns. A profile is no claim: `train_speed.py` measures whole runs.
`python benchmarks/train_profile.py [--model smollm2-135m-instruct] [--steps 5]`"""
import argparse, collections, datetime, json, os, platform, statistics, time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
OUT, RANK = Path(__file__).resolve().parent / "train_profile.json", 16
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "mkldnn::_linear_pointwise"}   # the last one takes weights that were laid out for it


def kind_of(event, vocabulary):
    "What an operation of the profile belongs to."
    sides = {n for shape in event.input_shapes for n in shape}
    if vocabulary in sides: return "output layer and loss"
    if event.key in PRODUCTS: return "products with adapters" if RANK in sides else "products with frozen weights"
    if "bmm" in event.key or "scaled_dot_product" in event.key: return "attention's products"
    if event.key in ("aten::copy_", "aten::cat", "aten::clone"): return "copies and casts"
    return "other operations on numbers"


def profiled(step, vocabulary):
    "Milliseconds of one step by kind. What lies between the operations is Python and torch's own bookkeeping."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as p:
        began = time.perf_counter()
        step()
        whole = (time.perf_counter() - began) * 1e3
    found = collections.Counter()
    for e in p.key_averages(group_by_input_shape=True):
        if e.key.startswith(("aten::", "mkldnn::")): found[kind_of(e, vocabulary)] += e.self_cpu_time_total / 1e3
    found["between the operations"] = whole - sum(found.values())
    return found


def contestants(name):
    "({who: a function that makes one step}, size of the vocabulary, tokens of a row)."
    import torch
    from train_speed import rows_of
    from ftlearn.config import Config
    from ftlearn.core import pick_device
    from ftlearn.data.encode import collate, encode_rows
    from ftlearn.model.adapt import adapt
    from ftlearn.model.fast import keep_fewer_products, speed_up
    from ftlearn.model.load import load_model
    from ftlearn.train.loss import answer_loss
    from ftlearn.train.sft import compute_in_base_dtype
    keep_fewer_products()
    steps = {}
    for who in ("transformers and PEFT", "ftlearn"):
        ours = who == "ftlearn"
        loaded = load_model(name, device=pick_device("cpu", "bfloat16"), **({} if ours else {"attn": "sdpa"}))
        model = adapt(loaded.model, "lora", Config(method="lora"))
        rows = sorted(encode_rows(rows_of(400)[0], loaded.tokenizer), key=lambda r: len(r.input_ids))
        batch = collate(rows[196:204], loaded.tokenizer.pad_token_id)   # of the middle length
        if ours: compute_in_base_dtype(model); speed_up(model)
        def step(model=model.train(), ours=ours):
            with torch.autocast("cpu", torch.bfloat16): loss = answer_loss(model, batch)[0] if ours else model(**batch).loss
            loss.backward()
            model.zero_grad()
            return loss.item()
        steps[who] = step
    print(f"8 rows of {batch['input_ids'].shape[1]} tokens, {int((batch['labels'] != -100).sum())} labels; loss " + ", ".join(f"{who} {f():.4f}" for who, f in steps.items()))
    return steps, loaded.model.config.vocab_size, batch["input_ids"].shape[1]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--steps", type=int, default=5)
    a = p.parse_args()
    steps, vocabulary, length = contestants(a.model)
    times = {who: [] for who in steps}
    for _ in range(a.steps + 2):
        for who, f in steps.items():
            began = time.perf_counter()
            f()
            times[who].append((time.perf_counter() - began) * 1e3)
    parts = {who: [] for who in steps}
    for _ in range(a.steps):
        for who, f in steps.items(): parts[who].append(profiled(f, vocabulary))
    found = {}
    for who, ps in parts.items():
        ps.sort(key=lambda p: p.total())
        found[who] = {"step": statistics.median(times[who][2:]), "parts": ps[len(ps) // 2], "least": ps[0].total(), "most": ps[-1].total()}
    for who, f in found.items():
        print(f"{who}: {f['step']:.0f} ms a step; with the profiler on {f['least']:.0f} to {f['most']:.0f}, the step in the middle: " + ", ".join(f"{k} {v:.0f}" for k, v in sorted(f["parts"].items(), key=lambda kv: -kv[1])))
    OUT.write_text(json.dumps({"date": str(datetime.date.today()), "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "model": a.model, "rows": 8, "tokens": length, "ms": found}, indent=1) + "\n")


if __name__ == "__main__": main()
