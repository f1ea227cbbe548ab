"""The report: classes of mistakes, gates that decide as they say, slices and seeds without false alarms, pages that hold hostile text, and exit codes."""
import json, random, re, shutil, subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ftlearn.cli import main
from ftlearn.core import UserError, read_json, write_jsonl
from ftlearn.data.split import Splits, write_splits
from ftlearn.evaluate.card import model_card
from ftlearn.evaluate.changes import ERRORS, changes, error_class
from ftlearn.evaluate.compare import compare, compare_all
from ftlearn.evaluate.gates import Demand, GUIDE_GATES, Measured, _rows_for, demand, gates, outcome
from ftlearn.evaluate.metrics import pair, score
from ftlearn.evaluate.page import Page, _hash
from ftlearn.evaluate.report import report
from ftlearn.evaluate.slices import churn, clean_rows, slices
from ftlearn.stats import wilson

ROOT = Path(__file__).resolve().parent.parent


def answers(right, n=120, seed=0, **more):
    "Answers of which `right(n)` says whether they are the expected label."
    label = lambda k: ("yes", "no")[k % 2]
    return [dict(id=f"r{k}", prediction=label(k) if right(k) else label(k + 1), references=[label(k)], prompt=[dict(role="user", content="word " * (1 + k % 17) + str(k))],
                 finish_reason="stop", tokens=3 + k % 2, latency_ms=5.0 + k, **more) for k in range(n)]


@pytest.fixture
def run(tmp_path):
    write_jsonl(tmp_path / "run/predictions/base.jsonl", answers(lambda k: k % 3 == 0))
    write_jsonl(tmp_path / "run/predictions/tuned.jsonl", answers(lambda k: k % 10))
    return tmp_path / "run"


# --- what is wrong with an answer

WANT = '{"street": "Oak", "city": "Troy"}'


@pytest.mark.parametrize("text, ends, said", [
    ('{"street": "Oak", "city": "Rome"}', "stop", "wrong value"), ('{"street": "Oak"}', "stop", "missing"), ('{"street": "Oak", "city": "Troy", "zip": "1"}', "stop", "extra"),
    ('{"road": "Oak", "city": "Troy"}', "stop", "wrong field"), ("Oak in Troy", "stop", "format"), ('{"street": "Oak", "ci', "length", "truncated"), ("Sure! The street is", "length", "format"),
    (WANT + "\n" + WANT, "length", "not stopped"), ("", "stop", "no answer"), ("   ", "stop", "no answer"), (WANT, "error", "no answer"), ('{"city":"Troy","street":"Oak"}', "stop", "format"),
    ("[1, 2]", "stop", "format"), ("null", "stop", "format"), (WANT + " and so on", "stop", "format")])
def test_error_classes(text, ends, said):
    assert error_class(text, WANT, ends) == said


def test_every_wrong_answer_has_one_class_and_right_ones_have_none():
    dice = random.Random(0)
    for _ in range(300):
        texts = [WANT, "yes", "no", "", WANT[:dice.randint(0, 40)], '{"street": 1}', "x" * dice.randint(0, 9)]
        rows = lambda: [dict(id=k, prediction=dice.choice(texts), references=[WANT], finish_reason=dice.choice(["stop", "length"])) for k in range(5)]
        c = changes(pair(rows(), rows()))
        wrong = sorted(c["broken"] + c["still_wrong"])
        assert [k for k, e in enumerate(c.tuned_errors) if e] == wrong and set(c.tuned_errors) <= {"", *ERRORS}
        assert sum(e["tuned"] for e in c.errors) == len(wrong)


# --- intervals that claim nothing they do not know

def test_a_score_that_no_redraw_moves_has_no_interval():
    short = score(["a b"] * 20 + ["x"] * 5, ["a b"] * 25, ["bleu"])["bleu"]
    assert short.score == 0 and tuple(short.interval()) == (0.0, 100.0) and short.interval().method.startswith("none")
    normal = score(["the cat sat on the mat"] * 5 + ["the dog sat on a mat"] * 5, ["the cat sat on the mat"] * 10, ["bleu"])["bleu"].interval()
    assert 0 < normal.low < normal.high < 100


@pytest.mark.parametrize("n", [5, 20, 200])
def test_rows_that_all_changed_alike_leave_some_width(n):
    wrong, right = [dict(id=k, prediction="?", references=["!"]) for k in range(n)], [dict(id=k, prediction="!", references=["!"]) for k in range(n)]
    c = compare(wrong, right)
    assert c.difference == c.high == 1 and c.low == pytest.approx(1 - 2 * (1 - .05 ** (1 / n)))
    assert c.verdict == ("undecidable" if n == 5 else "better")


