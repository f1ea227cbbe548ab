"""Splits: the same bytes twice, the same place for old rows when rows are added and shuffled, no near copy on two sides; of the sets that ship, and of random ones."""
import random

import pytest

from ftlearn.core import UserError, data_root, read_jsonl, write_jsonl
from ftlearn.data import sources
from ftlearn.data.duplicates import asked, components, jaccard, near_duplicates, shingles
from ftlearn.data.split import SPLITS, leakage, load_splits, prep, split_rows

SETS = sorted(d.name for d in data_root().iterdir() if (d / f"{d.name}.jsonl").is_file())


GROUP = {name: sources.card(name).group for name in SETS}


def source(name): return data_root() / name / f"{name}.jsonl"


def bytes_of(folder): return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def places(splits): return {row["id"]: name for name in SPLITS for row in splits[name]}


def moved(before, after):
    now = places(after)
    return [i for i, name in places(before).items() if now.get(i) != name]


def shuffled(rows, path, seed=0):
    write_jsonl(path, random.Random(seed).sample(rows, len(rows)))
    return path


@pytest.mark.parametrize("name", SETS)
def test_twice_the_same_bytes(name, tmp_path):
    a, b = prep(source(name), tmp_path / "a"), prep(source(name), tmp_path / "b")
    assert bytes_of(a.path) == bytes_of(b.path)
    assert bytes_of(prep(source(name), tmp_path / "b").path) == bytes_of(a.path)       # over itself, too
    assert sum(f["rows"] for f in a.manifest["files"].values()) + len(a.manifest["dropped"]) == len(read_jsonl(source(name)))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("options", [{}, {"ratios": "78/6/16", "seed": 42}, {"ratios": "70/10/20", "seed": 42, "group": True}])
def test_old_rows_stay_when_the_last_hundred_are_added_and_all_shuffled(name, options, tmp_path):
    rows = read_jsonl(source(name))
    if options.get("group"): options = {**options, "group": GROUP[name]}
    write_jsonl(tmp_path / "old.jsonl", rows[:-100])
    before = prep(tmp_path / "old.jsonl", tmp_path / "before", **options)
    assert moved(before, prep(shuffled(rows, tmp_path / "all.jsonl"), tmp_path / "after", **options)) == []


@pytest.mark.parametrize("name", SETS)
def test_old_rows_stay_when_new_ones_and_near_copies_of_them_are_added(name, tmp_path):
    rows, rng = read_jsonl(source(name)), random.Random(3)
    def new(k, old):
        text = asked(old) + "," if k % 2 else f"an entirely new text, number {k}, about {rng.choice(asked(old).split())}"
        return {"id": f"{name}-new-{k}", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]}
    more = [new(k, old) for k, old in enumerate(rng.sample(rows, 100))]
    before = prep(source(name), tmp_path / "before")
    after = prep(shuffled(rows + more, tmp_path / "all.jsonl"), tmp_path / "after")
    assert moved(before, after) == []
    assert [f for f in leakage(after).findings if f.code != "leak-template"] == []


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", range(3))
def test_any_hundred_rows_may_come_later_with_the_earlier_data_set_at_hand(name, seed, tmp_path):
    rows = read_jsonl(source(name))
    late = set(random.Random(seed).sample(range(len(rows)), 100))
    write_jsonl(tmp_path / "old.jsonl", [r for i, r in enumerate(rows) if i not in late])
    before = prep(tmp_path / "old.jsonl", tmp_path / "before")
    every = shuffled(rows, tmp_path / "all.jsonl", seed)
    assert moved(before, prep(every, tmp_path / "after", previous=before.path)) == []
    linked = components((i, j) for i, j, _ in near_duplicates([asked(r) for r in rows], 0.8))   # without it, only what hangs together with a late row can move
    near_late = {rows[i]["id"] for family in linked if late & set(family) for i in family}
    assert set(moved(before, prep(every, tmp_path / "fresh"))) <= near_late
    old_backup = before.manifest["source"]["backup"]
    again = prep(every, before.path)                                      # into the same folder: taken as the earlier data set
    assert moved(before, again) == [] and (again.path / old_backup).read_bytes() == (tmp_path / "old.jsonl").read_bytes()
    assert bytes_of(again.path) == bytes_of(prep(every, before.path).path)


@pytest.mark.parametrize("name", SETS)
def test_no_near_copy_stands_on_two_sides(name, tmp_path):
    clean, plain = prep(source(name), tmp_path / "a"), prep(source(name), tmp_path / "b", near=None)
    assert [f for f in leakage(clean).findings if f.code != "leak-template"] == []
    assert clean.manifest["near"]["torn_pairs"] == 0 and clean.manifest["near"]["families"] > 0
    assert clean.manifest["near"]["dropped"] <= 0.005 * len(read_jsonl(source(name)))
    assert len(leakage(plain).findings) >= len(leakage(clean).findings)


def test_the_demo_has_its_test_rows(tmp_path):
    assert len(prep(source("addresses"), tmp_path / "d", ratios="78/6/16", seed=42).test) >= 200


def test_the_backup_is_the_source(tmp_path):
    s = prep(source("definitions"), tmp_path / "d")
    assert (s.path / s.manifest["source"]["backup"]).read_bytes() == source("definitions").read_bytes()
    assert s.manifest["source"]["backup"].startswith("source/" + s.manifest["source"]["sha256"][:16])
    assert load_splits(s.path).test == s.test


