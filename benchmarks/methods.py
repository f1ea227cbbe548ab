"""Six methods on one task: full, LoRA, QLoRA, DoRA, prompt tuning, IA3. Same rows, same order, same steps; each run in a process of its own.

For each method three learning rates are tried for a sixth of the steps, and three times the highest for as long as the highest is the best (six in all at most). The one with the lowest loss on 40 of the validation rows is taken. The final run
gives seconds a step, peak memory, trained parameters, and on the other validation rows and the test rows (never seen in training or in the choice of the rate) the loss of
each row and whether its answer is right token by token. Every finished run is in benchmarks/methods.json at once, and is not repeated: stop it and go on as you like.

`python benchmarks/methods.py [--steps 40] [--model smollm2-135m-instruct] [--methods lora,dora] [--out benchmarks/methods.json] [--fresh]`. 20 to 30 minutes on two cores."""
import argparse, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RATES = {"lora": (3e-4, 1e-3, 3e-3), "qlora": (3e-4, 1e-3, 3e-3), "dora": (3e-4, 1e-3, 3e-3), "full": (2e-5, 5e-5, 1.5e-4), "prompt": (3e-3, 1e-2, 3e-2), "ia3": (3e-3, 1e-2, 3e-2)}
BATCH, CHOOSING, HELD_OUT, MOST_RATES = 8, 40, 160, 6


def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)     # bytes there, kB elsewhere


def row_quality(model, encoded, pad_id, batch=16):
    "(mean loss of each row's labels, whether all of them are predicted right)."
    import torch
    from torch.nn.functional import cross_entropy
    from ftlearn.data.encode import collate
    from ftlearn.train.sft import head_at, predicting
    losses, right, order = [0.0] * len(encoded), [0] * len(encoded), sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    model.eval()
    for at in range(0, len(order), batch):
        rows = order[at:at + batch]
        b = collate([encoded[i] for i in rows], pad_id)
        keep = predicting(b["labels"])
        targets = b["labels"][:, 1:][keep[:, :-1]]
        with torch.no_grad(), head_at(model, keep): logits = model(input_ids=b["input_ids"], attention_mask=b["attention_mask"], use_cache=False).logits.float()
        each, hit, counts = cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets, keep.sum(1).tolist()
        for i, l, h in zip(rows, each.split(counts), hit.split(counts)): losses[i], right[i] = round(l.mean().item(), 6), int(h.all())
    return losses, right


