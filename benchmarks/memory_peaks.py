"""Predicted against measured peak memory on the CPU: `ftlearn.model.memory.estimate` and real training steps, each configuration in a process of its own.

Every worker is a whole `train` of a few steps on rows of a known length; its peak is VmHWM of /proc, the largest resident size of the whole process. Prints predicted, measured and
their ratio, and writes benchmarks/memory_peaks.json, which notebook 22 shows. Mark: within 15 % in every configuration; exit 1 otherwise.
What the allocator adds is found by a second run in which every block of 64 kB and more is mapped for itself and given back when freed (glibc's MALLOC_MMAP_THRESHOLD_).
`python benchmarks/memory_peaks.py [--steps 2] [--model smollm2-135m-instruct] [--only lora-8x96] [--again] [--predict] [--allocator]`. What memory_peaks.json holds is kept,
unless --again is given; --predict measures nothing and puts new predictions beside the old measurements; --allocator measures the allocator's share alone, for data/models.toml."""
import argparse, contextlib, datetime, json, os, platform, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "memory_peaks.json"
CASES = [("lora", 8, 96), ("lora", 4, 256), ("full", 4, 64), ("qlora", 4, 128), ("dora", 4, 64), ("prompt", 8, 96), ("ia3", 8, 96)]
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
TOLERANCE = 0.15
WORDS = "red blue green black white pink gold grey cat dog cup hat key pen box car".split()  # one token each


