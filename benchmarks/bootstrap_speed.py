"""Two bootstraps against the ones that people use.

1. Paired bootstrap of BLEU and chrF, 5,000 rows, 1,000 resamples: `paired_bootstrap` on the counts per row against `sacrebleu.significance` on the same counts (its
   `_paired_bs_test`, handed the counts, so that only redrawing, scoring and p are timed on both sides; ours also swaps rows 1,000 times for its p). Memory is the peak that tracemalloc sees,
   in runs of their own. Marks: 3 times as fast, a twentieth of the memory. Condition: the difference equal to 1e-6, the intervals' widths within a tenth.
2. Bootstrap of F1 over 2,000 right-or-wrong labels: `resampled` with 100,000 resamples against `bootstrap_stderr` of lm-evaluation-harness with 50,000 (--f1-theirs), as it is by default (a process for each core).
   Its 100,000 take four minutes; the times are compared as they are, so ours does twice the work.
   Mark: 50 times. Condition: the standard errors within a hundredth of each other. It is imported from the folder given with --lm-eval
   (`pip install --no-deps --target FOLDER lm-eval`); without one its published routine, restated below, is run, and the output says so.

Ours runs on one thread. Runs alternate, and each must reach the marks (of ours, three go with one of theirs, and their median counts); medians are the figures. Exits 1 below a mark. `python benchmarks/bootstrap_speed.py [--runs 3] [--lm-eval FOLDER]`"""
import os
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"
import argparse, math, multiprocessing as mp, random, statistics, sys, tracemalloc

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import Result, _paired_bs_test
from sklearn.metrics import f1_score

from ftlearn.evaluate.match import class_f1
from ftlearn.evaluate.overlap import bleu, chrf
from ftlearn.stats import paired_bootstrap, resampled
from rounds import timed, told, verdict


def peak(run, *args):
    "The most bytes held at once while `run` runs, beyond what was there before."
    tracemalloc.start()
    run(*args)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


# --- BLEU and chrF

def texts(n, seed=0):
    "References, and two systems: the first keeps 60 % of the words, the second 62 %."
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(2, 8))) for _ in range(3000)]
    gold = [rng.choices(words, k=rng.randint(8, 30)) for _ in range(n)]
    system = lambda keep: [" ".join(w if rng.random() < keep else rng.choice(words) for w in g) for g in gold]
    return [" ".join(g) for g in gold], system(.60), system(.62)


class Given:
    "A sacrebleu metric that has its counts already."
    def __init__(self, metric, rows): self.metric, self.rows = metric, rows
    def _extract_corpus_statistics(self, hypotheses, references): return self.rows
    def _aggregate_and_compute(self, rows): return self.metric._aggregate_and_compute(rows)
    def _compute_score_from_stats(self, stats): return self.metric._compute_score_from_stats(stats)


def theirs_paired(metric, base, tuned, n):
    rows = [[[int(x) for x in r] for r in s.rows] for s in (base, tuned)]
    def run():
        out = _paired_bs_test({"m": (rows[0], Result(base.score))}, "tuned", [""] * len(base), None, {"m": Given(metric, rows[1])}, n, seed=12345)[1]["m"]
        return out.score - base.score, 2 * out.ci
    return run


def ours_paired(base, tuned, n):
    def run(): return paired_bootstrap(base.rows, tuned.rows, n_resamples=n, statistic=base.statistic)
    return run


def paired(rows, resamples, runs):
    gold, a, b = texts(rows)
    ok = True
    for name, score, metric in (("BLEU", bleu, BLEU()), ("chrF", chrf, CHRF())):
        base, tuned = score(a, gold), score(b, gold)
        mine, other = ours_paired(base, tuned, resamples), theirs_paired(metric, base, tuned, resamples)
        mine(), ours_paired(base, tuned, 10)()
        times = {mine: [], other: []}
        for _ in range(runs):
            took = [timed(mine) for _ in range(3)]
            last = took[-1][1]
            times[mine].append(statistics.median(seconds for seconds, _ in took))
            seconds, out = timed(other)
            times[other].append(seconds)
        memory = peak(other) / peak(mine)
        ratios = [b / a for a, b in zip(times[mine], times[other])]
        draws = resampled(tuned.rows, tuned.statistic, resamples)
        width = (np.quantile(draws, .975) - np.quantile(draws, .025)) / out[1]
        equal = abs(last.difference - out[0]) < 1e-6 and abs(width - 1) < 0.1
        good = min(ratios) >= 3 and memory >= 20 and equal
        ok &= good
        print(f"{verdict(good)}: paired bootstrap of {name}, {rows:,} rows, {resamples:,} resamples: ftlearn {statistics.median(times[mine]):.3f} s, "
              f"sacrebleu {statistics.median(times[other]):.3f} s, {told(ratios, 3)}, 1/{memory:.0f} of its memory (mark 1/20); same difference "
              f"({last.difference:.3f}) and width of the interval (ratio {width:.3f}): {equal}", flush=True)
    return ok


