"""Log-likelihoods of choices on the CPU: `choice_scores` against lm-evaluation-harness's hf model at batch size 1, its default.

Three sets of questions: `grammar` (two whole sentences, without a context), `words` (a definition and four words), both from data/probes, and `labels` (definitions asked through the chat
template, 12 possible answers with their end-of-turn token, from data/definitions). The model is smollm2-135m-instruct in float32 on both sides, each loaded in its own default way; both sides start
from texts, so tokenizing is timed too. Runs alternate, and each must reach the mark; medians are the figures.
Mark: 4 times as fast over the three sets together. Condition: every log-likelihood equal to 1e-4 of its size (at least 1e-4), and the same choices picked.
lm-eval is imported from the folder given with --lm-eval (`pip install --target FOLDER lm-eval`), else from where Python finds it.
Exits 1 below the mark. `python benchmarks/choice_speed.py [--rows 60] [--runs 3] [--model smollm2-135m-instruct] [--lm-eval FOLDER]`"""
import argparse, os, statistics, sys

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
import numpy as np
import torch

from ftlearn.core import UserError
from ftlearn.data.formats import answer_of, prompt_of
from ftlearn.data.sources import load
from ftlearn.evaluate.choice import choice_scores
from ftlearn.evaluate.forget import load_slice
from ftlearn.model.load import fetch, load_model
from rounds import timed, told, verdict

MARK, CLOSE = 4, 1e-4


def sets(n):
    "{name: (rows, the choices of all rows or None)}; a third of the label rows, for each has 12 choices."
    labels = load("definitions")
    return {"grammar": (load_slice("grammar")[:n], None), "words": (load_slice("words")[:n], None),
            "labels": (labels[:max(1, n // 3)], sorted({answer_of(r) for r in labels}))}


def as_texts(rows, choices, tok):
    "(context, continuation) pairs for lm-eval, one list a row."
    if choices is None: return [[(r["context"], c) for c in r["choices"]] for r in rows]
    asked = [tok.apply_chat_template(prompt_of(r), tokenize=False, add_generation_prompt=True) for r in rows]
    return [[(q, c + tok.eos_token) for c in choices] for q in asked]


def rival(folder, path, threads):
    "lm-eval's model and its class of requests."
    if folder: sys.path.append(folder)
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError as e: raise UserError(f"lm-eval is not here ({e})", fix="pip install --target FOLDER lm-eval, then --lm-eval FOLDER") from None
    model = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=1)
    torch.set_num_threads(threads)
    def run(rows, choices, tok):
        asked = as_texts(rows, choices, tok)
        flat = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(p for row in asked for p in row)]
        found = iter(model.loglikelihood(flat, disable_tqdm=True))
        return [np.array([next(found)[0] for _ in row]) for row in asked]
    return run


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=60)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--lm-eval", metavar="FOLDER")
    args = p.parse_args()
    loaded = load_model(args.model, "cpu", "float32")
    threads = torch.get_num_threads()
    theirs = rival(args.lm_eval, fetch(args.model), threads)
    ours = lambda rows, choices, tok: choice_scores(loaded, rows, choices).logprobs
    print(f"{args.model} in float32, {threads} threads, {args.rows} rows")
    total, ok = {ours: np.zeros(args.runs), theirs: np.zeros(args.runs)}, True
    for name, (rows, choices) in sets(args.rows).items():
        for run in (ours, theirs): run(rows[:2], choices, loaded.tokenizer)                     # warm up
        times, out = {ours: [], theirs: []}, {}
        for _ in range(args.runs):
            for run in (ours, theirs):
                seconds, out[run] = timed(run, rows, choices, loaded.tokenizer)
                times[run].append(seconds)
        apart = max(float((np.abs(a - b)/np.maximum(1, np.abs(b))).max()) for a, b in zip(out[ours], out[theirs]))
        picked = sum(int(a.argmax() != b.argmax()) for a, b in zip(out[ours], out[theirs]))
        ok &= apart <= CLOSE and not picked
        a, b = (statistics.median(times[run]) for run in (ours, theirs))
        for run in total: total[run] += times[run]
        print(f"{name:8} {len(rows):4} rows, {sum(map(len, out[ours])):5} choices: ftlearn {a:7.2f} s  lm-eval {b:7.2f} s  {b/a:5.1f} times as fast; log-likelihoods within {apart:.0e}, {picked} picked differently", flush=True)
    ratios = total[theirs]/total[ours]
    ok &= bool(ratios.min() >= MARK)
    print(f"{verdict(ok)}: together {told(ratios, MARK)}, log-likelihoods equal to {CLOSE:g}")
    sys.exit(not ok)


if __name__ == "__main__":
    try: main()
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
