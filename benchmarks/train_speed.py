"""Whole LoRA runs on the CPU: ftlearn against TRL's SFTTrainer with its defaults and as an expert sets it. Same rows, same tokens and labels, same adapter (rank 16 on all linear layers), one process a run, runs alternate.

The clock runs from the loaded Python packages to the trained adapter: loading the model, tokenizing and every step are in it. Prints labelled rows a second, peak memory (VmHWM, the largest resident size of the process), and
the ratios, each round of which must reach its mark: 5 times the defaults, 2.5 times the expert, 0.75 of the defaults' memory; exit 1 otherwise. Ours and the defaults take the rows at random, and with the same seed in the same order, which is checked; length grouping is the expert's.
Quality: in float32 the losses of the first steps equal TRL's to 1e-4 relative, on the same rows in the same order from the same adapter. In the fast mode the final loss on rows that were not trained on is at most 1 % above that of TRL's defaults. Every adapter's loss is measured on the base model in float32.
`python benchmarks/train_speed.py [--rows 1000] [--epochs 2] [--rounds 3] [--model smollm2-135m-instruct] [--steps 20] [--no-expert]`; the record is written anew after each round."""
import argparse, contextlib, datetime, hashlib, json, math, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

from rounds import told, verdict

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
HERE = Path(__file__).resolve().parent
OUT, HELD_BACK = HERE / "train_speed.json", 76
MARKS = {"TRL defaults": 5.0, "TRL, expert": 2.5}
SETTINGS = {"TRL defaults": {},
    "TRL, expert": {"bf16": True, "gradient_checkpointing": False, "packing": True, "max_length": 512, "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}}


def peak_mb():
    "The largest resident size of this process so far, in MB."
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1e3


def rows_of(n):
    "(training rows, rows to measure the loss on) of the addresses."
    from ftlearn.data import sources
    from ftlearn.data.split import split_rows
    splits = split_rows(sources.load("addresses"), "78/6/16", seed=42)
    return [splits.train[i % len(splits.train)] for i in range(n)], splits.validation[:HELD_BACK]


def recorder():
    "A callback for `train`: `first` is the adapter before the first step, `order` the token ids of the rows as they were taken."
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self): self.first, self.order = {}, []
        def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kw):
            self.first = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            loader = train_dataloader.base_dataloader   # accelerate's wraps torch's
            collate = loader.collate_fn
            def seen(rows):
                self.order.extend([int(i) for i in r["input_ids"]] for r in rows)
                return collate(rows)
            loader.collate_fn = seen

    return Recorder()


def given(rows, tokenizer, order=None):
    "What TRL gets: the same tokens and labels, as they lie in the file or in the given order. (Its own tokens are the same, but it also trains on the line end behind the end of the turn.)"
    import datasets
    from ftlearn.data.encode import encode_rows
    encoded = encode_rows(rows, tokenizer, 256)
    labels = {tuple(e.input_ids): e.labels for e in encoded}
    return datasets.Dataset.from_list([{"input_ids": ids, "labels": labels[tuple(ids)]} for ids in order or [e.input_ids for e in encoded]])


def ours(case, tmp):
    "(a function that trains, another that gives the model and its tokenizer in float32, the rows as they were taken)."
    from ftlearn.config import Config
    from ftlearn.core import pick_device, write_jsonl
    from ftlearn.data.split import prep
    from ftlearn.model.load import load_model
    from ftlearn.train.sft import train
    from peft import PeftModel
    train_rows, _ = rows_of(case["rows"])
    write_jsonl(Path(tmp, "rows.jsonl"), train_rows)
    prep(Path(tmp, "rows.jsonl"), Path(tmp, "data"), ratios="100/0/0", near=None)
    config = Config(model=case["model"], method="lora", data=str(Path(tmp, "data")), out=str(Path(tmp, "run")), num_train_epochs=case["epochs"], learning_rate=case["rate"], per_device_train_batch_size=8,
                    save_steps=10**6, warmup_ratio=0.05)
    seen = recorder()
    def go(): return train(config, progress=False, say=str, callbacks=[seen])
    def tuned(run):
        loaded = load_model(case["model"], device=pick_device("cpu", "float32"))
        return PeftModel.from_pretrained(loaded.model, run.adapter), loaded.tokenizer
    return go, tuned, seen.order