# --- F1

def f1(items):
    "lm-eval's aggregation of F1: `items` are (right, said) pairs."
    gold, said = zip(*items)
    return np.max(f1_score(gold, said))


class Draw:
    "Restated from lm-evaluation-harness (MIT), lm_eval/api/metrics.py: `n` draws with a generator seeded with `i`."
    def __init__(self, f, n): self.f, self.n = f, n
    def __call__(self, v):
        i, xs = v
        rnd = random.Random()
        rnd.seed(i)
        return [self.f(rnd.choices(xs, k=len(xs))) for _ in range(self.n)]


def restated(f, xs, iters):
    res, chunk = [], min(1000, iters)
    with mp.Pool(mp.cpu_count()) as pool:
        for part in pool.imap(Draw(f, chunk), [(i, xs) for i in range(iters // chunk)]): res.extend(part)
    mean = sum(res) / len(res)
    return math.sqrt(sum((x - mean)**2 for x in res) / (len(res) - 1))


def lm_eval(folder):
    "The real routine where the package is at hand, else the restated one; and its name."
    if not folder: return restated, "restated from lm-evaluation-harness"
    sys.path.append(folder)
    from lm_eval.api.metrics import bootstrap_stderr
    return bootstrap_stderr, "lm_eval.api.metrics.bootstrap_stderr"


def stderr_of_f1(rows, resamples, theirs, runs, folder):
    rng = random.Random(1)
    gold = [str(int(rng.random() < .4)) for _ in range(rows)]
    said = [g if rng.random() < .8 else str(1 - int(g)) for g in gold]
    items = [(int(g), int(s)) for g, s in zip(gold, said)]
    routine, which = lm_eval(folder)
    s = class_f1(said, gold, labels=["0", "1"], average="macro")
    k = len(s.rows[0]) // 3
    one = lambda sums: 2 * sums[:, 1] / (sums[:, k + 1] + sums[:, 2*k + 1])       # F1 of the label "1", as lm-eval takes it
    mine = lambda: float(resampled(s.rows, one, resamples).std(ddof=1))
    mine()
    times = {"mine": [], "theirs": []}
    for _ in range(runs):
        took = [timed(mine) for _ in range(3)]
        a = took[-1][1]
        times["mine"].append(statistics.median(seconds for seconds, _ in took))
        seconds, b = timed(routine, f1, items, theirs)
        times["theirs"].append(seconds)
    ratios, equal = [y / x for x, y in zip(times["mine"], times["theirs"])], abs(a / b - 1) < 0.01
    good = min(ratios) >= 50 and equal
    print(f"{verdict(good)}: standard error of F1, {rows:,} rows: ftlearn {resamples:,} resamples in {statistics.median(times['mine']):.3f} s, {which} {theirs:,} on "
          f"{mp.cpu_count()} cores {statistics.median(times['theirs']):.1f} s, {told(ratios, 50, 0)}; {a:.5f} and {b:.5f}, within a hundredth: {equal}", flush=True)
    return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=5000)
    p.add_argument("--resamples", type=int, default=1000)
    p.add_argument("--f1-resamples", type=int, default=100_000)
    p.add_argument("--f1-theirs", type=int, default=50_000, help="resamples of lm-eval's routine, which needs four minutes for 100,000; nothing is scaled, so fewer only help it")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--lm-eval", help="a folder with lm_eval in it")
    args = p.parse_args()
    ok = paired(args.rows, args.resamples, args.runs)
    ok &= stderr_of_f1(2000, args.f1_resamples, args.f1_theirs, args.runs, args.lm_eval)
    sys.exit(not ok)


if __name__ == "__main__": main()
