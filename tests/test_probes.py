"""Probes: likelihoods equal to one by one on every path, forgetting without false alarms, shares and intervals that hold, a judge whose faults are found."""
import json, random, time
from pathlib import Path

import numpy as np
import pytest
import torch

from judging import answering
from ftlearn.core import UserError, data_root, pick_device, sha256_file
from ftlearn.data.sources import load
from ftlearn.evaluate.choice import ChoiceScores, Perplexity, perplexity, token_logprobs
from ftlearn.evaluate.counterfactual import SWAPS, swap_words
from ftlearn.evaluate.endpoint import Endpoint
from ftlearn.evaluate.forget import Abilities, forgetting, load_slice, slice_table
from ftlearn.evaluate.judge import agreement, corrected, judge_pairs
from ftlearn.evaluate.probes import consistency, grounding, same_form, stop_rate, two_rates
from ftlearn.model.load import Loaded
from ftlearn.tiny import tiny_model, tiny_tokenizer


def tiny(model=None): return Loaded(model or tiny_model(0), tiny_tokenizer(), Path("tiny"), "tiny", pick_device("cpu", "float32"))


def sequences(n, seed, longest=60):
    "Rows of sequences with much, little and nothing in common."
    dice = random.Random(seed)
    every, rows = dice.choices(range(3, 250), k=10), []
    for _ in range(n):
        begin = every[:dice.choice((0, 10))] + dice.choices(range(3, 250), k=dice.randint(1, longest))
        row = [begin + dice.choices(range(3, 250), k=dice.randint(1, 15)) for _ in range(dice.randint(1, 6))]
        rows.append([(s, dice.randint(1, len(s) - 1)) for s in row])
    return rows


def alone(model, rows):
    out = []
    for row in rows:
        for ids, start in row:
            with torch.no_grad(): p = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            out += [p[t - 1, ids[t]].item() for t in range(start, len(ids))]
    return np.array(out)


def flat(found): return np.concatenate([x for row in found for x in row])


# --- likelihoods

@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("most", [1, 64, 700, 5000])
def test_equal_to_one_by_one(attn, most):
    "Every batch size, both kinds of attention, all kinds of sharing."
    model = tiny_model(0)
    model.set_attn_implementation(attn)
    rows = sequences(30, most)
    assert np.abs(flat(token_logprobs(tiny(model), rows, most)) - alone(tiny_model(0), rows)).max() < 1e-4


def test_all_alike_and_nothing_alike():
    "One sequence; the same one twice; sequences that share all but the last token; none that shares anything."
    rows = [[([5, 6], 1)], [([5, 6, 7], 1), ([5, 6, 7], 2)], [([9, 9, 9, k], 3) for k in range(3, 9)], [([k, 4], 1) for k in range(3, 9)]]
    for some in (rows, rows[:1], rows[1:2], rows[2:3], rows[3:]):
        assert np.abs(flat(token_logprobs(tiny(), some)) - alone(tiny_model(0), some)).max() < 1e-4


def test_order_does_not_matter():
    rows = sequences(20, 1)
    turned = token_logprobs(tiny(), rows[::-1], 300)[::-1]
    assert np.abs(flat(turned) - flat(token_logprobs(tiny(), rows, 300))).max() < 1e-4


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prompt"])
def test_adapters(method):
    "What a PeftModel says in a batch is what it says alone."
    from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
    config = {"lora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), "dora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=True),
              "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
              "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)}[method]
    torch.manual_seed(0)
    model, rows, skip = get_peft_model(tiny_model(0), config).eval(), sequences(12, 3), 5*(method == "prompt")
    want = []
    for row in rows:
        for ids, start in row:
            with torch.no_grad(): p = model(input_ids=torch.tensor([ids])).logits[0, skip:].log_softmax(-1)
            want += [p[t - 1, ids[t]].item() for t in range(start, len(ids))]
    assert np.abs(flat(token_logprobs(tiny(model), rows)) - want).max() < 1e-4
    assert np.abs(np.array(want) - alone(tiny_model(0), rows)).max() > 1e-2, "the adapter must do something"