def trl(case, tmp):
    from ftlearn.config import Config
    from ftlearn.core import Device
    from ftlearn.model.adapt import adapt
    from ftlearn.model.load import fetch, load_model, load_tokenizer
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer
    expert, seen = case["who"] == "TRL, expert", recorder()
    data = given(rows_of(case["rows"])[0], load_tokenizer(fetch(case["model"])))
    def go():
        loaded = load_model(case["model"], device=Device("cpu", "bfloat16" if expert else "float32", "benchmark", os.cpu_count()), attn="sdpa")
        model = adapt(loaded.model, "lora", Config(method="lora"))
        args = SFTConfig(output_dir=str(tmp), use_cpu=True, num_train_epochs=case["epochs"], learning_rate=case["rate"], save_strategy="no", report_to="none", disable_tqdm=True, warmup_steps=0.05,
                         **SETTINGS[case["who"]])
        trainer = SFTTrainer(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=data, callbacks=[] if expert else [seen])   # packed rows have no end that one could see
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.model, loaded.tokenizer
    return go, lambda pair: (pair[0].float(), pair[1]), seen.order


def validation_loss(model, tokenizer, rows):
    "Mean cross-entropy over the labelled tokens of rows that were not trained on."
    import torch
    from ftlearn.data.encode import collate, encode_rows
    model.eval()
    encoded, total, n = encode_rows(rows, tokenizer), 0.0, 0
    for i in range(0, len(encoded), 8):
        batch = collate(encoded[i:i + 8], tokenizer.pad_token_id)
        with torch.no_grad(): logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        targets = batch["labels"][:, 1:].reshape(-1)
        total += torch.nn.functional.cross_entropy(logits[:, :-1].reshape(len(targets), -1), targets, ignore_index=-100, reduction="sum").item()
        n += int((targets != -100).sum())
    return total / n


def work(case):
    "One run in this process; a line of JSON."
    with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(sys.stderr):
        from ftlearn.core import seed_everything
        import trl as _, peft as _  # importing is in no contestant's time
        seed_everything(0)
        go, tuned, order = (ours if case["who"] == "ftlearn" else trl)(case, tmp)
        start = time.perf_counter()
        result = go()
        found = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
        if case["who"] != "TRL, expert" and len(order) != case["rows"] * case["epochs"]: raise SystemExit(f"{case['who']} took {len(order)} rows")
        found["order"] = hashlib.sha256(json.dumps(order).encode()).hexdigest()
        found["validation_loss"] = validation_loss(*tuned(result), rows_of(case["rows"])[1])
    print(json.dumps(found | {"rows_a_second": case["rows"] * case["epochs"] / found["seconds"]}))