def test_many_alike_systems_raise_no_alarm():
    alarms = 0
    for s in range(40):
        dice = np.random.default_rng(s)
        one = lambda: [dict(id=k, prediction=str(int(x)), references=["1"]) for k, x in enumerate(dice.random(80) < .6)]
        found = compare_all({"tuned": one(), **{f"other {k}": one() for k in range(6)}}, n_resamples=400)
        alarms += any(r["verdict"] in ("better", "worse") for r in found.rows)
    assert alarms <= 6                                                # 40 times 5 % is 2


# --- gates

def test_a_gate_passes_and_fails_by_its_whole_interval():
    for k in range(0, 61, 3):
        for x in np.linspace(.01, .99, 25):
            i = wilson(k, 60)
            m = Measured(k / 60, i.low, i.high, 60, scale=1.0)
            up, down = outcome(Demand("a", ">=", x), m), outcome(Demand("a", "<=", x), m)
            assert up == ("pass" if i.low >= x else "fail" if i.high < x else "undecided")
            assert (up, down) in (("pass", "fail"), ("fail", "pass"), ("undecided", "undecided")) or x in (i.low, i.high)


def test_false_passes_and_fails_are_rare():
    dice, n = np.random.default_rng(0), 100
    for true in (.6, .95):
        for shift, bad in ((-.0001, "fail"), (.0001, "pass")):       # the demand is just met, or just missed
            counts = dice.binomial(n, true, 4000)
            words = {k: outcome(Demand("a", ">=", true + shift), Measured(k / n, *wilson(k, n), n)) for k in set(counts.tolist())}
            assert np.mean([words[k] == bad for k in counts.tolist()]) < .05


@pytest.mark.parametrize("k, n, text", [(20, 20, "format>=95%"), (0, 40, "broken<=2%"), (30, 40, "exact_match>=0.7"), (30, 40, "exact_match<0.8")])
def test_the_rows_that_would_decide_decide(k, n, text):
    d = demand(text)
    need = _rows_for(d, Measured(k / n, *wilson(k, n), n, scale=1.0))
    at = lambda m: outcome(d, Measured(k / n, *wilson(k / n * m, m), m))
    assert at(need) == "pass" and at(need - 1) == "undecided"


def test_a_demand_exactly_at_the_score_is_never_decided():
    assert _rows_for(demand("exact_match>=0.5"), Measured(.5, *wilson(20, 40), 40, scale=1.0)) is None


@pytest.mark.parametrize("text", ["", "exact_match", ">=0.5", "exact_match=>0.5", "exact_match>=", "exact_match>=0.5x", "a>=1;b", "exact match>=1"])
def test_what_is_no_gate(text):
    with pytest.raises(UserError, match="no gate"): demand(text)


# --- slices, seeds, leaks

def labelled(rows, seed):
    dice = random.Random(seed)
    return {r["id"]: dict(id=r["id"], source=dice.choice("abcd"), messages=[]) for r in rows}


def test_a_planted_weak_slice_is_found_and_nothing_else():
    rows = labelled(answers(bool, 400), 1)
    dice = random.Random(2)
    tuned = answers(lambda k: dice.random() < (.5 if rows[f"r{k}"]["source"] == "c" else .95), 400)
    found = slices(pair(answers(lambda k: k % 2, 400), tuned), rows, n_resamples=500)
    assert [(r["by"], r["slice"]) for r in found.of("weaker")] == [("source", "c")]
    assert "c" in found.headline


def test_slices_that_are_alike_raise_no_alarm():
    alarms = 0
    for s in range(60):
        dice = random.Random(s)
        one = lambda: answers(lambda k: dice.random() < .7, 150)
        base, tuned = one(), one()
        found = slices(pair(base, tuned), labelled(base, s), n_resamples=200)
        alarms += bool(found.of("weaker") or found.of("stronger") or found.worse)
    assert alarms <= 10                                               # two questions, each 5 % at most: 6 of 60


