"""Near duplicates among 20,000 rows: `near_duplicates` against datasketch's MinHash and MinHashLSH (128 numbers, threshold 0.8).

Rows are spliced from the texts in data/definitions and data/addresses; 2,000 of them are copies with some letters changed. Both sides get the same list
of texts and give the pairs with a Jaccard index of at least 0.8 of runs of 5 letters. What each must find is counted from sets, pair by pair, with no
hashing at all. Both run on one thread; runs alternate, and medians count. datasketch is timed as its documentation's first example uses it (`update`
for each shingle), and with the faster `update_batch`; the marks are held against the first, the second is printed. Exits 1 below a mark.
`python benchmarks/neardup_speed.py [--rows 20000] [--runs 3]`"""
import os
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[name] = "1"
import argparse, math, random, statistics, sys
from collections import Counter, defaultdict

from datasketch import MinHash, MinHashLSH

from ftlearn.core import data_root, read_jsonl
from ftlearn.data.duplicates import asked, near_duplicates, shingles
from rounds import timed, verdict

THRESHOLD, RATIO, QUALITY = 0.8, 30, 0.99


def make(n, seed=0):
    "`n` texts in random order, and the (original, copy) positions that were planted."
    rng = random.Random(seed)
    definitions, addresses = ([asked(r) for r in read_jsonl(data_root() / name / f"{name}.jsonl")] for name in ("definitions", "addresses"))
    def fresh():
        a, b = (rng.choice(definitions).split() for _ in range(2))
        text = " ".join(a[:rng.randint(3, max(3, len(a)))] + b[rng.randint(0, max(0, len(b) - 4)):])
        return text + (", " + rng.choice(addresses) if rng.random() < .4 else "")
    def copy(text):
        letters = list(text)
        for _ in range(rng.randint(1, 4)): letters[rng.randrange(len(letters))] = rng.choice("abcdefghijklmnopqrstuvwxyz")
        return "".join(letters)
    base = [fresh() for _ in range(n - n // 10)]
    parents = [rng.randrange(len(base)) for _ in range(n // 10)]
    texts, order = base + [copy(base[p]) for p in parents], rng.sample(range(n), n)
    at = {old: new for new, old in enumerate(order)}
    return [texts[i] for i in order], [tuple(sorted((at[p], at[len(base) + k]))) for k, p in enumerate(parents)]


def truth(texts):
    "{(i, j): index} of all pairs at or above the threshold, from Python sets: texts that share none of their rarest shingles are skipped, the others counted."
    sets, found, seen = [shingles(t) for t in texts], {}, defaultdict(list)
    often = Counter(s for one in sets for s in one)
    for j, one in enumerate(sets):
        rare = sorted(one, key=lambda s: (often[s], s))[:len(one) - math.ceil(THRESHOLD * len(one) - 1e-9) + 1]
        for i in {i for s in rare for i in seen[s]}:
            index = len(one & sets[i]) / len(one | sets[i])
            if index >= THRESHOLD - 1e-12: found[i, j] = index
        for s in rare: seen[s].append(j)
    return found


def ours(texts): return {(i, j) for i, j, _ in near_duplicates(texts, THRESHOLD)}


def sketch(texts, batch):
    "The pairs that datasketch's index gives."
    lsh, sketches, found = MinHashLSH(threshold=THRESHOLD, num_perm=128), [], set()
    for i, text in enumerate(texts):
        m, parts = MinHash(num_perm=128), [s.encode() for s in shingles(text)]
        if batch: m.update_batch(parts)
        else:
            for part in parts: m.update(part)
        sketches.append(m)
        lsh.insert(i, m)
    for i, m in enumerate(sketches): found |= {(i, j) for j in lsh.query(m) if j > i}
    return found


def quality(found, true, planted):
    "Recall on the planted pairs that reach the threshold, and the share of found pairs that are right."
    due = {p for p in planted if p in true}
    return len(found & due) / len(due), len(found & true.keys()) / max(1, len(found))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=20_000)
    p.add_argument("--runs", type=int, default=3)
    args = p.parse_args()
    texts, planted = make(args.rows)
    true = truth(texts)
    print(f"{len(texts):,} texts of {statistics.mean(map(len, texts)):.0f} letters; {len(planted):,} copies planted, {sum(q in true for q in set(planted)):,} of them at {THRESHOLD} or more; "
          f"{len(true):,} such pairs in all")
    near_duplicates(texts[:2000]), sketch(texts[:200], False), sketch(texts[:200], True)      # warm up
    sides, times, last = {"ftlearn": (ours,), "datasketch": (sketch, False), "datasketch, update_batch": (sketch, True)}, defaultdict(list), {}
    for _ in range(args.runs):
        for name, (run, *more) in sides.items():
            for _ in range(3 if name == "ftlearn" else 1):            # the short one is timed more often
                seconds, last[name] = timed(run, texts, *more)
                times[name].append(seconds)
    mine, ok = statistics.median(times["ftlearn"]), True
    for name in sides:
        recall, precision = quality(last[name], true, planted)
        median = statistics.median(times[name])
        print(f"{name:25} {median:8.3f} s  recall {recall:.4f}  precision {precision:.4f}" + ("" if name == "ftlearn" else f"  {median / mine:6.1f} times as long"))
        if name == "ftlearn": ok = recall >= QUALITY and precision >= QUALITY
    ratio = statistics.median(times["datasketch"]) / mine
    for mark, holds in ((f"at least {RATIO} times as fast: {ratio:.1f}", ratio >= RATIO), (f"recall and precision at least {QUALITY}", ok)): print(f"{verdict(holds)}: {mark}")
    sys.exit(not (ok and ratio >= RATIO))


if __name__ == "__main__": main()