def same_losses(model_name, steps):
    "The largest relative difference between the float32 losses of the first steps: a whole `train` against TRL's trainer, which is given the same first adapter and the rows in the order in which `train` took them."
    import torch
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from ftlearn.config import Config
    from ftlearn.core import Device, write_jsonl
    from ftlearn.data.split import prep
    from ftlearn.model.adapt import adapt
    from ftlearn.model.load import load_model
    from ftlearn.train.sft import train
    rows, seen, theirs = rows_of(2 * steps)[0], recorder(), []

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kw): theirs.extend([logs["loss"]] if "loss" in logs else [])

    with tempfile.TemporaryDirectory() as tmp:
        write_jsonl(Path(tmp, "rows.jsonl"), rows)
        prep(Path(tmp, "rows.jsonl"), Path(tmp, "data"), ratios="100/0/0", near=None)
        config = Config(model=model_name, method="lora", data=str(Path(tmp, "data")), out=str(Path(tmp, "run")), max_steps=steps, per_device_train_batch_size=2, device="cpu", dtype="float32", save_steps=10**6)
        ours = [row["loss"] for row in train(config, progress=False, say=lambda text: None, callbacks=[seen]).log.train]
        loaded = load_model(model_name, device=Device("cpu", "float32", "benchmark", os.cpu_count()), attn="sdpa")
        model = adapt(loaded.model, "lora", config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad: p.copy_(seen.first[name])
        args = SFTConfig(output_dir=tmp, use_cpu=True, bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", max_steps=steps, per_device_train_batch_size=2, learning_rate=config.learning_rate,
                         warmup_steps=math.ceil(steps * config.warmup_ratio), lr_scheduler_type=config.lr_scheduler_type, weight_decay=config.weight_decay, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True)
        trainer = SFTTrainer(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=given(rows, loaded.tokenizer, seen.order), callbacks=[Losses()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return max(abs(x - y) / abs(y) for x, y in zip(ours, theirs, strict=True))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=1000)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=20, help="steps of the float32 comparison")
    p.add_argument("--rate", type=float, default=2e-4)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--no-expert", action="store_true", help="leave TRL as an expert sets it out")
    p.add_argument("--work", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.work: return work(json.loads(a.work))
    worst, rivals = same_losses(a.model, a.steps), [w for w in MARKS if not (a.no_expert and w.endswith("expert"))]
    print(f"quality: float32 losses of {a.steps} steps, largest relative difference from TRL's {worst:.1e}", flush=True)
    runs = {w: [] for w in ("ftlearn", *rivals)}
    for k in range(a.rounds):
        for w in runs:
            case = {"who": w, "rows": a.rows, "epochs": a.epochs, "model": a.model, "rate": a.rate}
            done = subprocess.run([sys.executable, __file__, "--work", json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True)
            runs[w].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {k + 1}, {w}: " + ", ".join(f"{n} {v:.3f}" for n, v in runs[w][-1].items() if n != "order"), flush=True)
        holds = record(a, runs, rivals, worst)
    for text, good in holds.items(): print(f"{verdict(good)}: {text}")
    return 0 if all(holds.values()) else 1


def record(a, runs, rivals, worst):
    "Write the rounds so far; {what is asked for: whether it holds}."
    mid = {w: {n: statistics.median(r[n] for r in rs) for n in rs[0] if n != "order"} for w, rs in runs.items()}
    same = len({r["order"] for w in ("ftlearn", "TRL defaults") for r in runs[w]}) == 1
    ratios = {w: [x["rows_a_second"] / y["rows_a_second"] for x, y in zip(runs["ftlearn"], runs[w])] for w in rivals}
    memory, loss = mid["ftlearn"]["peak_mb"] / mid["TRL defaults"]["peak_mb"], mid["ftlearn"]["validation_loss"] / mid["TRL defaults"]["validation_loss"]
    OUT.write_text(json.dumps({"date": str(datetime.date.today()), "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "rows": a.rows, "epochs": a.epochs, "rounds": len(runs["ftlearn"]), "runs": runs,
        "speed_ratios": ratios, "memory_ratio": memory, "validation_loss_ratio": loss, "same_order": same, "float32_difference": worst}, indent=1) + "\n")
    return {f"against {w} {told(r, MARKS[w], 2)}": min(r) >= MARKS[w] for w, r in ratios.items()} | {f"{memory:.3f} of the defaults' peak memory (at most 0.75)": memory <= 0.75,
        f"float32 losses within {worst:.1e} (at most 1e-4)": worst <= 1e-4, f"final validation loss {loss:.4f} of the defaults' (at most 1.01)": loss <= 1.01, "the same rows in the same order as the defaults": same}


if __name__ == "__main__": sys.exit(main())
