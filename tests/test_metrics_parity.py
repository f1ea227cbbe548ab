"""Every metric against the implementation that others report, on thousands of random pairs, and the corners that no random pair meets."""
import difflib, json, math, random, re, string, warnings
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn import metrics as skm

from ftlearn.core import UserError
from ftlearn.evaluate.match import Undefined, class_f1, classification_report, difflib_ratio, exact_match, field_f1, json_valid, similarity, token_f1
from ftlearn.evaluate.metrics import load, read_predictions, score
from ftlearn.evaluate.overlap import any_script, bleu, chrf, rouge
from ftlearn.evaluate.squad import semantic, squad

TYPES = ["rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def lines(draw, words, most, breaks=0.1):
    return "".join(w + ("\n" if draw.random() < breaks else " ") for w in draw.choices(words, k=draw.randint(0, most)))


# few words (many ties between subsequences), many words, and everything that a tokenizer may trip over
VOCABULARIES = [["a", "b"], ["the", "cat", "cats", "sat", "sitting", "on", "mats"], ["w%d" % i for i in range(300)],
                ["The", "running", "runner's", "U.S.", "3.5", "état", "naïve", "İstanbul", "K", "don't", "—", "''", "x_y", "ﬁne", "\t", "relational", "happily", "dying", "skies"]]


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("number", range(len(VOCABULARIES)))
def test_rouge_is_bit_equal(number, stem):
    draw, words = random.Random(number), VOCABULARIES[number]
    P = [lines(draw, words, 25) for _ in range(600)]
    R = [[lines(draw, words, 25) for _ in range(draw.choice([1, 1, 1, 3]))] for _ in range(600)]
    mine, ref = rouge(P, R, TYPES, stemmer=stem, tokenize="rouge_score"), RougeScorer(TYPES, use_stemmer=stem)
    theirs = [ref.score_multi(r, p) for p, r in zip(P, R)]
    for t in TYPES:
        for name, values in (("precision", mine[t].precisions), ("recall", mine[t].recalls), ("fmeasure", mine[t].values)):
            assert values.tolist() == [float(getattr(s[t], name)) for s in theirs], (t, name)


def test_rouge_with_a_tokenizer_and_far_more_words_than_characters():
    draw = random.Random(5)
    P, R = ([" ".join(str(draw.randrange(10**9)) if draw.random() < .3 else draw.choice("ab,!") for _ in range(30)) for _ in range(200)] for _ in range(2))
    class Split: tokenize = staticmethod(str.split)
    mine, ref = rouge(P, R, TYPES, tokenize=str.split), RougeScorer(TYPES, tokenizer=Split())
    for t in TYPES: assert mine[t].values.tolist() == [float(ref.score(r, p)[t].fmeasure) for p, r in zip(P, R)]


def test_rouge_mean_of_several_references():
    mine, ref = rouge(["a dog ran"], [["a cat ran", "the dog ran away"]], several="mean"), RougeScorer(["rouge1"])
    assert mine["rouge1"].score == np.mean([ref.score(r, "a dog ran")["rouge1"].fmeasure for r in ("a cat ran", "the dog ran away")])


def test_ngrams_of_huge_vocabularies_do_not_overflow():
    from ftlearn.evaluate.overlap import _shared
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 2**31, 9).tolist() for _ in range(50)]
    other = [r[:5] + [7] + r[6:] for r in rows]
    for n in (1, 2, 4, 9):
        grams = lambda r: Counter(tuple(r[i:i + n]) for i in range(len(r) - n + 1))
        assert _shared(rows, other, n, 2**31)[0].tolist() == [(grams(a) & grams(b)).total() for a, b in zip(rows, other)]