def test_the_model_is_left_as_it_was():
    model = tiny_model(0).train()
    before = {id(m): "forward" in vars(m) for m in model.modules()}
    hooks = len(model.get_output_embeddings()._forward_pre_hooks)
    token_logprobs(tiny(model), sequences(3, 0))
    with pytest.raises(UserError): token_logprobs(tiny(model), [[([1]*600, 1)]])
    assert model.training and {id(m): "forward" in vars(m) for m in model.modules()} == before and len(model.get_output_embeddings()._forward_pre_hooks) == hooks


def test_windows_count_every_token_once():
    "A long text in windows of any length: the same number of tokens, and the first window as it is alone."
    text, model = "2 red cats and 3 blue dogs, "*30, tiny()
    n = perplexity(model, [text]).tokens[0]
    for window in (2, 3, 17, 100, 512): assert perplexity(model, [text], window=window).tokens[0] == n
    assert perplexity(model, [text], window=2).nll[0] != perplexity(model, [text]).nll[0]


# --- the slices

def test_slices_are_what_they_say():
    table = slice_table()
    assert set(table) == {p.stem for p in (data_root() / "probes").glob("*.jsonl")}
    for name, about in table.items():
        rows = load_slice(name)
        assert len(rows) == about["rows"] and len({r["id"] for r in rows}) == len(rows) and sha256_file(data_root() / "probes" / f"{name}.jsonl") == about["sha256"]
        if "text" in rows[0]: assert len({r["text"] for r in rows}) == len(rows); continue
        assert len({(r["context"], *sorted(r["choices"])) for r in rows}) == len(rows)
        assert all(len(set(r["choices"])) == len(r["choices"]) and 0 <= r["answer"] < len(r["choices"]) for r in rows)
        places = np.bincount([r["answer"] for r in rows])/len(rows)
        assert places.max() < 1.5/len(places), "always picking one place must not pay"


def test_no_slice_is_trained_on():
    "No definition of the course's data set stands in a slice."
    trained = {m["content"].lower() for r in load("definitions") for m in r["messages"] if m["role"] == "user"}
    for name in slice_table():
        for r in load_slice(name):
            text = r.get("text") or r["context"]
            assert text.lower() not in trained and not (text.count('"') == 2 and text.split('"')[1].lower() in trained), r["id"]


def test_grammar_differs_in_few_words():
    for r in load_slice("grammar"):
        a, b = (c.split() for c in r["choices"])
        assert len(a) == len(b) and (sum(x != y for x, y in zip(a, b)) <= 3 or sorted(x.strip("?.").lower() for x in a) == sorted(x.strip("?.").lower() for x in b)), r


def test_a_changed_slice_is_refused(tmp_path, monkeypatch):
    import shutil
    shutil.copytree(data_root() / "probes", tmp_path / "probes")
    monkeypatch.setenv("FTLEARN_DATA", str(tmp_path))
    assert len(load_slice("kinds")) == 200
    with (tmp_path / "probes" / "kinds.jsonl").open("a") as f: f.write("{}\n")
    with pytest.raises(UserError, match="sha256"): load_slice("kinds")


# --- forgetting

def choice(values, name="c"):
    "A slice with these right and wrong answers."
    logprobs = [np.array([0.0, -1.0]) if v else np.array([-1.0, 0.0]) for v in values]
    return ChoiceScores(name, [str(i) for i in range(len(values))], logprobs, [0]*len(values), [np.ones((2, 2))]*len(values), [None]*len(values))


def texts(nll, tokens, name="t"): return Perplexity(name, [str(i) for i in range(len(nll))], nll, tokens, tokens*4)


