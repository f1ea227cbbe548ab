"""The ladder of the four shipped sets: majority, nearest row, word count, the domain's own tool, zero-shot, few-shot, tuned. Results in benchmarks/ladder.json.

    python benchmarks/ladder.py                                  the cheap rungs of all sets (seconds to minutes, no language model)
    python benchmarks/ladder.py --prompt --rows 300              zero-shot and few-shot of the 135M model as well, on the first 300 test rows
    python benchmarks/ladder.py --sets addresses --run runs/demo the tuned model of a run, with the run's own split

Resumable: each rung's predictions are kept in runs/ladder/SET-N/, a generation's answers in the store beside them; what is there is not made again (--again makes
the rungs anew, not the stored answers). A set's rungs all answer the same rows: all test rows, or with --rows the first of them.
The set's own split is that of its card; with --run it is that of the run."""
import argparse, os, platform, sys, time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from ftlearn.core import UserError, read_json, read_jsonl, sha256_file, sha256_json, versions, write_json
from ftlearn.data.duplicates import asked
from ftlearn.data.sources import card, load
from ftlearn.data.split import load_splits, split_rows
from ftlearn.evaluate.baselines import (Ladder, Rung, address_crf, by_function, copied, few_shot, from_predictions, ladder, majority, nearest_row, word_count, zero_shot)

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"addresses": "exact_match,field_f1", "definitions": "exact_match,f1", "reviews": "exact_match,f1", "verses": "chrf,bleu,rougeL"}
TOKENS = {"addresses": 96, "definitions": 12, "reviews": 12, "verses": 96}
DEMO_SPLIT = ("78/6/16", 42)   # settings.ini's split and the demo's seed, so that its 210 test rows are these


def splits(name, run):
    "Train and test rows of a set, and how they were divided."
    if run:
        s = load_splits(Path(run) / "data")
        return s.train, s.test, f"the run {Path(run).name}"
    c = card(name)
    ratios, seed = DEMO_SPLIT if name == "addresses" else (c.split, 0)
    s = split_rows(load(name), ratios, seed, c.group)
    return s.train, s.test, f"{ratios}, seed {seed}" + (f", by {c.group}" if c.group else "")


def vader(test):
    "vaderSentiment's own word list and thresholds. Its list was not fitted to these sentences, its authors tested it on them."
    try: from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError: raise UserError("the package vaderSentiment is not installed", fix="pip install vaderSentiment") from None
    score = SentimentIntensityAnalyzer().polarity_scores
    def label(text): c = score(text)["compound"]; return "positive" if c >= .05 else "negative" if c <= -.05 else "neutral"
    return by_function("VADER", label, test, "the package vaderSentiment, a list of rated words and some rules")


def rule_rungs(name, train, test):
    "Name to a function that makes the rung."
    out = {"majority": lambda: majority(train, test), "nearest row": lambda: nearest_row(train, test)}
    if name in ("definitions", "reviews"): out["word count"] = lambda: word_count(train, test)
    if name == "addresses": out["address CRF"] = lambda: address_crf(train, test)
    if name == "reviews": out["VADER"] = lambda: vader(test)
    if name in ("verses", "addresses"): out["copy the question"] = lambda: copied(test)
    return out


def prompt_rungs(name, train, test, folder, k, batch, model):
    "The same for the rungs of the language model, which is loaded when the first of them is wanted."
    held = []
    def engine():
        if not held:
            from ftlearn.model.load import load_model
            held.append(load_model(model))
        return held[0]
    how = dict(max_new_tokens=TOKENS[name], batch_size=batch, store=folder / "store.jsonl")
    return {"zero-shot": lambda: zero_shot(engine(), test, **how),
            f"few-shot, {k} fixed": lambda: few_shot(engine(), train, test, k, "fixed", **how),
            f"few-shot, {k} nearest": lambda: few_shot(engine(), train, test, k, "nearest", **how)}


def tuned_rung(run, test):
    "The tuned model of a run: its predictions, and the time that its manifest tells."
    m, rows = read_json(Path(run) / "manifest.json"), {str(p["id"]): p for p in read_jsonl(Path(run) / "predictions" / "tuned.jsonl")}
    batch = m["identity"]["settings"].get("generation_batch_size") or int(next(l.split("=")[1] for l in (Path(run) / "config.toml").read_text().splitlines() if l.startswith("generation_batch_size")))
    return from_predictions("tuned", [rows[str(r["id"])] for r in test], how=f"{m['method']}, {m['data']['rows']['train']:,} rows", rows=m["data"]["rows"]["train"], once=m["seconds"], batch=batch)


def kept(folder, name, what, make, again):
    "The rung from its file if that was made from the same rows, else made and written."
    file = folder / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if file.is_file() and not again:
        d = read_json(file)
        if d.pop("from") == what: return Rung(**d)
        print(f"  {name}: made from other rows or code; it is made again", flush=True)
    start = time.perf_counter()
    rung = make()
    write_json(file, {"from": what, **{k: getattr(rung, k) for k in Rung.__dataclass_fields__}})
    print(f"  {name}: {time.perf_counter() - start:.1f} s", flush=True)
    return rung


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sets", default=",".join(METRICS)); p.add_argument("--rows", type=int, default=0, help="the first N test rows; 0 takes all")
    p.add_argument("--prompt", action="store_true", help="zero-shot and few-shot too"); p.add_argument("--k", type=int, default=4); p.add_argument("--batch", type=int, default=32)
    p.add_argument("--model", default="smollm2-135m-instruct"); p.add_argument("--run", help="a run directory of one of the sets"); p.add_argument("--again", action="store_true")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "ladder.json"); p.add_argument("--margin", type=float, default=0.02)
    a = p.parse_args()
    names = a.sets.split(",")
    if a.run and len(names) != 1: sys.exit("--run needs one set: --sets addresses --run runs/demo")
    record = read_json(a.out) if a.out.is_file() else {"sets": {}}
    for name in names:
        train, test, how = splits(name, a.run)
        test = test[:a.rows or None]
        folder = ROOT / "runs" / "ladder" / f"{name}-{len(test)}"
        folder.mkdir(parents=True, exist_ok=True)
        what = sha256_json([[r["id"] for r in train], [r["id"] for r in test], sha256_file(ROOT / "ftlearn" / "evaluate" / "baselines.py")])
        print(f"{name}: {len(train):,} training rows, {len(test):,} test rows ({how})", flush=True)
        makers = rule_rungs(name, train, test)
        if a.prompt: makers |= prompt_rungs(name, train, test, folder, a.k, a.batch, a.model)
        rungs = [kept(folder, n, sha256_json([what, a.model, a.batch]) if "shot" in n else what, make, a.again) for n, make in makers.items()]
        if a.run: rungs.append(tuned_rung(a.run, test))
        l = ladder(rungs, METRICS[name], margin=a.margin)
        record["sets"][name] = {"train_rows": len(train), "split": how, "data": sha256_file(Path(a.run) / "data" / "train.jsonl") if a.run else card(name).sha256, "ladder": l.to_dict()}
        record["made"] = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores", "packages": versions("scikit-learn", "torch", "transformers", "usaddress")}
        write_json(a.out, record)
        print(l._repr_markdown_(), "\n", flush=True)


if __name__ == "__main__": main()
