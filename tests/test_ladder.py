"""The ladder: parity with scikit-learn, no test row is learnt from, verdicts that follow the numbers, the record of the four sets."""
import json, random
from pathlib import Path

import numpy as np
import pytest

from ftlearn.core import UserError, read_json
from ftlearn.data.sources import load
from ftlearn.data.split import split_rows
from ftlearn.evaluate.advise import advise, rows_to_settle
from ftlearn.evaluate.baselines import (Ladder, Rung, address_crf, by_function, copied, few_shot_rows, from_predictions, ladder, majority, nearest_row, word_count)

ROOT = Path(__file__).resolve().parent.parent


def rows(n, seed=0, labels=("a", "b")):
    "Rows whose label hangs on one of their words."
    dice, words = random.Random(seed), "red blue green grey tall small old new".split()
    out = []
    for i in range(n):
        label = dice.choice(labels)
        out.append({"id": f"{seed}-{i}", "messages": [{"role": "system", "content": "Name it."}, {"role": "user", "content": " ".join(dice.choices(words, k=4) + [f"word{label}"])}, {"role": "assistant", "content": label}]})
    return out


def texts(rung): return [p["prediction"] for p in rung.predictions]


def test_majority_and_nearest_agree_with_scikit_learn():
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import KNeighborsClassifier
    train, test = rows(80, labels=("a", "b", "b")), rows(30, 1)
    q, y, t = [r["messages"][1]["content"] for r in train], [r["messages"][2]["content"] for r in train], [r["messages"][1]["content"] for r in test]
    assert texts(majority(train, test)) == list(DummyClassifier().fit(q, y).predict(t))
    v = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(q)
    assert texts(nearest_row(train, test)) == list(KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(v.transform(q), y).predict(v.transform(t)))


@pytest.mark.parametrize("make", [majority, nearest_row, word_count])
def test_the_answers_of_test_rows_change_nothing(make):
    train, test = rows(60), rows(20, 1)
    blind = [{**r, "messages": [*r["messages"][:-1], {"role": "assistant", "content": "?"}]} for r in test]
    assert texts(make(train, test)) == texts(make(train, blind))
    assert [p["references"] for p in make(train, blind).predictions] == [["?"]] * 20


def test_the_crf_learns_from_train_alone():
    s = split_rows(load("addresses"), "78/6/16", seed=42)
    few = address_crf(s.train[:150], s.test[:60])
    right = np.mean([p["prediction"] == p["references"][0] for p in few.predictions])
    assert 0.4 < right < 0.9, "the packaged model, which has seen these rows, is nearly always right"
    with pytest.raises(UserError, match="parts of the question"): address_crf(
        [{"id": str(i), "messages": [{"role": "user", "content": "12 Oak St"}, {"role": "assistant", "content": '{"street":"Elm"}'}]} for i in range(4)], s.test[:2])


def test_few_shot_never_shows_the_test_row_its_own_answer():
    train, test = rows(40), rows(10, 1)
    for choose in ("nearest", "fixed"):
        for r, shown in zip(test, few_shot_rows(train, test, 3, choose)):
            assert shown["messages"][0]["role"] == "system" and len(shown["messages"]) == 1 + 6 + 2 and shown["messages"][-2:] == r["messages"][-2:]
            assert len(set(shown["examples"])) == 3 and r["id"] not in shown["examples"]


def rung(name, right, n, kind="rule", **more):
    said = [dict(id=str(i), prediction="a" if i in right else "b", references=["a"], latency_ms=1.0) for i in range(n)]
    return Rung(name, kind, name, said, **{"once": 1.0, "each": .001, **more})


def test_costs_and_order():
    l = ladder([rung("dear", range(50), 100, once=100.0, each=.01), rung("cheap", range(50), 100)], requests=1000, n_resamples=500)
    assert [(r["name"], round(r["cost"], 6)) for r in l.rungs] == [("cheap", 2.0), ("dear", 110.0)]
    l = ladder([rung("hosted", range(50), 100, usd=.002), rung("here", range(50), 100, once=0, each=3.6)], requests=1000, usd_hour=2.0, n_resamples=500)
    assert {r["name"]: r["cost"] for r in l.rungs} == pytest.approx({"hosted": 2.0 + 2/3600, "here": 2.0})