def test_a_slice_that_got_worse_keeps_the_model_from_being_shipped(run):
    rows = [dict(id=f"r{k}", source="old" if k < 40 else "new", messages=[dict(role="user", content=f"row {k} of its own kind"), dict(role="assistant", content="yes")]) for k in range(120)]
    write_jsonl(run / "predictions/base.jsonl", answers(lambda k: k < 40))
    write_jsonl(run / "predictions/tuned.jsonl", answers(lambda k: k >= 20))
    file = write_jsonl(run.parent / "rows.jsonl", rows)
    r = report(run, data=file, by=["source"], write=False, n_resamples=1000)
    assert r.comparisons[0].verdict == "better" and [x["slice"] for x in r.slices.worse] == ["old"]
    assert r.decision.word == "undecided" and "old" in r.decision.because


def test_churn_covers_the_true_share():
    hit = 0
    for s in range(60):
        dice = np.random.default_rng(s)
        runs = {str(k): [dict(id=i, prediction=str(int(x)), references=["1"]) for i, x in enumerate(dice.random(200) < .8)] for k in range(3)}
        c = churn(runs, n_resamples=400)
        hit += c.low <= 2 * .8 * .2 <= c.high
    assert hit >= 52                                                  # 57 of 60 expected


def test_a_gain_on_leaked_rows_alone_is_not_shipped(run):
    dice = random.Random(3)
    text = lambda: "".join(dice.choices("abcdefghijklmnop ", k=50))
    asks = [text() for _ in range(120)]
    row = lambda i, t: dict(id=i, messages=[dict(role="user", content=t), dict(role="assistant", content="yes")])
    write_splits(Splits([row(f"t{k}", text()) for k in range(60)] + [row(f"x{k}", asks[k][:-1] + "#") for k in range(60)], [], [row(f"r{k}", a) for k, a in enumerate(asks)], {}), run / "data")
    told = lambda right: [dict(id=f"r{k}", prediction="yes" if right(k) else "no", references=["yes"], prompt=[dict(role="user", content=asks[k])]) for k in range(120)]
    write_jsonl(run / "predictions/base.jsonl", told(lambda k: k % 2))
    write_jsonl(run / "predictions/tuned.jsonl", told(lambda k: k < 60 or k % 2))
    r = report(run, write=False, n_resamples=1000)
    assert r.comparisons[0].verdict == "better" and len(r.leaked.leaked) == 60 and r.leaked.clean.verdict != "better"
    assert r.decision.word == "undecided" and "60 of 120" in r.decision.because


# --- the page

class Reader(HTMLParser):
    "Open tags, scripts and addresses of a page."
    VOID = {"meta", "br", "input", "path", "use", "circle", "rect"}
    def __init__(self): super().__init__(); self.open, self.tags, self.urls = [], [], []
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID: self.open.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href", "action", "data", "xlink:href", "srcset") and v and not v.startswith("#")]
        assert not [k for k, _ in attrs if k.startswith("on")], (tag, attrs)
    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID: self.open.pop()
    def handle_endtag(self, tag):
        if tag not in self.VOID: assert self.open.pop() == tag


EVIL = ['</pre><script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "{{ 7*7 }}{% raw %}", "</style></title>", "`<b>`", "𝕏\u202e\x00|a|\n# h"]


def hostile(run):
    "A run whose every text is out to break the page."
    rows = []
    for k in range(60):
        e = EVIL[k % len(EVIL)]
        rows.append(dict(id=f"{k}{e}", prediction=e, references=[json.dumps({e: e, "k": str(k)})], prompt=[dict(role=e, content=e + str(k))], finish_reason="stop", source=e))
    write_jsonl(run / "predictions/base.jsonl", rows)
    write_jsonl(run / "predictions/tuned.jsonl", [r | dict(prediction=r["references"][0] if k % 3 else json.dumps({EVIL[0]: EVIL[1]})) for k, r in enumerate(rows)])
    (run / "config.toml").write_text("model = '''" + EVIL[0] + "'''\n")
    (run / "manifest.json").write_text(json.dumps(dict(model=dict(name=EVIL[1]), method=EVIL[0], device=dict(reason=EVIL[3]))))
    return report(run, n_resamples=200, probes=[dict(name=EVIL[0], headline=EVIL[1], table=[{EVIL[3]: EVIL[0]}])])


def test_hostile_text_stays_text(run):
    hostile(run)
    html = (run / "report.html").read_text()
    reader = Reader()
    reader.feed(html)
    assert reader.open == [] and reader.tags.count("script") == 1 and "img" not in reader.tags and reader.urls == []
    assert "49" not in re.findall(r"&quot;.*?7\*7", html) and "{{ 7*7 }}" in html
    script = re.search(r"<script>(.*)</script>", html, re.S)[1]
    assert f"sha256-{_hash(script)}" in html and "default-src 'none'" in html


def test_the_page_holds_every_row_without_its_script(run):
    r = report(run, n_examples=200, n_resamples=300)
    html = (run / "report.html").read_text()
    assert html.count('<details class="row"') == 120 and not re.search(r'<details class="row"[^>]*\shidden', html)
    for word in ("Gates", "What changed, row by row", "Where it is weak", "Would it hold again?", "Cost and time", "Limits of this report", r.decision.title): assert word in html
    assert len(html) < 1_000_000


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_in_a_browser_the_script_runs_and_no_other(run, tmp_path):
    hostile(run)
    done = subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
                           "--dump-dom", f"file://{run / 'report.html'}"], capture_output=True, text=True, timeout=300)
    dom = done.stdout
    assert re.search(r'<div id="filter">', dom) and re.search(r"<output[^>]*>\d+ of \d+ rows</output>", dom)
    assert "<img" not in dom and dom.count("<script") == 1