def world(seed, loss, n=200):
    "Before and after on three choice slices and one of texts; a share `loss` of the right answers is lost, and some probability of the texts."
    rng, before, after = np.random.default_rng(seed), Abilities(), Abilities()
    for name in "abc":
        v = rng.random(n) < 0.7
        before[name], after[name] = choice(v, name), choice(v & (rng.random(n) >= loss), name)
    tokens = rng.integers(5, 20, n)
    nll = tokens*3.0 + rng.normal(0, 3, n)
    before["t"], after["t"] = texts(nll, tokens), texts(nll + rng.normal(0.5*loss*tokens, 1.0), tokens)
    return before, after


def null_world(seed, n=200):
    "Nothing was lost: right answers come and go evenly."
    rng, before, after = np.random.default_rng(seed), Abilities(), Abilities()
    for name in "abc":
        p = rng.beta(4, 2, n)
        before[name], after[name] = choice(rng.random(n) < p, name), choice(rng.random(n) < p, name)
    return before, after


def test_few_false_alarms():
    "Where nothing was lost, hardly a world is called forgetful; where a fifth was lost, nearly all."
    alarms = np.mean([forgetting(*null_world(i), n_resamples=400).verdict == "forgot" for i in range(150)])
    found = np.mean([forgetting(*world(i, 0.2), n_resamples=400).verdict == "forgot" for i in range(30)])
    assert alarms <= 0.06 and found > 0.95, (alarms, found)


def test_kept_needs_rows():
    "The same model twice: kept with 400 rows, undecidable with 20."
    for n, word in ((400, "kept"), (20, "undecidable")):
        before, _ = null_world(0, n)
        assert forgetting(before, before, n_resamples=400).verdict == word


# --- shares

def test_consistency_does_not_hang_on_the_order():
    dice = random.Random(0)
    answers = [dice.choices(["a", "b", '{"x":1}', '{"x": 1}', None], k=3) for _ in range(60)]
    mixed = [dice.sample(a, 3) for a in answers]
    assert (consistency(answers).scores.values == consistency(mixed).scores.values).all()


def test_same_form_of_odd_json():
    assert same_form("[" * 100_000) == "[" * 100_000 and same_form("NaN") == "NaN"
    assert same_form('{"a": 1.0}') != same_form('{"a": "1.0"}') and same_form("true") != same_form("1")


@pytest.mark.parametrize("value", ["a+b (c)", "$4.00", "[x]*", "Ünïcode Straße", "北京", "\\d", "-5", "1e400", "'", "007"])
def test_grounding_of_odd_values(value):
    "Values with signs that mean something in a pattern are found where they stand, and not where they do not."
    p = lambda text: [{"id": 1, "prompt": text, "prediction": json.dumps({"v": value})}]
    assert grounding(p(f"it is {value} here")).score == 1
    assert grounding(p("nothing of the kind")).score == 0


def test_grounding_is_whole_words_and_quick():
    assert grounding([{"id": 1, "prompt": "Concord 12345", "prediction": '{"a":"Con","b":"234","c":345}'}]).score == 0
    start, text = time.monotonic(), "lorem ipsum 12 Dolor " * 5000
    assert grounding([{"id": 1, "prompt": text, "prediction": json.dumps([f"w{i}" for i in range(50)])}]).score == 0
    assert time.monotonic() - start < 10
    stop_rate([{"id": 1, "prediction": text, "finish_reason": "length"}])


def test_two_rates_cover():
    "Intervals of two independent rates hold the truth, and Fisher's p cries wolf in at most 5 %."
    rng, held, alarms = np.random.default_rng(0), [], []
    for _ in range(1500):
        r = two_rates(int(rng.binomial(40, .3)), 40, int(rng.binomial(60, .2)), 60)
        held.append(r.low <= 0.1 <= r.high)
        alarms.append(two_rates(int(rng.binomial(40, .3)), 40, int(rng.binomial(60, .3)), 60).p < .05)
    assert 0.935 < np.mean(held) < 0.97 and np.mean(alarms) < 0.05