def test_text_of_other_scripts_is_seen():
    for text in ("Привет, мир", "猫坐在垫子上", "แมวนั่ง", "नमस्ते दुनिया", "مرحبا بالعالم", "γειά σου"):
        with pytest.warns(UserWarning, match="without any a-z"): assert rouge([text], [text]).score == 1.0
        with pytest.warns(UserWarning, match="scores 0"): assert rouge([text], [text], tokenize="rouge_score").score == 0.0
        assert chrf([text], [text]).score == 100
    assert any_script("नमस्ते") == ["नमस्ते"] and any_script("猫a1") == ["猫", "a1"]
    with pytest.warns(UserWarning, match="without spaces"): assert bleu(["猫坐在垫子上"], ["猫坐在垫子上"]).score == pytest.approx(100)
    with pytest.warns(UserWarning, match="without spaces"): assert "tok:char" in bleu(["ネコがすわる"], ["ネコがすわる"]).signature
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rouge(["it costs 5 €", ""], ["it costs 5 €", "…"])


@pytest.mark.parametrize("options", [{}, {"smooth_method": "floor"}, {"lowercase": True}, {"tokenize": "char"}, {"effective_order": True}])
def test_bleu_equals_sacrebleu(options):
    draw, words = random.Random(1), "the cat sat on a mat U.S. état собака 3.5 &amp; , .".split()
    for _ in range(60):
        R = [[" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(2)] for _ in range(5)]
        P = [" ".join(w for w in r[0].split() if draw.random() < .8) for r in R]
        ref = sacrebleu.BLEU(**options)
        s = bleu(P, R, **options)
        assert s.score == ref.corpus_score(P, [list(x) for x in zip(*R)]).score and s.signature == str(ref.get_signature())


def test_chrf_equals_sacrebleu():
    draw = random.Random(2)
    for k in range(60):
        R = [["".join(draw.choices("ab cdé я", k=draw.randint(1, 20))) for _ in range(2)] for _ in range(5)]
        P = ["".join(draw.choices("ab cdé я", k=draw.randint(0, 20))) for _ in R]
        ref = sacrebleu.CHRF(word_order=k % 3)
        assert chrf(P, R, word_order=k % 3).score == ref.corpus_score(P, [list(x) for x in zip(*R)]).score


def test_labels_equal_scikit_learn():
    draw = random.Random(3)
    for _ in range(500):
        known, n = "abcd"[:draw.randint(2, 4)], draw.randint(1, 30)
        t, a = draw.choices(known, k=n), draw.choices(known + "?!", k=n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = classification_report(a, t, labels=list(known))
            for avg in ("macro", "micro", "weighted"):
                ref = skm.precision_recall_fscore_support(t, a, labels=list(known), average=avg, zero_division=0)[:3]
                assert [getattr(r, avg)[k] for k in ("precision", "recall", "f1")] == pytest.approx(ref, abs=1e-12)
                assert class_f1(a, t, list(known), avg).score == pytest.approx(ref[2], abs=1e-12)
            assert r.accuracy == skm.accuracy_score(t, a)
            assert r.balanced_accuracy == pytest.approx(skm.balanced_accuracy_score(t, a), abs=1e-12)
            if r.mcc is None: assert len(set(t)) == 1 or len(set(a)) == 1
            else: assert r.mcc == pytest.approx(skm.matthews_corrcoef(t, a), abs=1e-12)
        assert r.confusion.sum() == n and sum(r.unknown.values()) == sum(x in "?!" for x in a)


def rules(p, golds, v2):
    "SQuAD's two scripts, from their published rules."
    norm = lambda s: " ".join(re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in s.lower() if c not in set(string.punctuation))).split())
    if v2: golds = [g for g in golds if norm(g)] or [""]
    def f1(g):
        a, b = norm(p).split(), norm(g).split()
        same = sum((Counter(a) & Counter(b)).values())
        if v2 and (not a or not b): return int(a == b)
        return 0 if same == 0 else 2*(same/len(a))*(same/len(b))/(same/len(a) + same/len(b))
    return max(norm(p) == norm(g) for g in golds), max(f1(g) for g in golds)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_rules(version):
    draw, words = random.Random(4), ["the", "a", "an", "cat", "Cat!", "dog", "...", "état", "“x”", "U.S.", "a-b", "A"]
    text = lambda: " ".join(draw.choices(words, k=draw.randint(0, 5)))
    P, R = [text() for _ in range(3000)], [[text() for _ in range(draw.randint(version == "1.1", 3))] for _ in range(3000)]
    ref, r = [rules(p, g, version == "2.0") for p, g in zip(P, R)], squad(P, R, version)
    assert r["exact"].values.tolist() == [e for e, _ in ref] and r["f1"].values.tolist() == [f for _, f in ref]
    assert token_f1(P, R, version).values.tolist() == r["f1"].values.tolist()


def test_where_scores_mislead():
    yes, no = '{"sentiment": "positive"}', '{"sentiment": "negative"}'
    assert round(difflib_ratio([yes], [no]).score, 2) == 0.84 and exact_match([yes], [no]).score == field_f1([yes], [no]).score == 0
    assert difflib_ratio(["tide"], ["diet"]).score == difflib.SequenceMatcher(None, "tide", "diet").ratio() != difflib_ratio(["diet"], ["tide"]).score
    assert similarity(["tide"], ["diet"]).score == similarity(["diet"], ["tide"]).score
    assert (squad(["the"], ["a"])["f1"].score, squad(["the"], ["a"], "2.0")["f1"].score) == (0, 1)
    with pytest.warns(UserWarning, match="fewer than 4 tokens"): assert bleu(["the cat"], ["the cat"]).score == 0


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "similarity", "difflib", "json_valid", "bleu", "chrf", "rouge", "accuracy", "f1"])
def test_corners_are_defined(name):
    long = "word " * 20_000 if name != "difflib" else "word " * 500
    for p, r in (("", "cat"), ("cat", "cat"), ("", ""), (long, "cat"), (long, long)):
        value = score([p], [r], [name])[name]
        assert math.isfinite(value.score) and 0 <= value.score <= value.scale * (1 + 1e-12)
        assert math.isfinite(value.interval().low)