def test_the_page_is_the_same_each_time(run):
    first = report(run, n_resamples=300).to_html()
    assert first == report(run, n_resamples=300).to_html()


def test_markdown_and_card_follow_the_evidence(run):
    from huggingface_hub import ModelCard
    r = report(run, n_resamples=300)
    text, card = (run / "report.md").read_text(), (run / "model_card.md").read_text()
    assert text.startswith(f"# {run.name}: base against tuned") and "## Gates" in text and "## Limits of this report" in text
    assert card == model_card(read_json(run / "report.json"))
    head = ModelCard(card).data
    assert head.eval_results[0].metric_value == round(100 * r.comparisons[0].tuned, 2) and "interval" in head.eval_results[0].metric_name
    assert "not recorded" in card and "Not measured: consistent, rating" in card


def test_the_recorded_ladder_goes_in(run):
    ladder = read_json(ROOT / "benchmarks/ladder.json")["sets"]["definitions"]
    r = report(run, write=False, ladder=ladder, n_resamples=300)
    assert r.ladder.n == 544 and any("544" in n for n in r.notes)


# --- the command line

@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def call(*args):
        with pytest.raises(SystemExit) as e: main(["report", *map(str, args)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return e.value.code, out, err
    return call


@pytest.mark.parametrize("gate, strict, code, word", [
    ("exact_match>=0.7", False, 0, "pass"), ("exact_match>=0.97", False, 1, "fail"), ("exact_match>=90%", False, 0, "undecided"), ("exact_match>=90%", True, 1, "undecided"),
    ("gain", False, 0, "pass"), ("broken<=0.001", False, 1, "fail"), ("rating", True, 1, "undecided")])
def test_exit_codes_of_gates(cli, run, gate, strict, code, word):
    got, out, err = cli(run, "--gate", gate, *(["--strict"] if strict else []))
    assert got == code and f": {word}." in err
    assert (run / "report.html").exists()


@pytest.mark.parametrize("args, said", [
    (["--gate", "exact_match=0.6"], "no gate"), (["--gate", "exact_mach>=0.6"], "exact_match"), (["--gate", "exact_match>=60"], "60%"), (["--metrics", "blue"], "bleu"), (["--other", "x=none.jsonl"], "none.jsonl"),
    (["--seed-run", "nowhere"], "nowhere"), (["--by", "sauce"], "label"), (["--ladder", "no.json"], "no.json"), (["--ratings", "no.jsonl"], "no.jsonl")])
def test_wrong_use(cli, run, args, said):
    code, out, err = cli(run, *args)
    assert code == 2 and said in err and ("Next:" in err or "Allowed:" in err)
    assert not (run / "report.html").exists()


def test_ratings_seeds_and_others_from_files(cli, run, tmp_path):
    write_jsonl(tmp_path / "stars.jsonl", [dict(rating=5)] * 80 + [dict(rating=4)] * 40)
    write_jsonl(tmp_path / "two/predictions/tuned.jsonl", answers(lambda k: k % 11))
    code, out, err = cli(run, "--ratings", "stars.jsonl", "--seed-run", "two", "--other", "two=two", "--gate", "rating>=4", "--json")
    data = json.loads(out)
    assert code == 0 and data["gates"][0]["outcome"] == "pass"
    assert [r["name"] for r in data["systems"]["rows"]] == ["two", "tuned", "base"] and 0 < data["churn"]["share"] < .3
    write_jsonl(tmp_path / "stars.jsonl", [dict(rating=5), dict(star=1)])
    code, out, err = cli(run, "--ratings", "stars.jsonl")
    assert code == 1 and "stars.jsonl:2" in err