def test_standings_follow_the_truth():
    "Ten points apart on 600 rows is worse; the same rung with other errors on as many rows is not called worse more than rarely."
    dice, wrong = np.random.default_rng(0), 0
    for k in range(60):
        a, b = (set(np.flatnonzero(dice.random(300) < .7)) for _ in range(2))
        l = ladder([rung("x", a, 300), rung("y", b, 300, once=2.0)], n_resamples=400, seed=k)
        wrong += any(r["standing"] == "worse" for r in l.rungs)
    assert wrong <= 8, f"two equal rungs were told apart {wrong} times of 60"
    l = ladder([rung("x", range(300), 600), rung("y", range(480), 600, once=2.0)], n_resamples=400)
    assert (l.best, l["x"]["standing"], l.cheapest) == ("y", "worse", "y")


def test_a_ladder_survives_json():
    l = ladder([rung("x", range(30), 60), rung("y", range(40), 60, "tuned")], "exact_match,token_f1", n_resamples=300)
    again = Ladder.from_dict(json.loads(json.dumps(l.to_dict(), allow_nan=False)))
    assert again.table == l.table and advise(again, 500).to_dict() == advise(l, 500).to_dict()


def test_rungs_that_failed_are_named():
    r = rung("x", range(30), 60)
    r.predictions[3].update(prediction="", error="status 500")
    assert "x 1" in ladder([r, rung("y", range(40), 60)], n_resamples=300)._repr_markdown_()


@pytest.mark.parametrize("rule, prompt, tuned, n, verdict", [
    (.60, .50, .80, 500, "fine-tune"), (.80, .50, .80, 500, "do not fine-tune"), (.85, .50, .60, 500, "do not fine-tune"), (.50, .80, .60, 500, "do not fine-tune"),
    (.60, .50, .70, 30, "undecided"), (.70, .50, .60, 30, "undecided")])
def test_verdicts(rule, prompt, tuned, n, verdict):
    hits = lambda share: range(round(share*n))
    l = ladder([rung("rule", hits(rule), n), rung("prompt", hits(prompt), n, "prompt", once=2.0), rung("tuned", hits(tuned), n, "tuned", once=60.0)], n_resamples=500)
    a = advise(l, 1000)
    assert a.verdict == verdict, a
    assert a.use in {r["name"] for r in l.rungs} and a.next and all(q["evidence"] for q in a.questions)
    assert advise(l, 1000, current_facts=True).verdict == advise(l, 1000, general=True).verdict == "do not fine-tune"


def test_rows_that_would_decide_do_decide():
    "Twenty rows leave it open; the number that is told settles it, with the same share of right rows."
    def two(n): return ladder([rung("x", range(round(.6*n)), n), rung("y", range(round(.75*n)), n, once=2.0)], n_resamples=1000)
    small = two(20)
    assert small["x"]["standing"] == "open"
    assert two(round(1.3*rows_to_settle(20, small["x"]["gap"], small.margin)))["x"]["standing"] == "worse"


@pytest.mark.parametrize("make, words", [
    (lambda: majority([], rows(2)), "no rows to learn"), (lambda: majority(rows(2), []), "no rows to answer"), (lambda: majority(rows(2), [rows(1)[0]] * 2), "same id"),
    (lambda: ladder([]), "needs rungs"), (lambda: ladder([rung("x", range(3), 5)], "exactmatch"), "exact_match"), (lambda: from_predictions("x", [], "tuned"), "no predictions"),
    (lambda: from_predictions("x", [dict(id="1", prediction="a", references=["a"])]), "each=SECONDS"), (lambda: from_predictions("x", [{}], "neural"), "unknown kind"),
    (lambda: ladder([rung("x", range(3), 5), rung("y", range(3), 6)]), "same rows"), (lambda: by_function("f", lambda q: 3, rows(2)), "no text"),
    (lambda: advise(ladder([rung("x", range(3), 5)]), 100, target=7), "target")])
def test_bad_input(make, words):
    with pytest.raises(UserError, match=words): make()


def test_the_record_of_the_four_sets():
    record = read_json(ROOT / "benchmarks" / "ladder.json")
    assert sorted(record["sets"]) == ["addresses", "definitions", "reviews", "verses"]
    for name, r in record["sets"].items():
        l = Ladder.from_dict(r["ladder"])
        assert l.n > 100 and l["majority"]["standing"] == "worse" and l.table, name
    scores = lambda s, rung, m: Ladder.from_dict(record["sets"][s]["ladder"])[rung]["scores"][m][0]
    assert .75 < scores("addresses", "address CRF", "exact_match") < .87 and .70 < scores("definitions", "word count", "exact_match") < .85
    assert 35 < scores("verses", "copy the question", "bleu") < 50
