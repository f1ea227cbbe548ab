"""Splits of the sets that ship: the same bytes twice, the same place for old rows when rows are added and shuffled, no near copy on two sides."""
import random

import pytest

from ftlearn.core import data_root, read_jsonl, write_jsonl
from ftlearn.data.duplicates import asked
from ftlearn.data.split import SPLITS, leakage, load_splits, prep

SETS = sorted(d.name for d in data_root().iterdir() if (d / f"{d.name}.jsonl").is_file())


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
@pytest.mark.parametrize("options", [{}, {"ratios": "78/6/16", "seed": 42}])
def test_old_rows_stay_when_the_last_hundred_are_added_and_all_shuffled(name, options, tmp_path):
    rows = read_jsonl(source(name))
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
    assert len(moved(before, prep(every, tmp_path / "fresh"))) <= 3      # without it, only a row with a near copy among the late ones can move
    old_backup = before.manifest["source"]["backup"]
    again = prep(every, before.path)                                      # into the same folder: taken as the earlier data set
    assert moved(before, again) == [] and (again.path / old_backup).read_bytes() == (tmp_path / "old.jsonl").read_bytes()
    assert bytes_of(again.path) == bytes_of(prep(every, before.path).path)


@pytest.mark.parametrize("name", SETS)
def test_no_near_copy_stands_on_two_sides(name, tmp_path):
    clean, plain = prep(source(name), tmp_path / "a"), prep(source(name), tmp_path / "b", near=None)
    assert [f for f in leakage(clean).findings if f.code != "leak-template"] == []
    assert clean.manifest["near"]["torn_pairs"] == 0 and clean.manifest["near"]["families"] > 0
    assert len(leakage(plain).findings) >= len(leakage(clean).findings)


def test_the_demo_has_its_test_rows(tmp_path):
    assert len(prep(source("addresses"), tmp_path / "d", ratios="78/6/16", seed=42).test) >= 200


def test_the_backup_is_the_source(tmp_path):
    s = prep(source("definitions"), tmp_path / "d")
    assert (s.path / s.manifest["source"]["backup"]).read_bytes() == source("definitions").read_bytes()
    assert s.manifest["source"]["backup"].startswith("source/" + s.manifest["source"]["sha256"][:16])
    assert load_splits(s.path).test == s.test


def test_a_bridge_between_two_places_is_reported(tmp_path):
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
    leaks = leakage(after)
    assert [f.code for f in leaks.findings] == ["leak-near"] and not leaks.ok
    assert after.manifest["near"]["torn_pairs"] == 1
    assert "torn pairs" in after._repr_markdown_()
