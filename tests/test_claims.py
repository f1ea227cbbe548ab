"The claims lab: its results are whole, its verdicts follow from them, its trials run, and a lab that was killed goes on."
import json, math, os, signal, subprocess, sys, time

import psutil
import pytest

from ftlearn.core import UserError, data_root, project_root
from ftlearn.teach import trials
from ftlearn.teach.claims import CLAIMS, RESULTS, Found, Lab, main, read_results, run_claims, run_trial, to_do

KEPT = data_root()/RESULTS


def test_every_line_is_a_trial_of_the_design():
    lines = [json.loads(l) for l in KEPT.read_text(encoding="utf-8").splitlines()]
    keys = [(r["claim"], r["edition"], r["setting"], r["seed"]) for r in lines]
    assert len(keys) == len(set(keys)) and set(keys) == read_results(KEPT).keys()
    for r in lines:
        claim = CLAIMS[r["claim"]]
        assert (r["setting"], r["seed"]) in claim.cells and r["edition"] == claim.edition and r["seconds"] >= 0 and r["torch"] and r["machine"] and r["date"], r
        assert claim.key in r["found"] and all(v is None or math.isfinite(v) for v in r["found"].values()), r


def test_at_least_eight_rules_each_with_a_verdict():
    lab = Lab.read()
    assert len(lab) >= 8 and all(f.verdict in ("holds", "fails", "depends on", "undecidable here") and f.cases for f in lab.values())
    assert len({f.verdict for f in lab.values()}) > 1, "the rule of judgement tells nothing apart"
    assert all(f._repr_markdown_().count("\n") > 3 and f.plot() and (not f.claim.x or f.curve()) for f in lab.values())


def test_a_case_is_unmeasured_only_where_trials_are_left():
    assert {n: [c.name for c in f.cases if c.says == "unmeasured"] for n, f in Lab.read().items() if not f.missing} == {n: [] for n, f in Lab.read().items() if not f.missing}


@pytest.mark.parametrize("name", CLAIMS)
def test_without_results_nothing_is_decided(name):
    f = Found(CLAIMS[name], {})
    assert f.verdict == "undecidable here" and {c.says for c in f.cases} == {"unmeasured"} and f.missing == CLAIMS[name].cells


def test_two_seeds_decide_nothing():
    few = {k: r for k, r in read_results(KEPT).items() if k[3] < 2}
    assert {c.says for claim in CLAIMS.values() for c in Found(claim, few).cases} == {"unmeasured"}


def test_results_of_another_edition_do_not_count():
    old = {(n, 0, s, seed): r for (n, _, s, seed), r in read_results(KEPT).items()}
    assert all(Found(c, old).missing == c.cells for c in CLAIMS.values())


@pytest.mark.parametrize("share, verdict", [(.0, "holds"), (.9, "fails"), (.05, "undecidable here")])
def test_other_numbers_give_another_verdict(share, verdict):
    found = Lab.read()["difflib"]
    other = {k: r | {"found": r["found"] | {n: share + .002*(k[-1] - 2) for n in ("wrong passes", "right fails")}} for k, r in found.results.items() if k[0] == "difflib"}
    assert Found(found.claim, other).verdict == verdict


def cheapest(claim): return next(s for s in claim.settings if not claim.dear(s))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_small_trial_gives_the_numbers_that_are_judged(name):
    claim = CLAIMS[name]
    found = run_trial(claim, cheapest(claim), 0, small=True)
    assert claim.key in found and all(v is None or isinstance(v, (int, float)) for v in found.values())
    kept = [r["found"].keys() for k, r in read_results(KEPT).items() if k[:2] == (name, claim.edition) and k[2] == cheapest(claim)]
    assert all(found.keys() == k for k in kept), "the trial changed: raise its edition"


def test_the_real_learner_in_small():
    assert {"loss", "right"} == trials.real(8, 0, small=True).keys()


@pytest.mark.parametrize("name", ["difflib", "30-per-cent"])
def test_a_recorded_result_comes_again(name):
    claim, setting = CLAIMS[name], cheapest(CLAIMS[name])
    assert run_trial(claim, setting, 0) == pytest.approx(read_results(KEPT)[name, claim.edition, setting, 0]["found"])


def test_killed_in_the_middle_it_goes_on(tmp_path):
    out = tmp_path/"results.jsonl"
    run = psutil.Popen([sys.executable, "-m", "ftlearn.teach.claims", "--small", "--jobs", "2", "--only", "difflib,plus-10", "--out", str(out)], cwd=project_root(), stdout=subprocess.DEVNULL)
    end = time.time() + 240
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2) and time.time() < end and run.poll() is None: time.sleep(0.02)
    workers = run.children(recursive=True)
    run.send_signal(signal.SIGKILL); run.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == [], "a worker outlives the one that started it"
    before = read_results(out)
    with open(out, "ab") as f: f.write(b'{"claim": "plus-10", "edition": 1, "setti')
    few = [CLAIMS["difflib"], CLAIMS["plus-10"]]
    left = to_do(few, before)
    assert before and run_claims(few, out, small=True, say=str) == len(left)
    after = read_results(out)
    assert all(after[k] == r for k, r in before.items()) and len(after) == sum(len(c.cells) for c in few)
    assert run_claims(few, out, small=True, say=str) == 0


def test_one_at_a_time(tmp_path):
    from ftlearn.core import file_lock
    with file_lock(tmp_path/"results.jsonl"), pytest.raises(UserError, match="another process"): run_claims([CLAIMS["difflib"]], tmp_path/"results.jsonl", small=True, say=str)


def test_a_time_limit_is_kept(tmp_path):
    assert run_claims(CLAIMS.values(), tmp_path/"results.jsonl", minutes=0, small=True, say=str) == 0


def test_small_results_never_reach_the_file_that_ships():
    before = KEPT.read_bytes()
    with pytest.raises(UserError, match="--out"): main(["--small", "--only", "difflib"])
    assert KEPT.read_bytes() == before


def test_make_claims():
    said = subprocess.run(["make", "-n", "claims", "MINUTES=3", "ONLY=difflib"], cwd=project_root(), capture_output=True, text=True, env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")})
    assert said.returncode == 0 and '-m ftlearn.teach.claims --jobs 2 --minutes 3 --only "difflib"' in said.stdout