@pytest.mark.parametrize("name", ["names", "places"])
def test_swapping_twice_gives_the_text_again(name):
    dice, words = random.Random(0), [w for p in SWAPS[name] for w in p]
    first = {}
    for a, b in SWAPS[name]: first.setdefault(a, b); first.setdefault(b, a)
    both_ways = [w for w in words if first.get(first[w]) == w]
    for _ in range(50):
        text = " ".join(dice.choice([w, w.upper(), "the", "x" + w, "9,"]) for w in dice.choices(both_ways, k=12))
        once, a, b = swap_words(text, name)
        assert swap_words(once, name)[0] == text and (once != text) == (a + b > 0)


# --- the judge

def told(text):
    "Says what the question tells it to say."
    first = "<answer 1>good" in text
    return "[[1]]" if "always first" in text else "hm" if "mute" in text else "hm" if "half mute" in text and first else ("[[1]]" if first else "[[2]]")


@pytest.fixture
def fickle():
    with answering(told) as url: yield Endpoint(url, "f", retries=0)


def sides(question, n=12): return ([{"id": i, "prompt": f"{question} {i}", "prediction": a} for i in range(n)] for a in ("bad", "good"))


def test_a_judge_that_always_takes_the_first(fickle):
    "It gives every row half a point, whatever the answers; its liking is found."
    r = judge_pairs(fickle, *sides("always first"), progress=False)
    assert set(r.values) == {0.5} and r.verdict != "better" and r.first_liking().score == 1 and r.steady().score == 0


def test_a_steady_judge_and_its_silence(fickle):
    r = judge_pairs(fickle, *sides("plain"), progress=False)
    assert r.verdict == "better" and r.first_liking().score == 0.5 and r.steady().score == 1
    (a, b), (c, d) = sides("plain", 6), sides("mute", 8)
    both = judge_pairs(fickle, [*a, *c[6:]], [*b, *d[6:]], progress=False)
    assert len(both) == 6 and both.unread == ["6", "7"]
    with pytest.raises(UserError, match="no verdict"): judge_pairs(fickle, *sides("mute"), progress=False)


def test_no_judge_at_all(fickle):
    with pytest.raises(UserError, match="no server answers"): judge_pairs(Endpoint("http://127.0.0.1:9/v1", "f", retries=0), *sides("plain"), progress=False)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_intervals_hold(weights):
    "Kappa of a world that is known: the interval holds the long run's value in 95 of 100 draws, about."
    from sklearn.metrics import cohen_kappa_score
    rng = np.random.default_rng(1)
    def draw(n):
        people = rng.integers(1, 5, n)
        return np.where(rng.random(n) < .6, people, rng.integers(1, 5, n)), people
    truth, held = cohen_kappa_score(*draw(400_000), weights=weights), []
    for i in range(400):
        a, b = draw(80)
        r = agreement(a.tolist(), b.tolist(), weights, n_resamples=400, seed=i)
        held.append(r.low <= truth <= r.high)
    assert 0.91 < np.mean(held) < 0.985, np.mean(held)


@pytest.mark.parametrize("n, accuracy", [(20, .95), (50, .7), (200, .9), (50, .5)])
def test_corrected_intervals_hold(n, accuracy):
    "A judge of any quality, few or many rows of people: the corrected interval holds the truth."
    held = []
    for seed in range(800):
        rng = np.random.default_rng(seed)
        people = (rng.random(n + 300) < .55)*1.0
        judge = np.where(rng.random(n + 300) < accuracy, people, 1 - people)
        c = corrected(dict(enumerate(judge.tolist())), dict(enumerate(people[:n].tolist())))
        held.append(c.low <= .55 <= c.high)
    assert 0.925 < np.mean(held) < 0.975, np.mean(held)
