"""`ftlearn probe`: verdicts that follow from the pairs, probes that do not fit said with their reason, files that are whole, and exit codes."""
import json, random, signal
from pathlib import Path

import numpy as np
import pytest

from forked import start
from judging import answering
from ftlearn.cli import main
from ftlearn.core import pick_device, read_json, read_jsonl, write_jsonl
from ftlearn.data.formats import answer_of
from ftlearn.decide import decide
from ftlearn.evaluate.checkup import NOT_ASKED, PROBES, Checkup, Finding, _judged, _wide, checkup, probe_names
from ftlearn.evaluate.match import Scores
from ftlearn.evaluate.probes import Probe
from ftlearn.evaluate.report import report
from ftlearn.model.load import Loaded
from ftlearn.tiny import tiny_model, tiny_rows, tiny_tokenizer
from ftlearn.train.sft import Run, load_tuned

TRAINED = ["--model", "tiny", "--method", "full", "--set", "dtype=float32", "--set", "max_length=512", "--set", "max_new_tokens=24", "--set", "per_device_train_batch_size=16", "--set", "learning_rate=3e-3"]


def train(rows, out, steps, *more):
    write_jsonl(out.with_suffix(".jsonl"), rows)
    with pytest.raises(SystemExit) as e: main(["train", "--data", str(out.with_suffix(".jsonl")), "--out", str(out), *TRAINED, "--set", f"max_steps={steps}", *more])
    assert e.value.code == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A tiny model that has learned the toy task."
    return train(tiny_rows(160), tmp_path_factory.mktemp("probe") / "run", 60)