def peak():
    "The largest resident size of this process so far, in bytes."
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def rows_of(n, length, tokenizer):
    "`n` rows of exactly `length` tokens, about half of them answer; no two begin alike."
    from ftlearn.data.encode import encode_rows
    def made(i, asked):
        word = lambda k: WORDS[(i * 7 + k + k // 16) % len(WORDS)]
        return {"prompt": " ".join(word(k) for k in range(asked)), "completion": " ".join(word(k + 3) for k in range(length // 2 - 2))}
    def tokens(row): return len(encode_rows([row], tokenizer, 4096)[0].input_ids)
    rows = [made(i, length - tokens(made(i, 1)) + 1) for i in range(n)]
    if wrong := [t for t in map(tokens, rows) if t != length]: raise SystemExit(f"rows of {length} tokens were wanted, got {wrong}")
    return rows


def work(case):
    "One configuration, in this process; prints a line of JSON."
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
    import torch
    from ftlearn.config import Config
    from ftlearn.core import write_jsonl
    from ftlearn.data.split import prep
    from ftlearn.model.load import fetch, load_tokenizer
    from ftlearn.train.sft import train
    imported = peak()
    with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(sys.stderr):
        rows = rows_of(case["batch"] * case["steps"], case["length"], load_tokenizer(fetch(case["model"])))
        write_jsonl(Path(tmp, "rows.jsonl"), rows)
        prep(Path(tmp, "rows.jsonl"), Path(tmp, "data"), ratios="100/0/0", near=None)
        quant = {"quant": "bnb"} if case["method"] == "qlora" else {}
        config = Config(model=case["model"], method=case["method"], data=str(Path(tmp, "data")), out=str(Path(tmp, "run")), max_steps=case["steps"], dtype="bfloat16", device="cpu",
                        per_device_train_batch_size=case["batch"], max_length=case["length"], **quant)
        run = train(config, progress=False, say=lambda text: None)
        log = run.log.train
    seconds = [b["seconds"] - a["seconds"] for a, b in zip(log, log[1:])]
    print(json.dumps({"peak": peak(), "imported": imported, "threads": torch.get_num_threads(), "seconds_a_step": round(min(seconds), 3), "labels": case["batch"] * (case["length"] // 2)}))


def measured(case, mapped=False):
    "What `work` prints, from a fresh process."
    done = subprocess.run([sys.executable, __file__, "--worker", json.dumps(case)], capture_output=True, text=True, env={**os.environ, **(MAPPED if mapped else {})})
    if done.returncode: raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def predicted(case):
    "The estimate for a case, as bytes by term and the peak."
    from ftlearn.model.memory import estimate
    e = estimate(case["model"], case["method"], batch=case["batch"], length=case["length"], labels=case["batch"] * (case["length"] // 2), quant="bnb", device="cpu", dtype="bfloat16")
    return {"predicted": e.peak, "terms": e.terms}


def allocator(steps):
    "What freed blocks between kept ones take, as a share of the activations: of a stand-in, six layers as wide as the 135M model's with random weights, so that no configuration of the table is used to predict itself."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from ftlearn.model.load import fetch, load_tokenizer
    with tempfile.TemporaryDirectory() as tmp:
        source = fetch("smollm2-135m-instruct")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, num_hidden_layers=6), dtype=torch.bfloat16).save_pretrained(tmp)
        load_tokenizer(source).save_pretrained(tmp)
        case = {"method": "lora", "batch": 8, "length": 96, "steps": steps, "model": tmp}
        plain, mapped, kept = measured(case)["peak"], measured(case, mapped=True)["peak"], predicted(case)["terms"]["activations"]
    print(f"stand-in: {plain/1e6:,.0f} MB, {mapped/1e6:,.0f} MB with freed blocks given back, {kept/1e6:,.0f} MB of activations: a share of {(plain - mapped)/kept:.2f}")


def processor():
    "Name and cores of the processor."
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((l.partition(":")[2].strip() for l in lines if l.startswith("model name")), platform.machine()), os.cpu_count()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--model", default="smollm2-135m-instruct")
    p.add_argument("--only", default="")
    p.add_argument("--predict", action="store_true")
    p.add_argument("--again", action="store_true")
    p.add_argument("--allocator", action="store_true")
    p.add_argument("--worker", default="")
    a = p.parse_args()
    if a.worker: return work(json.loads(a.worker))
    if a.allocator: return allocator(a.steps)
    old = json.loads(OUT.read_text()) if OUT.exists() else {"cases": {}}
    cpu, cores = processor()
    from ftlearn.core import versions
    table = {"date": str(datetime.date.today()), "machine": {"processor": cpu, "cores": cores}, "versions": versions("torch", "transformers", "peft", "trl", "bitsandbytes"), **{k: old[k] for k in ("date", "machine", "versions") if a.predict and k in old}, "cases": dict(old["cases"])}
    todo = [("framework" if m == "tiny" else f"{m}-{b}x{n}", {"method": "lora" if m == "tiny" else m, "batch": b, "length": n, "steps": a.steps, "model": "tiny" if m == "tiny" else a.model}) for m, b, n in [("tiny", 1, 64), *CASES]]
    for mapped in (False, True):    # first every peak, then the peaks without what the allocator adds
        for name, case in todo:
            if a.predict or a.only not in name or (mapped and name not in table["cases"]): continue
            if not a.again and ("mapped_peak" if mapped else "peak") in table["cases"].get(name, {}): continue
            found = measured(case, mapped)
            table["cases"].setdefault(name, {}).update({"mapped_peak": found["peak"]} if mapped else {**case, **found})
            print(f"{name}: measured {found['peak'] / 1e6:,.0f} MB{', freed blocks given back' * mapped}; a step took {found['seconds_a_step']} s", flush=True)
            OUT.write_text(json.dumps(table, indent=1) + "\n")
    bad = 0
    for name, found in table["cases"].items():
        if name == "framework": continue
        found.update(predicted(found))
        found["ratio"] = round(found["predicted"] / found["peak"], 4)
        bad += abs(found["ratio"] - 1) > TOLERANCE
        print(f"{name}: predicted {found['predicted'] / 1e6:,.0f} MB, measured {found['peak'] / 1e6:,.0f} MB, ratio {found['ratio']:.3f}")
    OUT.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table['cases']) - 1} configurations, {bad} of them off by more than {TOLERANCE:.0%}")
    sys.exit(bool(bad))


if __name__ == "__main__": main()
