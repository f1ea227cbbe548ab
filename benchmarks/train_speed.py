"""Whole LoRA runs on the CPU: ftlearn against TRL's SFTTrainer with its defaults and as an expert sets it. Same rows, same prompts, same adapter (rank 16 on all linear layers), one process a run, runs alternate.

The clock runs from the loaded Python packages to the trained adapter: loading the model, tokenizing and every step are in it. Prints labelled rows a second, peak memory (VmHWM, the largest resident size of the process), and
the ratios of the medians. Quality: in float32, in file order, the losses of the first steps equal TRL's to 1e-4 relative; in the fast mode the final loss on rows that were not trained on is at most 1 % above that of TRL's
defaults after the same rows. Marks: 5 times the defaults, 2.5 times the expert, 0.75 of the defaults' memory; exit 1 otherwise.
`python benchmarks/train_speed.py [--rows 1000] [--epochs 2] [--rounds 3] [--model smollm2-135m-instruct] [--steps 20]`"""
import argparse, contextlib, datetime, json, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
HERE = Path(__file__).resolve().parent
OUT, HELD_BACK = HERE / "train_speed.json", 76
MARKS = {"TRL defaults": 5.0, "TRL, expert": 2.5}


def peak_mb():
    "The largest resident size of this process so far, in MB."
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1e3


def rows_of(n):
    "(training rows, rows to measure the loss on) of the addresses."
    from ftlearn.data import sources
    from ftlearn.data.split import split_rows
    splits = split_rows(sources.load("addresses"), "78/6/16", seed=42)
    return [splits.train[i % len(splits.train)] for i in range(n)], splits.validation[:HELD_BACK]


def ours(case, tmp):
    "A function that trains, and gives the model and its tokenizer."
    from ftlearn.config import Config
    from ftlearn.core import write_jsonl
    from ftlearn.data.split import prep
    from ftlearn.train.sft import load_tuned, train
    train_rows, _ = rows_of(case["rows"])
    write_jsonl(Path(tmp, "rows.jsonl"), train_rows)
    prep(Path(tmp, "rows.jsonl"), Path(tmp, "data"), ratios="100/0/0", near=None)
    config = Config(model=case["model"], method="lora", data=str(Path(tmp, "data")), out=str(Path(tmp, "run")), num_train_epochs=case["epochs"], learning_rate=case["rate"], per_device_train_batch_size=8,
                    save_steps=10**6, warmup_ratio=0.05)
    def go(): return train(config, progress=False, say=str)
    def tuned(run):
        loaded = load_tuned(run, str)
        return loaded.model, loaded.tokenizer
    return go, tuned


