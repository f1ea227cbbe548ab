"""`make demo` from nothing, and once more: minutes, the table, and whether the marks hold. Writes benchmarks/demo.json, which the README shows.

The model is fetched beforehand: set-up is not counted. `python benchmarks/demo.py [--keep]` (`--keep` times only what is not done yet)."""
import argparse, json, os, platform, re, shutil, subprocess, sys, time
from datetime import date
from pathlib import Path

from ftlearn.core import read_json
from ftlearn.evaluate.report import report
from ftlearn.model.load import fetch

ROOT = Path(__file__).resolve().parent.parent


def machine():
    "Processor and cores in words."
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    return f"{os.cpu_count()} CPU cores ({name[1].strip() if name else platform.machine()})"


def timed():
    "Seconds of one `ftlearn demo`."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "from ftlearn.cli import main; main()", "demo"], cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--keep", action="store_true")
    if not p.parse_args().keep: shutil.rmtree(ROOT / "runs/demo", ignore_errors=True)
    fetch()
    first, second = timed(), timed()
    run = ROOT / "runs/demo"
    made, manifest = report(run, write=False), read_json(run / "manifest.json")
    scores = {c.metric: c for c in made.comparisons}
    marks = {"base JSON validity under 10 %": scores["json_valid"].base < 0.10, "tuned JSON validity at least 95 %": scores["json_valid"].tuned >= 0.95,
             "tuned exact match at least 60 %": scores["exact_match"].tuned >= 0.60, "tuned field F1 at least 0.80": scores["field_f1"].tuned >= 0.80,
             "within 15 minutes": first < 900, "second time within 2 minutes": second < 120, "at least 200 test rows": made.n >= 200}
    for mark, holds in marks.items(): print(f"{'holds' if holds else 'DOES NOT HOLD'}: {mark}")
    record = {"date": date.today().isoformat(), "machine": machine(), "minutes": round(first / 60, 1), "second_minutes": round(second / 60, 1), "training_minutes": round(manifest["seconds"] / 60, 1),
              "test_rows": made.n, "training_rows": manifest["data"]["rows"]["train"], "method": manifest["method"], "packages": manifest["packages"], "table": made.table}
    (ROOT / "benchmarks/demo.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"first {first / 60:.1f} minutes, second {second / 60:.1f}; benchmarks/demo.json written")
    sys.exit(not all(marks.values()))


if __name__ == "__main__": main()