BAD = [((["a"], ["a", "b"]), "differ in number"), ((["a", None], ["a", "b"]), "row 1"), ((["a", float("nan")], ["a", "b"]), "row 1"), ((["a"], [[]]), "row 0"),
       ((["a"], [None]), "row 0"), ((["a"], [["a", 3]]), "row 0"), (([], []), "no rows"), (("cat", "cat"), "one entry a row"), ((["a", {"text": "a"}], ["a", "b"]), "row 1")]


@pytest.mark.parametrize("args,message", BAD)
@pytest.mark.parametrize("metric", [exact_match, token_f1, similarity, bleu, chrf, rouge, classification_report, field_f1, squad])
def test_bad_rows_are_named(metric, args, message):
    with pytest.raises(UserError, match=message): metric(*args)


def test_bad_names_and_files(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'rougeL'"): score(["a"], ["a"], "rouge-l")
    with pytest.raises(UserError, match="Did you mean 'sacrebleu'"): load("sacre_blue")
    with pytest.raises(UserError, match="sentence-embedding"): semantic(["a"], ["a"])
    good = {"id": "a", "prediction": "x", "references": ["x"]}
    for change, message in (({"id": "a"}, "came before"), ({"id": "b", "references": []}, "no reference"), ({"id": "b", "prediction": 3}, "not a string"), ({"id": None}, "id is not")):
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
        with pytest.raises(UserError, match=rf"p\.jsonl:2: .*{message}"): read_predictions(path)


def test_an_undefined_metric_is_left_out_and_says_so():
    table = score(["yes"], ["yes"], ["exact_match", "field_f1"])
    assert list(table) == ["exact_match"] and "no JSON object" in table.undefined["field_f1"] and "left out" in table._repr_markdown_()
    with pytest.raises(Undefined): score(["yes"], ["yes"], ["field_f1"])
    assert classification_report(["a"] * 3, ["a", "b", "a"]).mcc is None


def test_schema():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert json_valid(['{"n": 1}', '{"n": "1"}', '{"n": 1', "1"], schema).values.tolist() == [1, 0, 0, 0]


# --- the READMEs of the evaluate library's modules: inputs and printed values
CATS = dict(references=["the cat", "theater", "YELLING", "agent007"], predictions=["cat?", "theater", "yelling", "agent"])
BOTH = dict(ignore_case=True, ignore_punctuation=True)
README = [
    ("exact_match", CATS, {}, {"exact_match": 0.25}), ("exact_match", CATS, dict(regexes_to_ignore=["the ", "yell"], **BOTH), {"exact_match": 0.5}),
    ("exact_match", CATS, dict(regexes_to_ignore=["the ", "yell", "YELL"], **BOTH), {"exact_match": 0.75}),
    ("exact_match", CATS, dict(regexes_to_ignore=["the ", "yell", "YELL"], ignore_numbers=True, **BOTH), {"exact_match": 1.0}),
    ("exact_match", dict(references=["The cat sat on the mat.", "Theaters are great.", "It's like comparing oranges and apples."],
                         predictions=["The cat sat on the mat?", "Theaters are great.", "It's like comparing apples and oranges."]), {}, {"exact_match": 0.33}),
    ("f1", dict(predictions=[0, 1], references=[0, 1]), {}, {"f1": 1.0}),
    *[("f1", dict(references=[0, 1, 0, 1, 0], predictions=[0, 0, 1, 1, 0]), o, {"f1": v}) for o, v in (({}, 0.5), ({"pos_label": 0}, 0.67), ({"sample_weight": [.9, .5, 3.9, 1.2, .3]}, 0.35))],
    *[("f1", dict(references=[0, 1, 2, 0, 1, 2], predictions=[0, 2, 1, 0, 0, 1]), {"average": a}, {"f1": v}) for a, v in (("macro", 0.27), ("micro", 0.33), ("weighted", 0.27), (None, [0.8, 0, 0]))],
    *[("bleu", dict(predictions=["hello there general kenobi", "foo bar foobar"], references=[["hello there general kenobi", *more], ["foo bar foobar"]]), {},
       {"bleu": 1.0, "precisions": [1.0] * 4, "brevity_penalty": 1.0, "length_ratio": 7 / n, "translation_length": 7, "reference_length": n})
      for more, n in ((["hello there !"], 6), ([], 7), (["hello there!"], 6))],
    ("sacrebleu", dict(predictions=["hello there general kenobi", "foo bar foobar"], references=[["hello there general kenobi", "hello there !"], ["foo bar foobar"] * 2]), {}, {"score": 100.0}),
    ("sacrebleu", dict(predictions=["hello there general kenobi", "on our way to ankh morpork"], references=[["hello there general kenobi", "hello there !"], ["goodbye ankh morpork", "ankh morpork"]]), {},
     {"score": 39.76353643835252, "counts": [6, 4, 2, 1], "totals": [10, 8, 6, 4], "precisions": [60.0, 50.0, 33.333333333333336, 25.0], "bp": 1.0, "sys_len": 10, "ref_len": 7}),
    ("rouge", dict(predictions=["hello there", "general kenobi"], references=["hello there", "general kenobi"]), {}, dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0)),
    ("rouge", dict(predictions=["hello there", "general kenobi"], references=["hello there", "general kenobi"]), {"tokenizer": str.split}, dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0)),
    ("rouge", dict(predictions=["hello there", "general kenobi"], references=[["hello", "there"], ["general kenobi", "general yoda"]]), {},
     {"rouge1": 0.8333, "rouge2": 0.5, "rougeL": 0.8333, "rougeLsum": 0.8333}),
    *[("squad", dict(predictions=[{"prediction_text": p, "id": "56e10a3be3433e1400422b22"}], references=[{"answers": {"answer_start": [97], "text": ["1976"]}, "id": "56e10a3be3433e1400422b22"}]), {},
       {"exact_match": v, "f1": v}) for p, v in (("1976", 100.0), ("1999", 0.0))],
    ("squad", dict(predictions=[{"prediction_text": p, "id": i} for p, i in (("1976", "a"), ("Beyonce", "b"), ("climate change", "c"))],
                   references=[{"answers": {"answer_start": [1], "text": [t]}, "id": i} for t, i in (("1976", "a"), ("Beyoncé and Bruno Mars", "b"), ("climate change", "c"))]), {},
     {"exact_match": 66.66666666666667, "f1": 66.66666666666667}),
]