def trl(case, tmp, expert):
    import datasets
    from ftlearn.config import Config
    from ftlearn.core import Device
    from ftlearn.data.formats import answer_of, prompt_of
    from ftlearn.model.adapt import adapt
    from ftlearn.model.load import load_model
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer
    train_rows, _ = rows_of(case["rows"])
    data = datasets.Dataset.from_list([{"prompt": prompt_of(r), "completion": [{"role": "assistant", "content": answer_of(r)}]} for r in train_rows])
    better = {"bf16": True, "gradient_checkpointing": False, "packing": True, "max_length": 512, "train_sampling_strategy": "group_by_length"} if expert else {}
    def go():
        loaded = load_model(case["model"], device=Device("cpu", "bfloat16" if expert else "float32", "benchmark", os.cpu_count()), attn="sdpa")
        model = adapt(loaded.model, "lora", Config(method="lora"))
        args = SFTConfig(output_dir=str(tmp), use_cpu=True, num_train_epochs=case["epochs"], per_device_train_batch_size=2 if expert else 8, learning_rate=case["rate"], save_strategy="no", report_to="none", disable_tqdm=True,
                         warmup_steps=0.05, **better)
        trainer = SFTTrainer(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.model, loaded.tokenizer
    return go, lambda pair: pair


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
        go, tuned = ours(case, tmp) if case["who"] == "ftlearn" else trl(case, tmp, case["who"].endswith("expert"))
        start = time.perf_counter()
        result = go()
        found = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
        found["validation_loss"] = validation_loss(*tuned(result), rows_of(case["rows"])[1])
    print(json.dumps(found | {"rows_a_second": case["rows"] * case["epochs"] / found["seconds"]}))


def same_losses(model_name, steps):
    "The largest relative difference between the float32 losses of the first steps, ours against TRL's, in file order."
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from ftlearn.config import Config
    from ftlearn.core import Device, seed_everything
    from ftlearn.data.encode import encode_rows
    from ftlearn.data.formats import answer_of, prompt_of
    from ftlearn.model.adapt import adapt
    from ftlearn.model.load import load_model
    from ftlearn.train.sft import _sft_config, _trainer_class
    config, (rows, _) = Config(model=model_name, method="lora", max_steps=steps, per_device_train_batch_size=2, device="cpu", dtype="float32"), rows_of(2 * steps)

    class Losses(TrainerCallback):
        def __init__(self): self.seen = []
        def on_log(self, args, state, control, logs=None, **kw): self.seen += [logs["loss"]] if "loss" in logs else []

    def run(who, tmp):
        loaded, losses = load_model(model_name, device=Device("cpu", "float32", "benchmark", os.cpu_count())), Losses()
        seed_everything(0)
        model = adapt(loaded.model, "lora", config)
        mine = _sft_config(config, loaded.device, tmp, len(rows), 0)
        if who == "ours":
            data = [{"input_ids": e.input_ids, "labels": e.labels} for e in encode_rows(rows, loaded.tokenizer, 256)]
            mine.eval_strategy = mine.save_strategy = "no"
            mine.train_sampling_strategy, make, args = "sequential", _trainer_class(), mine
        else:
            data, make = [{"prompt": prompt_of(r), "completion": [{"role": "assistant", "content": answer_of(r)}]} for r in rows], SFTTrainer
            args = SFTConfig(output_dir=tmp, use_cpu=True, bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", max_steps=steps, per_device_train_batch_size=2,
                             learning_rate=mine.learning_rate, warmup_steps=mine.warmup_steps, lr_scheduler_type=mine.lr_scheduler_type, weight_decay=mine.weight_decay, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True)
        trainer = make(model=model, args=args, processing_class=loaded.tokenizer, train_dataset=datasets.Dataset.from_list(data), callbacks=[losses])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return losses.seen

    with tempfile.TemporaryDirectory() as tmp: first, second = run("ours", tmp), run("TRL", tmp)
    return max(abs(x - y) / abs(y) for x, y in zip(first, second, strict=True))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=1000)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=20, help="steps of the float32 comparison")
    p.add_argument("--rate", type=float, default=2e-4)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--work", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.work: return work(json.loads(a.work))
    worst, who = same_losses(a.model, a.steps), ["ftlearn", *MARKS]
    print(f"quality: float32 losses of {a.steps} steps, largest relative difference from TRL's {worst:.1e}", flush=True)
    runs = {w: [] for w in who}
    for k in range(a.rounds):
        for w in who:
            case = {"who": w, "rows": a.rows, "epochs": a.epochs, "model": a.model, "rate": a.rate}
            done = subprocess.run([sys.executable, __file__, "--work", json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True)
            runs[w].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {k + 1}, {w}: " + ", ".join(f"{n} {v:.3f}" for n, v in runs[w][-1].items()), flush=True)
    mid = {w: {n: statistics.median(r[n] for r in rs) for n in rs[0]} for w, rs in runs.items()}
    ratios = {w: mid["ftlearn"]["rows_a_second"] / mid[w]["rows_a_second"] for w in MARKS}
    memory, loss = (mid["ftlearn"][n] / mid["TRL defaults"][n] for n in ("peak_mb", "validation_loss"))
    holds = {f"{r:.2f} times as fast as {w} (at least {MARKS[w]:g})": r >= MARKS[w] for w, r in ratios.items()} | {f"{memory:.2f} of the defaults' peak memory (at most 0.75)": memory <= 0.75,
        f"float32 losses within {worst:.1e} (at most 1e-4)": worst <= 1e-4, f"final validation loss {loss:.4f} of the defaults' (at most 1.01)": loss <= 1.01}
    for text, ok in holds.items(): print("holds:         " if ok else "DOES NOT HOLD: ", text)
    OUT.write_text(json.dumps({"date": str(datetime.date.today()), "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "rows": a.rows, "epochs": a.epochs, "rounds": a.rounds, "runs": runs,
        "speed_ratios": ratios, "memory_ratio": memory, "validation_loss_ratio": loss, "float32_difference": worst}, indent=1) + "\n")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__": sys.exit(main())
