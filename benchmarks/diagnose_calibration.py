"""Calibrates `diagnose`: twelve faults, five seeds each, and twenty healthy runs, by the real trainer on a small model. Writes data/diagnose/.

    python benchmarks/diagnose_calibration.py tune      seeds 100 and 101, and 6 healthy runs: the thresholds were chosen on these
    python benchmarks/diagnose_calibration.py report    seeds 0-4 and 20 healthy runs: what is reported; never used to choose
    python benchmarks/diagnose_calibration.py show      the confusion matrix from the committed logs; no training

Exit 1 when fewer than 85 % of the faults are named rightly, or a healthy run raises an alarm. Each run takes a few seconds on one core.
"""
import argparse, gzip, json, random, sys, tempfile, time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "data" / "diagnose"
SEEDS = {"tune": range(100, 102), "report": range(5)}
HEALTHY = {"tune": range(200, 206), "report": range(20)}
KEEP = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy", "tokens", "trained_tokens", "answers", "ends", "with_gradient",
        "eval_loss", "eval_mean_token_accuracy")


def sane(seed):
    "Settings of a healthy run: any of them is what a careful person might choose."
    rng = random.Random(seed)
    method = rng.choice(["lora", "lora", "full", "dora"])
    rate = rng.choice([1e-3, 2e-3]) if method == "full" else rng.choice([3e-3, 5e-3, 8e-3])
    return dict(method=method, learning_rate=rate, r=rng.choice([8, 16, 32]), per_device_train_batch_size=rng.choice([8, 8, 12]), max_steps=rng.choice([40, 50]), seed=seed,
                lr_scheduler_type=rng.choice(["linear", "cosine", "constant"]), warmup_ratio=rng.choice([0.0, 0.05, 0.1]), lora_dropout=rng.choice([0.0, 0.05]))


def one(name, fault, seed, base, folder, settings=None, is_hard=False):
    "One run: its log as it was written, and what the experiments gave where they were asked for."
    from ftlearn.config import resolve
    from ftlearn.core import UserError, write_jsonl
    from ftlearn.teach.faults import injected, loose_answers, spoilt_config
    from ftlearn.tiny import tiny_rows
    from ftlearn.train import sft
    from ftlearn.train.diagnose import diagnose
    from ftlearn.train.log import read_log
    from ftlearn.train.probe import mismatch_probe, rate_probe
    import contextlib
    rows, here = tiny_rows(240, seed), Path(folder) / f"{name}-{seed}"
    here.mkdir(parents=True)
    write_jsonl(here / "rows.jsonl", loose_answers(rows, random.Random(seed)) if is_hard else rows)
    plain = dict(model=str(base), data=str(here / "rows.jsonl"), out=str(here / "run"), device="cpu", dtype="float32", split="80/10/10", eval_steps=10, save_steps=10**6,
                 method="lora", learning_rate=5e-3, max_steps=40, per_device_train_batch_size=8, seed=seed)
    config, asked, begin = resolve(plain | (settings or {}), settings=False), {}, time.time()
    if fault: config = spoilt_config(fault, config)
    with injected(fault) if fault else contextlib.nullcontext():
        run = None
        try: run = sft.train(config, progress=False, say=lambda text: None)
        except UserError as e:
            if "not a finite number" not in str(e): raise
        probe = rate_probe(config)
        def rates(factor): return asked.setdefault("rates", {}).setdefault(str(factor), [round(v, 4) for v in probe(factor)])
        def mismatch(): return asked.setdefault("mismatch", [round(v, 5) for v in mismatch_probe(run)()])
        log = read_log(here / "run" / "log.jsonl")
        d = diagnose(log, rates=rates, mismatch=mismatch if run else None)
    rows = [{k: (round(v, 5) if isinstance(v, float) else v) for k, v in r.items() if k in KEEP or k == "nonfinite"} for r in log.rows]
    print(f"{name:18} seed {seed:3}  {time.time() - begin:5.1f} s  {', '.join(d.codes)}", flush=True)
    return dict(fault=name, seed=seed, settings=settings or {}, hard=is_hard, rows=rows, asked=asked)


def make(which):
    "All runs of a set, one line of gzipped JSON each."
    import torch
    from ftlearn.train.log import log_line
    from ftlearn.teach.faults import FAULTS, small_base
    torch.set_num_threads(1)
    begin, done = time.time(), []
    OUT.mkdir(exist_ok=True)
    (OUT / "codes.json").write_text(json.dumps({f.name: f.code for f in FAULTS.values()}, indent=1) + "\n")
    todo = [(f.name, f, seed, None) for seed in SEEDS[which] for f in FAULTS.values()] + [("healthy", None, seed, sane(seed)) for seed in HEALTHY[which]]
    with tempfile.TemporaryDirectory() as folder:
        base = small_base(Path(folder) / "base")
        for name, fault, seed, settings in todo:
            run = one(name, fault, seed, base, folder, settings, is_hard=fault is None and seed % 4 == 3)
            run["rows"] = [json.loads(log_line(r)) for r in run["rows"]]
            done.append(json.dumps(run, separators=(",", ":")) + "\n")
    (OUT / f"{which}.jsonl.gz").write_bytes(gzip.compress("".join(done).encode(), mtime=0))
    print(f"{len(done)} runs in {time.time() - begin:.0f} s")


def show(which):
    "The confusion matrix; True when the marks are met."
    from ftlearn.teach.faults import FAULTS
    from ftlearn.train.diagnose import read_recorded
    runs = read_recorded(OUT / f"{which}.jsonl.gz")
    table, right, alarms = Counter(), 0, 0
    for run in runs:
        d = run.diagnose()
        if run.fault == "healthy": alarms += not d.ok; table["healthy", "healthy" if d.ok else d.codes[0]] += 1
        else: right += d.codes[0] == FAULTS[run.fault].code; table[run.fault, d.codes[0]] += 1
    for (fault, code), n in sorted(table.items()): print(f"{n:4}  {fault:18} -> {code}")
    faults = sum(r.fault != "healthy" for r in runs)
    print(f"{which}: {right} of {faults} faults named rightly ({right/faults:.0%}); {alarms} alarms on {len(runs) - faults} healthy runs")
    return right >= 0.85*faults and not alarms


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["tune", "report", "show"])
    what = p.parse_args().what
    if what != "show": make(what)
    sys.exit(0 if show("report" if what == "show" else what) else 1)
