"""Validating a JSONL file against a bare `json.loads` loop over its lines: the same file, each in a process of its own, in alternation.

Marks: at least half the speed of the bare loop, and a peak of less than 300 MB of memory. Exit 1 below either mark.
The file has rows as people have them: chats of two to nine messages, instructions, JSON and code as answers, other scripts than Latin, one fault in a thousand
rows. The quality condition: the check finds every fault that was planted, and every other row is good.
Seconds are those of the processor, as both run on one core; those of the clock are printed too. `python benchmarks/validate_speed.py [--mb 200] [--rounds 5]`"""
import argparse, json, random, re, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path

SPEED, MEMORY = 0.5, 300
FAULTS = {"json-syntax": lambda row: json.dumps(row)[:-1] + ",}", "duplicate-key": lambda row: '{"label": "a", "label": "b", ' + json.dumps(row)[1:],
          "content-type": lambda row: json.dumps({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}),
          "role-order": lambda row: json.dumps({"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}),
          "empty-content": lambda row: json.dumps({"prompt": "x", "completion": " "}), "number-range": lambda row: '{"prompt": "x", "completion": "y", "weight": 1e999}'}


def text(rng, words, n): return " ".join(rng.choices(words, k=n)).capitalize() + rng.choice([".", "?", ".\n\nAnd: \"so\"", "!"])


def answer(rng, words):
    kind = rng.random()
    if kind < 0.15: return json.dumps({w: rng.random() for w in rng.choices(words, k=rng.randrange(1, 12))})
    if kind < 0.25: return "```python\n" + "\n".join(f"\t{w} = ['{w}', \"{w}\"]" for w in rng.choices(words, k=rng.randrange(1, 15))) + "\n```"
    return text(rng, words, rng.randrange(5, 150))


def row(rng, n, words):
    if rng.random() < 0.2: return {"instruction": text(rng, words, 12), "input": text(rng, words, rng.randrange(1, 60)), "output": answer(rng, words)}
    messages = [{"role": "system", "content": text(rng, words, 15)}] if rng.random() < 0.7 else []
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])): messages += [{"role": "user", "content": text(rng, words, rng.randrange(5, 60))}, {"role": "assistant", "content": answer(rng, words)}]
    return {"id": f"row-{n}", "messages": messages, "source": "made", "weight": rng.choice([1, 0.5])}


def make(path, mb, seed=0):
    "Write the file; gives (rows without a fault, faults by code)."
    rng, good, planted, size, n = random.Random(seed), 0, dict.fromkeys(FAULTS, 0), 0, 0
    alphabets = ["abcdefghijklmnopqrstuvwxyz"] * 12 + ["aeéèßüöñ", "абвгдежз", "日本語文字列"]
    words = [["".join(rng.choices(a, k=rng.randrange(2, 10))) for _ in range(2000)] for a in alphabets]
    with open(path, "w", encoding="utf-8") as f:
        while size < mb * 1e6:
            made = row(rng, n, rng.choice(words))
            n += 1
            if n % 1000: line, good = json.dumps(made, ensure_ascii=n % 5 == 0), good + 1
            else:
                code = rng.choice(list(FAULTS))
                line, planted[code] = FAULTS[code](made), planted[code] + 1
            f.write(line + "\n")
            size += len(line.encode()) + 1
    return good, planted


def bare(path):
    n = 0
    with open(path, encoding="utf-8") as f:
        for line in f:
            try: json.loads(line)
            except ValueError: continue
            n += 1
    return n


def peak():
    "The peak memory of this process in MB: VmHWM where there is one, for getrusage also counts the parent before the exec."
    try: return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except FileNotFoundError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(what, path):
    "Run one of the two here, and print what it took."
    from ftlearn.data.formats import validate
    wall, cpu, found = time.perf_counter(), time.process_time(), {}
    if what == "validate":
        r = validate(path)
        found = {"good": r.good, "counts": dict(r.counts)}
    else: bare(path)
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "mb": peak(), **found}))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--mb", type=float, default=200)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(*a.child)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        good, planted = make(path, a.mb)
        took = {"json.loads": [], "validate": []}
        for i in range(a.rounds):
            for what in took if i % 2 else reversed(took):
                r = subprocess.run([sys.executable, __file__, "--child", what, path], capture_output=True, text=True, check=True)
                took[what].append(json.loads(r.stdout))
        size = path.stat().st_size / 1e6
    middle = {what: {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "mb")} for what, runs in took.items()}
    print(f"{size:.0f} MB, {good + sum(planted.values()):,} rows, medians of {a.rounds} alternating runs")
    for what, m in middle.items(): print(f"  {what:10}  {m['cpu']:6.2f} s of processor, {m['wall']:6.2f} s by the clock, {size / m['cpu']:5.0f} MB/s, peak {m['mb']:4.0f} MB")
    counts = took["validate"][0]["counts"]
    found = took["validate"][0]["good"] == good and {k: n for k, n in counts.items() if k in planted} == {k: n for k, n in planted.items() if n}
    ratio, most = middle["json.loads"]["cpu"] / middle["validate"]["cpu"], max(r["mb"] for r in took["validate"])
    print(f"speed: {ratio:.2f} times the bare loop (mark: at least {SPEED}); peak {most:.0f} MB (mark: under {MEMORY}); every planted fault found, no other: {'yes' if found else 'NO'}")
    return 0 if ratio >= SPEED and most < MEMORY and found else 1


if __name__ == "__main__": sys.exit(main())
