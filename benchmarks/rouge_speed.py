"""ROUGE of 1,000 pairs of 200 words: `rouge` against rouge_score, for ROUGE-1, -2 and -L, for Lsum, and with the stemmer.

The words are drawn as in language (a few often, most seldom) from 5,000 word forms; an answer keeps about half of its reference's words in place. For Lsum both have lines of 10
to 30 words. rouge_score is called once a pair, as in its README; ours once for all pairs. Everything is timed from texts to scores. Runs alternate, and medians count.
The condition: precision, recall and F of every pair equal to the last bit. Exits 1 below a mark. `python benchmarks/rouge_speed.py [--pairs 1000] [--runs 3]`"""
import os
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"
import argparse, random, statistics, sys

from rouge_score.rouge_scorer import RougeScorer

from ftlearn.evaluate.overlap import rouge
from rounds import timed, verdict

SETS = {"rouge1, rouge2, rougeL": (["rouge1", "rouge2", "rougeL"], False, 20), "rougeLsum": (["rougeLsum"], False, 5),
        "rouge1, rouge2, rougeL, stemmed": (["rouge1", "rouge2", "rougeL"], True, 5), "rougeLsum, stemmed": (["rougeLsum"], True, 5)}


def make(n, words=200, seed=0):
    "`n` predictions and references of `words` words each, in lines."
    rng = random.Random(seed)
    endings = ("", "", "s", "ing", "ed", "ly", "ation", "ness")
    forms = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(1, 7))) + rng.choice(endings) for _ in range(5000)]
    weights = [1 / (i + 3) for i in range(len(forms))]
    def lines(chosen):
        out, i = [], 0
        while i < len(chosen):
            k = rng.randint(10, 30)
            out.append(" ".join(chosen[i:i + k]).capitalize() + ".")
            i += k
        return "\n".join(out)
    gold = [rng.choices(forms, weights, k=words) for _ in range(n)]
    said = [[w if rng.random() < .5 else o for w, o in zip(g, rng.choices(forms, weights, k=words))] for g in gold]
    return [lines(s) for s in said], [lines(g) for g in gold]


def ours(said, gold, types, stem):
    r = rouge(said, gold, types, stemmer=stem)
    return {t: list(zip(r[t].precisions.tolist(), r[t].recalls.tolist(), r[t].values.tolist())) for t in types}


def theirs(said, gold, types, stem):
    scorer = RougeScorer(types, use_stemmer=stem)
    rows = [scorer.score(g, s) for s, g in zip(said, gold)]
    return {t: [tuple(map(float, r[t])) for r in rows] for t in types}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pairs", type=int, default=1000)
    p.add_argument("--runs", type=int, default=3)
    args = p.parse_args()
    said, gold = make(args.pairs)
    print(f"{args.pairs:,} pairs of 200 words")
    for run in (ours, theirs): run(said[:5], gold[:5], ["rouge1", "rougeL"], True)      # warm up
    ok = True
    for name, (types, stem, mark) in SETS.items():
        times = {ours: [], theirs: []}
        for i in range(args.runs):
            for run in (ours, ours, ours, theirs):                        # the short one is timed more often
                seconds, out = timed(run, said, gold, types, stem)
                times[run].append(seconds)
                if run is ours: mine = out
            equal = mine == out
        a, b = statistics.median(times[ours]), statistics.median(times[theirs])
        good = equal and b / a >= mark
        ok &= good
        print(f"{verdict(good)}: {name:32} ftlearn {a:7.3f} s  rouge_score {b:7.2f} s  {b / a:6.1f} times as fast (mark {mark}); bit-equal: {equal}", flush=True)
    sys.exit(not ok)


if __name__ == "__main__": main()