@pytest.mark.parametrize("name", SETS)
def test_groups_stay_whole_and_lose_few_rows(name, tmp_path):
    if not GROUP[name]: pytest.skip("no groups in this set")
    s = prep(source(name), tmp_path / "d", group=GROUP[name])
    where = {}
    for split in SPLITS:
        for row in s[split]: where.setdefault(row[GROUP[name]], set()).add(split)
    assert {len(w) for w in where.values()} == {1} and leakage(s).ok
    assert s.manifest["near"]["dropped"] <= 0.005 * sum(len(s[n]) for n in SPLITS)


WORDS = "amber birch cedar delta ember frost grove haven inlet".split()


def crowd(rng, n):
    "Rows with rising ids and many near copies, in groups of about three."
    kinds = rng.randint(4, 9)
    return [{"id": i, "prompt": " ".join(rng.choices(WORDS[:kinds], k=rng.randint(3, 6))), "completion": str(rng.randint(0, 5)), "page": f"page {rng.randrange(8 + n // 3)}",
             "label": rng.choice("ab")} for i in range(n)]


@pytest.mark.parametrize("group", [None, "page"])
@pytest.mark.parametrize("seed", range(40))
def test_younger_rows_never_change_older_ones_and_no_near_pair_is_torn(seed, group):
    rng = random.Random(seed)
    n, near = (rng.randint(20, 49), rng.randint(60, 150))[seed % 2], rng.choice([0.5, 0.6, 0.8])
    rows = crowd(rng, n)
    cut = rng.randint(10, n - 5) if n < 50 else rng.randint(50, n - 5)           # from 50 rows on a fixed instruction is looked for
    early = split_rows(rng.sample(rows[:cut], cut), "50/25/25", seed, group, near=near)
    late = split_rows(rng.sample(rows, n), "50/25/25", seed, group, near=near)
    assert moved(early, late) == []
    assert {d["id"] for d in early.manifest["dropped"]} <= {d["id"] for d in late.manifest["dropped"]}
    kept = [(name, row) for name in SPLITS for row in late[name]]
    assert len(kept) + len(late.manifest["dropped"]) == n
    if n < 50: assert [(a["id"], b["id"]) for s, a in kept for t, b in kept if s != t and jaccard(shingles(a["prompt"]), shingles(b["prompt"])) >= near] == []
    assert late.manifest["near"]["torn_pairs"] == 0
    if group: assert len({(row[group], name) for name, row in kept}) == len({row[group] for _, row in kept})


@pytest.mark.parametrize("group", [None, "page"])
@pytest.mark.parametrize("seed", range(10))
def test_with_the_earlier_split_at_hand_rows_of_any_id_may_come(seed, group):
    rng = random.Random(seed)
    rows = crowd(rng, 90)
    rng.shuffle(rows)                                                              # the newcomers have ids in between
    for stratify in (None, "label"):
        early = split_rows(rows[:60], "50/25/25", seed, group, stratify, near=0.6)
        late = split_rows(rows, "50/25/25", seed, group, stratify, near=0.6, previous=early)
        assert moved(early, late) == [] and late.manifest["near"]["torn_pairs"] == 0
        again = split_rows(rows, "50/25/25", seed, group, stratify, near=0.6, previous=late)
        assert places(again) == places(late) and [d["id"] for d in again.manifest["dropped"]] == [d["id"] for d in late.manifest["dropped"]]


def test_a_bridge_between_two_places_is_left_out(tmp_path):
    words = "amber birch cedar delta ember frost grove haven inlet jetty knoll larch marsh north ocean pearl".split()
    def row(i, text): return {"id": i, "prompt": text, "completion": "x"}
    text = " ".join(words)
    east, west, bridge = "so " + text, text + " too", text
    for seed in range(100):
        write_jsonl(tmp_path / "old.jsonl", [row(1, east + " in the east of it"), row(2, "in the west of " + west), *(row(10 + k, f"filler {k} " + " ".join(random.Random(k).choices(words, k=9))) for k in range(9))])
        before = prep(tmp_path / "old.jsonl", tmp_path / "d", seed=seed)
        if {places(before)[1], places(before)[2]} == {"train", "test"}: break
    write_jsonl(tmp_path / "new.jsonl", [*read_jsonl(tmp_path / "old.jsonl"), row(3, bridge)])
    after = prep(tmp_path / "new.jsonl", tmp_path / "d", seed=seed)
    assert moved(before, after) == []
    assert leakage(after).ok and after.manifest["near"]["torn_pairs"] == 0 and after.manifest["near"]["dropped"] == 1
    (out,) = after.manifest["dropped"]
    assert out["id"] == "3" and out["line"] == 12 and "a near copy of 1 (" in out["why"] and "and of 2 (" in out["why"]
    assert "left out" in after._repr_markdown_()


def test_what_an_earlier_data_set_tore_stays_and_is_reported(tmp_path):
    text = " ".join(WORDS)
    for seed in range(100):
        write_jsonl(tmp_path / "old.jsonl", [{"id": 1, "prompt": text, "completion": "x"}, {"id": 2, "prompt": text + " too", "completion": "x"}, {"id": 3, "prompt": "filler", "completion": "x"}])
        try: before = prep(tmp_path / "old.jsonl", tmp_path / f"d{seed}", seed=seed, near=None)
        except UserError: continue
        if {places(before)[1], places(before)[2]} == {"train", "test"}: break
    after = prep(tmp_path / "old.jsonl", tmp_path / f"d{seed}", seed=seed)
    assert moved(before, after) == [] and after.manifest["near"]["torn_pairs"] == 1
    assert [f.code for f in leakage(after).findings] == ["leak-near"] and "torn pairs" in after._repr_markdown_()
