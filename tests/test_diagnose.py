"""The diagnosis: the recorded calibration holds, the order of causes is right, and nothing is said that the log does not show."""
import json, math, subprocess, sys

import pytest

from conftest import ROOT
from ftlearn.core import UserError, data_root
from ftlearn.train.diagnose import Limits, diagnose, rate_verdict, read_recorded
from ftlearn.train.log import Log, LogWriter, read_log, toy_log

FOLDER = data_root() / "diagnose"
CODES = json.loads((FOLDER / "codes.json").read_text())


@pytest.fixture(scope="module", params=["tune", "report"])
def runs(request): return request.param, read_recorded(FOLDER / f"{request.param}.jsonl.gz")


def test_calibration(runs):
    which, runs = runs
    faults, healthy = [r for r in runs if r.fault != "healthy"], [r for r in runs if r.fault == "healthy"]
    if which == "report": assert len(faults) == 60 and len(healthy) == 20 and {r.fault for r in faults} == set(CODES)
    wrong = [(r.fault, r.seed, r.diagnose().codes) for r in faults if r.diagnose().codes[0] != CODES[r.fault]]
    assert len(wrong) <= 0.15 * len(faults), wrong
    assert [(r.seed, r.diagnose().codes) for r in healthy if not r.diagnose().ok] == []


def test_sets_share_no_run():
    "Nothing that is reported was used to choose the limits."
    tune, report = ({(r.fault, r.seed) for r in read_recorded(FOLDER / f"{n}.jsonl.gz")} for n in ("tune", "report"))
    assert not tune & report


def test_small(): assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 500_000


def test_evidence_holds_numbers(runs):
    for r in runs[1]:
        for f in r.diagnose().findings: assert any(c.isdigit() for c in f.evidence) or f.code in ("no-validation",), (r.fault, f)


def test_without_experiments_flat_stays_open():
    d = diagnose(toy_log(start=2.4, floor=2.4, noise=0.01))
    assert d.codes[0] == "flat" and "opposite causes" in d.findings[0].remedy and "rate_probe" in d.findings[0].remedy


def test_healthy_runs_no_experiment():
    "The experiments cost time; a run that ends near zero does not ask for them."
    def never(*args): raise AssertionError("asked")
    assert diagnose(toy_log(floor=0.02), rates=never, mismatch=never).ok


@pytest.mark.parametrize("rows, verdict", [({0.1: [1.0], 1: [2.0], 10: [math.nan]}, "too high"), ({0.1: [2.0], 1: [2.0], 10: [1.0]}, "too low"), ({0.1: [2.0], 1: [2.0], 10: [1.99]}, "neither"),
                                           ({0.1: [2.0], 1: [math.inf], 10: [math.inf]}, "too high"), ({0.1: [math.inf], 1: [math.inf], 10: [math.inf]}, "neither")])
def test_verdict(rows, verdict): assert rate_verdict(rows)[0] == verdict


def test_wrong_labels_come_before_the_curve():
    rows = [dict(step=s, loss=2.0, tokens=100 * s, trained_tokens=20, answers=4, ends=0, with_gradient=1.0) for s in range(1, 40)]
    assert diagnose(rows).codes == ["never-stopping"]
    assert diagnose([r | {"trained_tokens": 0} for r in rows]).codes == ["nothing-trained"]


def test_a_log_from_elsewhere_says_what_it_cannot_show():
    d = diagnose(toy_log())
    assert d.ok and any("trained_tokens" in b for b in d.blind) and any("with_gradient" in b for b in d.blind)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss"])
def test_not_a_number_survives_the_file(tmp_path, bad, key):
    with LogWriter(tmp_path / "log.jsonl") as w:
        for s in range(1, 9): w.append(dict(step=s, loss=2.0, grad_norm=1.0))
        w.append({"step": 9, key: bad})
    assert diagnose(tmp_path / "log.jsonl").codes == ["bad-batch"]


@pytest.mark.parametrize("rows", [[], [dict(step=1, loss=2.0)], [dict(step=1, eval_loss=2.0)], [dict(step=s, loss=0.5) for s in (1, 2, 3)], [dict(step=1, loss=None), dict(step=2, loss=1.0)]])
def test_odd_logs_do_not_break(rows): diagnose(rows).to_dict()


def test_names_stay_where_they_were():
    from ftlearn.train.watch import diagnose as same
    assert same is diagnose


def test_show_prints_the_matrix():
    r = subprocess.run([sys.executable, "benchmarks/diagnose_calibration.py", "show"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert r.returncode == 0 and "named rightly" in r.stdout, r.stdout + r.stderr