@pytest.mark.parametrize("name,data,options,printed", README)
def test_printed_values(name, data, options, printed):
    got = load(name, seed=0).compute(**data, **options)
    for key, value in printed.items():
        digits = len(str(value).split(".")[1]) if isinstance(value, float) else None
        assert (np.round(got[key], digits) if digits else got[key]) == pytest.approx(value, abs=1e-9), key
    if name == "sacrebleu": assert list(got) == ["score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len"]


def test_the_two_printed_values_that_the_hubs_own_script_does_not_give():
    "The rouge README prints [0.5, 0.0] and 0.25: precision, from an older version. Its script, and rouge_score, give F, 2/3; and it refuses the name rouge_1."
    bye = dict(predictions=["hello goodbye", "ankh morpork"], references=["goodbye", "general kenobi"])
    s = RougeScorer(["rouge1"]).score("goodbye", "hello goodbye")["rouge1"]
    assert (s.precision, s.fmeasure) == (0.5, 2 / 3)
    assert load("rouge").compute(**bye, use_aggregator=False)["rouge1"] == [2 / 3, 0.0]
    assert load("rouge", seed=0).compute(**bye, rouge_types=["rouge_1"]) == {"rouge1": pytest.approx(1 / 3)}


def test_nltk_tokenizer_of_the_bleu_readme():
    from nltk.tokenize import word_tokenize
    words = lambda text: word_tokenize(text, preserve_line=True)             # without this it wants data that is not here
    r = load("bleu").compute(predictions=["hello there general kenobi", "foo bar foobar"], references=[["hello there general kenobi", "hello there!"], ["foo bar foobar"]], tokenizer=words)
    assert r == {"bleu": 1.0, "precisions": [1.0] * 4, "brevity_penalty": 1.0, "length_ratio": 7 / 6, "translation_length": 7, "reference_length": 6}


def test_modules_combine():
    import evaluate
    both = evaluate.combine([load("exact_match"), load("rouge", seed=0), load("bleu")])
    both.add_batch(predictions=["the cat sat on the mat"], references=["the cat sat on the mat"])
    out = both.compute()
    assert out["exact_match"] == out["rougeL"] == out["bleu"] == 1.0


def test_squad_v2_module():
    P = [{"id": "a", "prediction_text": "1976", "no_answer_probability": 0.0}]
    R = [{"id": "a", "answers": {"text": ["1976"], "answer_start": [97]}}]
    assert load("squad_v2").compute(predictions=P, references=R) == {"exact": 100.0, "f1": 100.0, "total": 1, "HasAns_exact": 100.0, "HasAns_f1": 100.0, "HasAns_total": 1,
                                                                     "best_exact": 100.0, "best_exact_thresh": 0.0, "best_f1": 100.0, "best_f1_thresh": 0.0}
    with pytest.raises(UserError, match="no prediction"): load("squad_v2").compute(predictions=P, references=[{**R[0], "id": "b"}])
    with pytest.raises(UserError, match="comes twice"): load("squad").compute(predictions=[{"id": "a", "prediction_text": "x"}] * 2, references=R * 2)