@pytest.fixture
def probe(capsys):
    def call(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: main(["probe", *map(str, args)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return e.value.code, out, err
    return call


def ask(i, question, answer): return {"id": str(i), "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def by_name(found): return {p["name"]: p for p in found["probes"]}


# --- the whole

def test_all_that_fits_and_the_files(probe, run):
    code, out, err = probe(run, "--rows", 16, "--json")
    found, there = json.loads(out), by_name(json.loads(out))
    assert found == read_json(run / "probes.json") and code == (1 if found["worse"] else 0)
    assert (found["run"], found["split"], len(found["adapter"])) == ("run", "test", 64)
    assert {n.split(":")[0] for n in there} == {"forgetting", "likelihood", "consistency", "grounding", "stop", "memorization"}
    assert {"forgetting: kinds", "forgetting: sentences", "forgetting: grammar", "forgetting: words"} < set(there)
    assert found["skipped"] == {"sampling": NOT_ASKED, "judge": NOT_ASKED, "counterfactual": "no row holds one of the names, places or words of gender"}
    assert all(there[n]["verdict"] == "better" for n in ("stop", "likelihood")) and all(there[n]["tuned"]["score"] > 0.9 for n in ("stop", "grounding"))
    for p in there.values():
        for side in ("base", "tuned"): assert p[side]["low"] <= p[side]["score"] <= p[side]["high"], p
        assert p["n"] > 0 and p["p"] <= p["p_adjusted"] <= 1
    text = (run / "probes.md").read_text()
    assert found["headline"] in text and "counterfactual says nothing here" in text and "Not asked for: sampling, judge" in text


def test_numbers_are_those_of_the_probes(probe, run):
    "Stop rate and grounding of the tuned model, by hand."
    from ftlearn.evaluate.checkup import _some
    from ftlearn.evaluate.generate import generate
    from ftlearn.evaluate.probes import grounding, stop_rate
    there = by_name(json.loads(probe(run, "--rows", 12, "--probes", "stop,grounding", "--json")[1]))
    rows = _some(read_jsonl(run / "data/test.jsonl"), 12, 0)
    said = generate(load_tuned(Run(run), say=str), rows, max_new_tokens=24, progress=False)
    assert there["stop"]["tuned"]["score"] == stop_rate(said).score and there["grounding"]["tuned"]["score"] == grounding(said).score
    assert there["stop"]["n"] == 12 and there["stop"]["parts"] == {k: s.score for k, s in stop_rate(said).parts.items()}


def test_sections_go_into_the_report(probe, run):
    "What the report takes as further evidence."
    probe(run, "--rows", 8, "--probes", "stop,counterfactual")
    rows = read_jsonl(run / "data/test.jsonl")
    for side in ("base", "tuned"): write_jsonl(run / f"predictions/{side}.jsonl", [dict(id=r["id"], prediction=answer_of(r), references=[answer_of(r)]) for r in rows])
    r = report(run, write=False, n_resamples=200, probes=read_json(run / "probes.json")["sections"])
    page = r.to_html()
    assert "Not probed" in page and "say nothing here" in page and not any("not probed" in x for x in r.limits)


def test_a_second_call_makes_no_answers_anew(probe, run, monkeypatch):
    args = (run, "--rows", 10, "--probes", "consistency,stop", "--json")
    first = probe(*args)
    from ftlearn.evaluate import generate as module
    monkeypatch.setattr(module, "greedy", lambda *a, **k: pytest.fail("an answer was made anew"))
    assert probe(*args)[1] == first[1]


def test_rows_of_a_file_and_another_wording(probe, run, tmp_path):
    write_jsonl(tmp_path / "own.jsonl", [{**r, "id": f"own-{i}"} for i, r in enumerate(tiny_rows(20, seed=9))])
    there = by_name(json.loads(probe(run, "--data", tmp_path / "own.jsonl", "--probes", "consistency,memorization", "--template", "{question}!", "--json")[1]))
    assert there["consistency"]["n"] == 20 and there["memorization"]["n"] == 20 + 64


def test_training_rows_that_are_gone(probe, tmp_path):
    out = train(tiny_rows(40), tmp_path / "run", 2)
    write_jsonl(tmp_path / "own.jsonl", tiny_rows(8, seed=9))
    (out / "data").rename(tmp_path / "away")
    (tmp_path / "run.jsonl").unlink()
    code, out_, err = probe(out, "--data", tmp_path / "own.jsonl", "--probes", "stop,memorization", "--json")
    found = json.loads(out_)
    assert code == 0 and "the training rows are not there" in err and found["skipped"]["memorization"] == "the training rows are not known" and "stop" in by_name(found)


# --- findings

def test_learned_by_heart_exits_with_one(probe, tmp_path):
    "Answers that do not follow from their questions: whoever says them knows them by heart."
    dice = random.Random(0)
    out = train([ask(i, f"{i} {dice.choice(['cat', 'dog'])}", "".join(dice.choices("abcdefghijklmnop", k=12))) for i in range(48)], tmp_path / "run", 140, "--set", "split=50/0/50")
    code, text, err = probe(out, "--probes", "memorization")
    assert code == 1 and "memorized" in text and "Worse than its base: memorization" in text
    assert read_json(out / "probes.json")["worse"] == ["memorization"]


def test_a_model_that_never_stops_is_found(probe, tmp_path, run):
    "The other way round: a run whose base stops and whose tuned model does not."
    good, bad = (Loaded(m, tiny_tokenizer(), Path("tiny"), "x", pick_device("cpu", "float32")) for m in (load_tuned(Run(run), say=str).model, tiny_model(0)))
    c = checkup(good, bad, tiny_rows(24, seed=3), names="stop,grounding", max_new_tokens=24, say=str)
    assert c["stop"].verdict == "worse" and c.worse[0] in ("grounding", "stop") and c["stop"].difference[2] < 0 and c["stop"].up


def test_which_counterfactuals_are_asked(probe, tmp_path):
    "Gender is in the questions, places are in questions and answers, names are nowhere."
    rows = [ask(i, f"{('He', 'She')[i % 2]} liked film {i}" if i % 3 else f"send {i} to London", "good" if i % 3 else '{"to":"London"}') for i in range(45)]
    out = train(rows, tmp_path / "run", 30)
    found = json.loads(probe(out, "--split", "train", "--probes", "counterfactual,grounding", "--json")[1])
    there = by_name(found)
    assert set(there) - {"grounding"} == {"counterfactual: gender", "counterfactual: places"} and found["skipped"]["counterfactual: names"] == "no row holds a word of the table"
    for name in ("counterfactual: gender", "counterfactual: places"):
        assert not there[name]["higher_is_better"] and any("Control" in n for n in there[name]["notes"])
    assert any("Direction" in n for n in there["counterfactual: gender"]["notes"]) or there["counterfactual: gender"]["tuned"]["score"] == 0


def test_labels_are_no_matter_of_grounding_or_memory(probe, tmp_path):
    rows = [ask(i, f"film {i} was {('great', 'dull')[i % 2]}", ("good", "bad")[i % 2]) for i in range(60)]
    found = json.loads(probe(train(rows, tmp_path / "run", 60), "--probes", "likelihood,grounding,memorization", "--json")[1])
    assert "hold no values" in found["skipped"]["grounding"] and "too short" in found["skipped"]["memorization"]
    p = by_name(found)["likelihood"]
    assert p["unit"] == "share" and p["tuned"]["score"] > 0.9, "labels are choices, not texts"


# --- the judge

def likes_json(text):
    good = ['{"count"' in text.split(f"<answer {i}>")[1].split("</answer")[0] for i in (1, 2)]
    return "[[1]]" if good[0] > good[1] else "[[2]]" if good[1] > good[0] else "[[0]]"


@pytest.fixture
def judge():
    with answering(likes_json) as url: yield url


def test_a_judge(probe, run, judge):
    code, out, err = probe(run, "--rows", 10, "--probes", "judge", "--judge", judge, "--judge-model", "f", "--json")
    p = by_name(json.loads(out))["judge"]
    assert code == 0 and p["verdict"] == "better" and p["tuned"]["score"] == 1 and "same verdict in both orders: 100.0 %" in p["notes"][0]
    assert json.loads(probe(run, "--rows", 4, "--probes", "stop,judge", "--json")[1])["skipped"]["judge"] == "no judge was named"


# --- wrong use

@pytest.mark.parametrize("args, said", [
    (["--probes", "groundng"], "'grounding'"), (["--probes", ","], "no probe is named"), (["--rows", "0"], "1 or more"), (["--rows", "many"], "--rows"), (["--split", "tst"], "'test'"), (["--template", "please"], "template"),
    (["--judge", "http://127.0.0.1:9/v1"], "--judge-model"), (["--judge-model", "x"], "--judge"), (["--judge", "127.0.0.1", "--judge-model", "x"], "address of a server")])
def test_wrong_use(probe, run, args, said):
    for p in run.glob("probes.*"): p.unlink()
    code, out, err = probe(run, *args)
    assert code == 2 and said in err and not list(run.glob("probes.*"))


def test_no_run_no_data(probe, run, tmp_path):
    for args in ([tmp_path / "nowhere"], [run, "--data", tmp_path / "no.jsonl"]):
        code, out, err = probe(*args)
        assert code == 2 and "Next:" in err, err


def test_a_server_that_is_not_there(probe, run):
    code, out, err = probe(run, "--rows", 4, "--probes", "judge", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "x")
    assert code == 1 and "no server answers" in err


# --- verdicts

def finding(seed, gain, k, n=60, name=None):
    "A finding about `n` rows of which a share `gain` more (or less) are right after training."
    rng = np.random.default_rng([seed, k])
    b = rng.random(n) < .5
    a = np.where(rng.random(n) < .3, rng.random(n) < .5, b) if not gain else np.where(rng.random(n) < abs(gain), gain > 0, b)
    one = lambda v: Probe("x", Scores("x", v.astype(float), float(v.mean())), [str(i) for i in range(n)], "x")
    d = _wide(one(a).against(one(b), n_resamples=400))
    return Finding(name or f"p{k}", "?", one(b), one(a), d, n, float(d.paired.p))


def test_few_false_alarms_among_many_probes():
    "Ten probes of which none changed: hardly a check-up in twenty names one as changed. A real loss among them is found."
    worlds = [Checkup(_judged([finding(s, 0, k) for k in range(10)], .05), {}, 60) for s in range(120)]
    assert np.mean([bool(c.of("better", "worse")) for c in worlds]) <= 0.08
    found = [Checkup(_judged([finding(s, 0, k) for k in range(9)] + [finding(s, -.6, 9, name="lost")], .05), {}, 60).worse for s in range(20)]
    assert np.mean(["lost" in w for w in found]) > 0.9


@pytest.mark.parametrize("n, word", [(12, "undecidable"), (40, "undecidable"), (200, "equivalent")])
def test_nothing_changed_is_no_proof_with_few_rows(n, word):
    assert _wide(decide([1.]*n, [1.]*n, margin=0.05)).verdict == word


def test_names():
    assert probe_names(["stop"]) == ["stop"] and probe_names("all") == list(PROBES)


# --- interruption

def test_killed_and_called_again(tmp_path, run):
    "What was answered before the kill is kept; the second call ends with the files, which the first did not leave half-written."
    for p in [*run.glob("probes.*"), run / "predictions/store.jsonl"]: p.unlink(missing_ok=True)
    store = run / "predictions/store.jsonl"
    slow = "import time, ftlearn.evaluate.generate as g; real = g.Store.put\ndef put(self, new): real(self, new); time.sleep(.3)\ng.Store.put = put"
    args = ("probe", run, "--rows", 24, "--probes", "consistency,stop")
    c = start(tmp_path / "log", *args, first=slow)
    c.until(lambda: store.exists() and store.stat().st_size > 0)
    c.kill(signal.SIGKILL)
    kept = len(store.read_text().splitlines())
    assert kept and not list(run.glob("probes.*"))
    c = start(tmp_path / "log2", *args)
    assert c.wait() == 0, c.said
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
    assert len(keys) == len(set(keys)) > kept and (run / "probes.json").exists()
