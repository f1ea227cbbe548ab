"""The memory estimate against real processes: the committed peaks of the 135M model, and here the tiny one."""
import json, subprocess, sys

import pytest

from conftest import ROOT
from ftlearn.model.memory import estimate, model_table

PEAKS = ROOT / "benchmarks" / "memory_peaks.json"


def cases():
    found = json.loads(PEAKS.read_text())["cases"] if PEAKS.exists() else {}
    return [pytest.param(v, id=k) for k, v in found.items() if k != "framework"]


def predicted(case): return estimate(case["model"], case["method"], batch=case["batch"], length=case["length"], labels=case["labels"], quant="bnb", device="cpu", dtype="bfloat16")


def live(case):
    "The predicted peak without the allocator's share."
    e = predicted(case)
    return max(e.at_loss - e.terms["allocator"], e.at_end)


@pytest.mark.parametrize("case", cases())
def test_committed_peak(case):
    assert abs(predicted(case).peak / case["peak"] - 1) < 0.15


def test_six_configurations_were_measured():
    held = {(c.values[0]["method"], c.values[0]["batch"], c.values[0]["length"]) for c in cases()}
    assert len(held) >= 6 and {"full", "lora", "qlora", "dora", "prompt", "ia3"} <= {method for method, _, _ in held}


@pytest.mark.parametrize("case", [pytest.param(*c.values, id=c.id) for c in cases() if "mapped_peak" in c.values[0]])
def test_without_the_allocator(case):
    "With freed blocks given back at once, the sum of the other terms is the peak."
    assert abs(live(case) / case["mapped_peak"] - 1) < 0.1


def measured(batch, length):
    case = {"method": "lora", "batch": batch, "length": length, "steps": 2, "model": "tiny"}
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "memory_peaks.py"), "--worker", json.dumps(case)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return {**case, **json.loads(done.stdout.strip().splitlines()[-1])}


def test_what_more_tokens_cost():
    "The libraries are the same in both runs, so the difference is what batch and length add. Three layers of large blocks leave next to no holes, so the allocator's share is left out."
    small, large = measured(1, 64), measured(32, 256)
    want = live(large) - live(small)
    assert abs((large["peak"] - small["peak"]) / want - 1) < 0.25


def test_every_model_has_an_estimate_for_every_method():
    for m in model_table():
        peaks = [estimate(m.name, method, batch=1, length=128, device="cuda").peak for method in ("full", "lora", "qlora")]
        assert peaks == sorted(peaks, reverse=True), m.name
