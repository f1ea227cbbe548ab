"""Statistics against scipy and against known worlds."""
import math, tracemalloc

import numpy as np
import pytest
from scipy import stats as sps

from ftlearn.core import UserError
from ftlearn.decide import Decision, decide, holm, power_curve, rows_to_decide
from ftlearn.evaluate.match import Scores
from ftlearn.stats import (bootstrap, by_group, clopper_pearson, detectable, mcnemar, paired_bootstrap, percentiles, permutation, power_at, required_n, resampled, verdict, wilson)


def test_wilson_and_exact_intervals_equal_scipy():
    for n in (1, 2, 9, 60, 333):
        for k in range(0, n + 1, max(1, n // 30)):
            for level in (0.8, 0.95, 0.99):
                t = sps.binomtest(k, n)
                assert tuple(wilson(k, n, level)) == pytest.approx(tuple(t.proportion_ci(level, "wilson")), abs=1e-9)
                assert tuple(clopper_pearson(k, n, level)) == pytest.approx(tuple(t.proportion_ci(level, "exact")), abs=1e-9)


def test_mcnemar_equals_scipy():
    rng = np.random.default_rng(0)
    for n in (5, 40, 200):
        a, b = rng.integers(0, 2, (2, n))
        m = mcnemar(a, b)
        assert m.method == "exact" and m.p == pytest.approx(sps.binomtest(m.n01, m.n01 + m.n10).pvalue if m.n01 + m.n10 else 1)
        assert paired_bootstrap(a, b, 50).p == pytest.approx(m.p)


def test_permutation_equals_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 9))
    assert permutation(x, y) == pytest.approx(sps.permutation_test((x, y), lambda u, v: np.mean(v - u), permutation_type="samples").pvalue)
    x, y = rng.choice([0, .25, .5, 1], (2, 900))                      # few kinds of rows: the other way of tossing
    ref = sps.permutation_test((x, y), lambda u, v, axis: np.mean(v - u, axis=axis), permutation_type="samples", vectorized=True, rng=0).pvalue
    assert permutation(x, y) == pytest.approx(ref, abs=0.03)


def test_drawing_kinds_and_drawing_rows_agree():
    rng = np.random.default_rng(2)
    few = rng.choice([0., .5, 1.], (500, 2))
    many = few + rng.normal(0, 1e-9, few.shape)                        # every row another: no kinds
    a, b = (resampled(x, lambda s: s[:, 0]/s[:, 1], 20_000, 0) for x in (few, many))
    assert a.mean() == pytest.approx(b.mean(), rel=2e-3) and a.std() == pytest.approx(b.std(), rel=0.03)
    assert np.array_equal(resampled(few, lambda s: s, 10, 3), resampled(few, lambda s: s, 10, 3))


def test_memory_stays_small():
    rows = np.random.default_rng(0).random((20_000, 30))
    tracemalloc.start()
    resampled(rows, lambda s: s[:, 0], 500)
    assert tracemalloc.get_traced_memory()[1] < 20e6


def test_percentiles_are_those_of_hesterberg():
    draws = np.linspace(0, 1, 100_001)
    for n in (5, 30, 1000):
        tail = sps.norm.cdf(math.sqrt(n/(n - 1))*sps.t.ppf(0.025, n - 1))
        assert percentiles(draws, n) == pytest.approx([tail, 1 - tail], abs=1e-4)


@pytest.mark.parametrize("kind", ["graded", "skewed", "rate", "groups"])
def test_intervals_cover_what_they_promise(kind):
    rng, worlds = np.random.default_rng(7), 1500
    if kind == "rate": hit = [p in wilson(rng.binomial(80, p), 80) for p in rng.uniform(.1, .9, 6000)]
    elif kind == "graded": hit = [0.74 in bootstrap(rng.choice([0, .5, .8, 1], 120, p=[.1, .2, .3, .4]), n_resamples=500, seed=i) for i in range(worlds)]
    elif kind == "skewed": hit = [0.8 in bootstrap(rng.beta(4, 1, 80), n_resamples=500, seed=i) for i in range(worlds)]
    else: hit = [0 in bootstrap(np.repeat(rng.normal(0, 1, 80), 3) + rng.normal(0, 1, 240), n_resamples=500, seed=i, groups=np.arange(240)//3) for i in range(worlds)]
    assert 0.935 < np.mean(hit) < 0.965


def test_groups_widen_the_interval_and_scores_know_them():
    v = np.repeat(np.random.default_rng(0).random(40), 5)
    g = np.repeat(np.arange(40), 5)
    wide, narrow = bootstrap(v, groups=g), bootstrap(v)
    assert wide.method == "cluster bootstrap" and (wide.high - wide.low) > 2*(narrow.high - narrow.low)
    moved = np.clip(v + np.repeat(np.random.default_rng(1).normal(.05, .2, 40), 5), 0, 1)   # whole groups go up or down together
    s, t = Scores("x", v, float(v.mean())), Scores("x", moved, float(moved.mean()))
    assert tuple(s.interval(groups=g)) == tuple(wide)
    assert t.against(s, groups=g).p > t.against(s).p
    assert by_group(np.ones((4, 1)), ["b", "a", "b", "b"]).tolist() == [[3], [1]]


def test_power():
    assert [required_n(0.10, d) for d in (0.15, 0.25, 0.35)] == [116, 194, 273]
    assert all(required_n(detectable(n) + 1e-9) <= n for n in (30, 77, 500))
    assert power_at(194, 0.10) == pytest.approx(0.8, abs=3e-3)
    assert "19 points" in power_curve(50)._repr_markdown_()


def test_holm():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert dict(holm(p)) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}) and holm(p).clear == ["a", "d"]


def test_four_verdicts_and_the_rows_that_would_decide():
    rng = np.random.default_rng(0)
    base = (rng.random(400) < .5).astype(float)
    some = np.where(rng.random(400) < .1, rng.integers(0, 2, 400), base)
    assert decide(base, np.ones(400)).verdict == "better" and decide(base, np.zeros(400)).verdict == "worse"
    assert decide(base, some, margin=0.2).verdict == "equivalent"
    d = decide([0, 1, 1, 0, 1], [1, 1, 1, 0, 1])
    assert isinstance(d, Decision) and d.verdict == "undecidable" and d.rows_needed > 5 and "would decide" in str(d)
    assert rows_to_decide(0, -.1, .1, 50) is None and rows_to_decide(0, -.1, .1, 50, margin=.05) > 50
    assert verdict(0.01, 0.2, p=0.5) == "undecidable"


@pytest.mark.parametrize("call,message", [
    (lambda: wilson(3, 2), "k=3"), (lambda: wilson(1, 2, 95), "0.95"), (lambda: bootstrap([]), "at least one row"), (lambda: bootstrap([1, math.nan, 2]), "row 1"),
    (lambda: paired_bootstrap([1, 2], [1]), "same rows"), (lambda: paired_bootstrap([1, 2], [1, math.inf]), "row 1"), (lambda: mcnemar([.5], [1]), "right or wrong"),
    (lambda: bootstrap([1, 2], groups=["a"]), "differ in number"), (lambda: bootstrap([1, 2], groups=["a", "a"]), "one group"), (lambda: required_n(10), "0.10"),
    (lambda: required_n(.3), "discordance"), (lambda: holm([1.5]), "no p"), (lambda: decide([1]), "two lists"), (lambda: detectable(0), "1 or more")])
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(UserError, match=message): call()