def one(task):
    "Train once (or not at all, for the base alone), and measure."
    import torch
    from ftlearn.config import resolve
    from ftlearn.core import write_jsonl
    from ftlearn.data import sources
    from ftlearn.data.encode import encode_rows
    from ftlearn.data.split import prep
    from ftlearn.train.sft import load_tuned, prepare_model, train
    say = lambda text: print("   ", text, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, card = sources.find(task["data"])
        splits = prep(path, Path(folder) / "all", ratios="60/15/25", seed=0, group=card and card.group)
        rows = splits.train[:BATCH * task["steps"]]
        write_jsonl(Path(folder) / "rows.jsonl", rows)
        config = resolve({"model": task["model"], "method": task["method"] or "lora", "data": str(Path(folder) / "rows.jsonl"), "split": "100/0/0", "out": str(Path(folder) / "run"), "seed": 0,
                          "max_steps": task["steps"], "per_device_train_batch_size": BATCH, "learning_rate": task["rate"] or 1e-3, "max_length": 512}, settings=False)
        run = train(config, progress=False, say=say) if task["method"] else None
        peak, log, manifest = peak_mb(), run.log.train if run else [], run.manifest if run else {"trainable": 0, "parameters": 0, "seconds": 0.0}
        times = sorted(b["seconds"] - a["seconds"] for a, b in zip(log, log[1:]))
        loaded = load_tuned(run, say=str) if run else prepare_model(config, say=say)[0]
        held_out = splits.validation[:CHOOSING] if task["choosing"] else (splits.validation[CHOOSING:] + splits.test)[:HELD_OUT]
        losses, right = row_quality(loaded.model, list(encode_rows(held_out, loaded.tokenizer)), loaded.tokenizer.pad_token_id)
    return {**task, "learning_rate": task["rate"], "seconds": manifest["seconds"], "seconds_per_step": times[len(times) // 2] if times else 0.0, "peak_mb": round(peak, 1), "trained": manifest["trainable"],
            "parameters": manifest["parameters"], "row_loss": losses, "correct": right, "final_training_loss": log[-1]["loss"] if log else None, "threads": torch.get_num_threads(), "rows": len(rows)}


def in_process(*tasks):
    "`one` of each task in a new process, so that memory and caches are its own."
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        r = subprocess.run([sys.executable, __file__, "--tasks", json.dumps(tasks), "--out", str(answer)], env=env)
        if r.returncode: sys.exit(f"stopped: {tasks} failed with exit code {r.returncode}")
        found = json.loads(answer.read_text())
    for f in found:
        print(f"{f['method'] or 'base'} at {f['rate']:g}, {f['steps']} steps: loss {sum(f['row_loss']) / len(f['row_loss']):.3f}, right {sum(f['correct'])} of {len(f['correct'])}, "
              f"{f['seconds_per_step']:.2f} s a step, peak {f['peak_mb']:,.0f} MB", flush=True)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--data", default="addresses")
    p.add_argument("--methods", default=",".join(RATES))
    p.add_argument("--out", type=Path, default=HERE / "methods.json")
    p.add_argument("--fresh", action="store_true", help="forget what was measured before")
    p.add_argument("--tasks", type=json.loads, help=argparse.SUPPRESS)
    a = p.parse_args()
    from ftlearn.core import write_json
    if a.tasks: return write_json(a.out, [one(t) for t in a.tasks])
    about = {"model": a.model, "data": a.data, "steps": a.steps, "batch": BATCH, "held_out": HELD_OUT, "rates": {k: list(v) for k, v in RATES.items()}}
    book = {**about, "runs": {}, "tried": {}, "base": None}
    if a.out.exists() and not a.fresh:
        old = json.loads(a.out.read_text())
        if differ := [k for k in about if old.get(k) != about[k]]: sys.exit(f"{a.out} holds other settings ({', '.join(differ)}): give another --out, or --fresh to begin anew")
        book = old
    def keep(): write_json(a.out, book)
    task = lambda method, rate, steps, choosing: {"method": method, "rate": rate, "steps": steps, "choosing": choosing, "model": a.model, "data": a.data}
    for method in a.methods.split(","):
        if method not in RATES: sys.exit(f"unknown method {method!r}; there are {', '.join(RATES)}")
        rates, named = list(RATES[method]), lambda rate: f"{method} {rate:g}"
        while True:
            if missing := [rate for rate in rates if named(rate) not in book["tried"]]:
                book["tried"] |= {named(f["rate"]): round(sum(f["row_loss"]) / len(f["row_loss"]), 5) for f in in_process(*(task(method, rate, max(1, a.steps // 6), True) for rate in missing))}
                keep()
            best = min(rates, key=lambda rate: book["tried"][named(rate)])
            if best < rates[-1] or len(rates) == MOST_RATES: break
            rates.append(float(f"{3 * best:.2g}"))
        if book["runs"].get(method, {}).get("rate") == best: continue
        (book["runs"][method],) = in_process(task(method, best, a.steps, False))
        book["threads"], book["measured"] = book["runs"][method]["threads"], time.strftime("%Y-%m-%d")
        keep()
    if not book["base"]:
        (found,) = in_process(task(None, 0.0, 1, False))
        book["base"] = {k: found[k] for k in ("row_loss", "correct")}
        keep()
    from ftlearn.model.methods import MethodResults
    print("\n" + MethodResults(book)._repr_markdown_())


if __name__ == "__main__": main()
