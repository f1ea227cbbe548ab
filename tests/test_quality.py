"""The quality report: planted faults are found, planted secrets never come out, and clean rows raise no alarm."""
import io, json, logging, random, time

import pytest

from ftlearn.core import UserError, data_root, read_jsonl, write_jsonl
from ftlearn.data.labels import label_errors
from ftlearn.data.private import KINDS, find_private, mask, redact
from ftlearn.data.quality import CODES, quality

EMAIL, CARD, IBAN, SSN, PHONE = "jane.roe@mail.test", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "536-22-8145", "(415) 555-2671"
KEY = "ghp_" + "aB3dE6gH9j" * 4                       # in pieces, so that no scanner takes it for a real one
BLOCK = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow" + "IBAAKCAQEA\n" * 3 + "-----END RSA " + "PRIVATE KEY-----"
PLANTED = {"personal-email": EMAIL, "personal-card": CARD, "personal-iban": IBAN, "personal-ssn": SSN, "personal-phone": PHONE, "secret-key": KEY, "secret-private-key": BLOCK}

NOUNS = "river ladder violin harbour cactus engine pillow lantern museum bicycle glacier carpet telescope orchard kettle saddle anchor balcony compass dragonfly".split()
VERBS = "paint carry borrow repair polish describe measure photograph sketch assemble".split()


def clean(n=240, seed=0):
    "Rows without a fault: varied questions, JSON answers, several sources."
    draw = random.Random(seed)
    starts = ["{b} or {a}: which should one {v} first?", "Is there a {a} to {v} under the {b}?", "{v} {a} {b} price list", "How do I {v} a {a} near the {b}?", "Can you {v} my {a} before the {b} closes?", "I want to {v} one {a} and a {b} tomorrow.", "Please {v} the {a} with some {b} oil.",
              "What does it cost to {v} an old {a} from the {b}?", "Who may {v} the {a} behind our {b}?", "Tell me when to {v} this {a} or that {b}."]
    rows, seen = [], set()
    while len(rows) < n:
        v, a, b = draw.choice(VERBS), *draw.sample(NOUNS, 2)
        d, e = draw.sample(NOUNS, 2)
        text = draw.choice(starts).format(v=v, a=a, b=b) + draw.choice([" My {0} waits by the {1}.", " Then {2} it with a {1}!", " The {1} was too heavy for my {0}, sadly.", " Nobody could {2} the {0} here."]).format(d, e, draw.choice(VERBS))
        if text in seen: continue
        seen.add(text)
        rows.append({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps({"verb": v, "thing": a, "place": b})}], "source": f"shop-{len(rows) % 4}"})
    return rows


def codes(report): return {f.code for f in report.findings}
def lines(report, code): return [line for _, line in report.lines.get(code, [])]
def answer(row, text): return {**row, "messages": [row["messages"][0], {"role": "assistant", "content": text}]}
def question(row, text): return {**row, "messages": [{"role": "user", "content": text}, row["messages"][1]]}


def outputs(report, path):
    "All that a report can say about itself."
    return {"dict": json.dumps(report.to_dict(), ensure_ascii=False), "escaped": json.dumps(report.to_dict()), "html": report._repr_html_(), "page": report.write(path).read_text(encoding="utf-8"),
            "markdown": report._repr_markdown_(), "repr": repr(report), "state": repr(vars(report))}


def pieces(value):
    "The value, and what would give half of it away: long runs of it from either end."
    return [value] + [p for line in value.split("\n") for p in (line[:len(line) * 2 // 3], line[-(len(line) * 2 // 3):]) if len(p) > 7 and "PRIVATE KEY" not in p and "BEGIN" not in p and "END" not in p]


def test_clean_rows_raise_no_alarm(tmp_path):
    r = quality(write_jsonl(tmp_path/"clean.jsonl", clean()), verified="A. Teacher")
    assert r.ok and not r.warnings, r.findings
    status = {c["item"]: c["status"] for c in r.checklist}
    assert len(status) == 8 and all(set(c) == {"item", "status", "evidence"} for c in r.checklist)
    assert {i for i, s in status.items() if s != "pass"} == {"split into train, validation and test", "backup kept"}
    assert set(r.to_dict()) == {"ok", "rows", "findings", "checklist"}


def absent(report, path, log, why):
    for name, text in [*outputs(report, path).items(), ("log", log)]:
        for value in PLANTED.values():
            for piece in pieces(value): assert piece not in text and json.dumps(piece)[1:-1] not in text, f"{why}: {piece[:6]}... shows in {name}"


PLACES = {"question": lambda row, v: question(row, f"I am here: {v} is mine, thank you"), "answer": lambda row, v: answer(row, f"Use {v} please"), "json": lambda row, v: answer(row, json.dumps({"verb": v, "thing": "x", "place": "y"})),
          "key": lambda row, v: answer(row, json.dumps({"verb": "a", "thing": "b", "place": "c", v: "d"})), "label": lambda row, v: {**row, "label": v}, "source": lambda row, v: {**row, "source": v},
          "system": lambda row, v: {**row, "messages": [{"role": "system", "content": f"Serve {v} now"}, *row["messages"]]}, "id": lambda row, v: {"id": v, **row}, "start": lambda row, v: question(row, f"{v} is mine")}


@pytest.mark.parametrize("where", PLACES)
def test_planted_values_are_found_and_never_shown(tmp_path, caplog, where):
    rows = clean(60)
    if where == "label": rows = [{**r, "label": f"a{i % 2}"} for i, r in enumerate(rows)]
    for n, value in enumerate(PLANTED.values()): rows[20 + n] = PLACES[where](rows[20 + n], value)
    with caplog.at_level(logging.DEBUG): r = quality(rows)
    for n, kind in enumerate(PLANTED): assert lines(r, kind) == [21 + n], kind
    absent(r, tmp_path/"q.html", caplog.text, where)


@pytest.mark.parametrize("kind", PLANTED)
def test_severity(kind):
    rows = clean(30)
    rows[3] = answer(rows[3], f"Use {PLANTED[kind]} please")
    r = quality(rows)
    assert {f.severity for f in r.findings if f.code == kind} == {KINDS[kind][0]} and r.ok == (KINDS[kind][0] != "error")


BROKEN = {"content-dict": lambda v: {"prompt": "x", "completion": {"to": v, "again": v}}, "unknown-shape": lambda v: {"question": v, v: "answer"}, "bad-role": lambda v: {"messages": [{"role": v, "content": "x"}]},
          "bad-label": lambda v: {"prompt": "x", "completion": "y", "label": {"of": v}}, "messages-text": lambda v: {"messages": v}, "extra-key": lambda v: {"prompt": "x", "completion": "y", v: 1}}


@pytest.mark.parametrize("how", BROKEN)
def test_planted_values_in_broken_rows_never_show(tmp_path, caplog, how):
    rows = clean(30) + [BROKEN[how](value) for value in PLANTED.values()]
    with caplog.at_level(logging.DEBUG): r = quality(write_jsonl(tmp_path/"rows.jsonl", rows))
    assert set(PLANTED) <= codes(r)
    absent(r, tmp_path/"q.html", caplog.text, how)


def test_lines_that_are_no_rows_never_show(tmp_path):
    good = [json.dumps(r) for r in clean(30)]
    bad = [json.dumps(f"mail {EMAIL}"), json.dumps([KEY, CARD]), '{"prompt": "' + KEY + '", "completion": "x",}', "{'prompt': '" + EMAIL + "'}", json.dumps({"prompt": CARD})[:-1], '{"' + EMAIL + '": 1, "' + EMAIL + '": 2}', KEY]
    path = tmp_path/"rows.jsonl"
    path.write_text("\n".join(good + bad) + "\n", encoding="utf-8")
    r = quality(path)
    assert not r.ok and r.rows >= 30
    for name, text in outputs(r, tmp_path/"q.html").items():
        for value in (EMAIL, KEY, CARD):
            for piece in pieces(value): assert piece not in text, name


def test_errors_do_not_repeat_values(tmp_path):
    for call in (lambda: quality(clean(30), limits={KEY: 1}), lambda: redact([{"prompt": CARD}], kinds=["personal-cart"]), lambda: quality(tmp_path/"missing.jsonl")):
        with pytest.raises(UserError) as e: call()
        assert CARD not in str(e.value) and (KEY in str(e.value)) == ("limit" in str(e.value))    # only what the caller typed as a name comes back


def test_many_hits_are_one_finding():
    rows = [question(r, f"{r['messages'][0]['content']} Write to u{n}@mail.test") for n, r in enumerate(clean(60))]
    r = quality(rows)
    assert [f.code for f in r.findings].count("personal-email") == 1 and len(r.lines["personal-email"]) == 60
    assert "60 of 60 rows" in next(f.message for f in r.findings if f.code == "personal-email")


def test_redact_gives_rows_that_are_clean_and_valid():
    rows = [{"prompt": f"a {v} b", "completion": json.dumps({"x": v, "n": 4111111111111111}), "id": n} for n, v in enumerate(PLANTED.values())]
    before = json.dumps(rows)
    new, counts = redact(rows)
    assert json.dumps(rows) == before and counts["personal-card"] >= 7
    for row in new:
        assert not [h for k in ("prompt", "completion") for h in find_private(row[k])]
        assert set(json.loads(row["completion"])) == {"x", "n"}
    assert [r["id"] for r in new] == list(range(len(rows)))


@pytest.mark.parametrize("text", ["1" * 300_000, "1 " * 150_000, "4 " * 150_000, "4111 " * 60_000, "a@" * 150_000, "a@" + "a." * 150_000, "AA11 " * 60_000, "eyJ" * 100_000, "Aa " * 100_000, "1 Aa " * 60_000,
                                  "-----BEGIN PRIVATE KEY-----" * 10_000, "-----BEGIN PRIVATE KEY-----" + "A" * 300_000, "password=" * 30_000, "token: " * 40_000, "://" * 100_000, "+1(" * 100_000, "sk-" * 100_000, "12 rue d" * 40_000])
def test_no_text_takes_long(text):
    start = time.process_time()
    find_private(text)
    assert time.process_time() - start < 8


def test_format_mix():
    rows = clean(200)
    rows[10], rows[70], rows[90] = answer(rows[10], "Sure, it can be done."), answer(rows[70], '{"verb": "paint", "thing": '), answer(rows[90], "```json\n{}\n```")
    rows[120] = answer(rows[120], json.dumps({"verb": "paint", "thign": "river", "place": "museum"}))
    rows[130] = answer(rows[130], json.dumps({"verb": "paint", "thing": 3, "place": "museum"}))
    r = quality(rows)
    assert sorted(lines(r, "mixed-answer-format")) == [11, 91] and lines(r, "broken-json") == [71]
    assert lines(r, "odd-key") == [121] and lines(r, "odd-type") == [131] and not r.ok
    assert next(c for c in r.checklist if c["item"].startswith("valid"))["status"] == "fail"


def test_conflicts_and_duplicates():
    rows = clean(100)
    rows[50] = answer(rows[3], json.dumps({"verb": "carry", "thing": "nothing", "place": "nowhere"}))
    rows[60] = dict(rows[4])
    words = rows[5]["messages"][0]["content"]
    rows[70] = question(rows[5], words.upper())
    rows[80] = question(rows[6], rows[6]["messages"][0]["content"] + " Now.")
    r = quality(rows)
    assert lines(r, "conflicting-answer") == [51] and sorted(lines(r, "exact-duplicate")) == [61, 71] and lines(r, "near-duplicate") == [81]


def test_damage():
    rows = clean(100)
    plant = {5: ("mojibake", "Is the cafÃ© in ZÃ¼rich open on Sundays?"), 15: ("replacement-character", "Is the caf� open today, please?"), 25: ("control-character", "Is the caf\u0000e open to\u200bday?"),
             35: ("mixed-script", "May I pay with раypal at the counter?"), 45: ("html-entity", "Do you sell fish &amp; chips on Fridays?")}
    for i, (_, text) in plant.items(): rows[i] = question(rows[i], text)
    r = quality(rows)
    for i, (code, _) in plant.items(): assert lines(r, code) == [i + 1], code


def test_lengths_and_languages():
    rows = clean(200)
    rows[30], rows[31] = question(rows[30], "Hm?"), question(rows[31], " ".join(r["messages"][0]["content"] for r in rows))
    rows[32] = question(rows[32], "Können Sie mir bitte sagen, wann der Laden am Sonntag wieder öffnet?")
    r = quality(rows)
    assert sorted(set(lines(r, "length-outlier"))) == [31, 32] and lines(r, "other-language") == [33]


def labelled():
    rows = read_jsonl(data_root()/"definitions"/"definitions.jsonl")
    return [r["messages"][1]["content"] for r in rows], [r["label"] for r in rows]


@pytest.mark.parametrize("seed", [1, 2])
def test_label_errors_are_ranked(seed):
    "5 % of the labels of the definitions are changed: of the 20 and 50 least believed, most must be among them. Blind picking gives 5 %."
    texts, labels = labelled()
    draw, names = random.Random(seed), sorted(set(labels))
    wrong = set(draw.sample(range(len(labels)), len(labels)//20))
    found = label_errors(texts, [draw.choice([n for n in names if n != x]) if i in wrong else x for i, x in enumerate(labels)])
    hit = [s["place"] in wrong for s in found.suspects]
    assert sum(hit[:20]) >= 15 and sum(hit[:50]) >= 33 and sum(hit) >= 0.45*len(wrong)


def test_label_balance_and_spelling():
    rows = [{"prompt": r["messages"][0]["content"], "completion": "no" if n % 20 else "yes"} for n, r in enumerate(clean(200))]
    rows[40]["completion"] = "Yes"
    r = quality(rows)
    assert "label-imbalance" in codes(r) and lines(r, "label-spelling") == [41]


def test_sources():
    assert "one-source" in codes(quality([{**r, "source": f"wiki:{n}"} for n, r in enumerate(clean(100))]))
    assert "no-source" in codes(quality([{k: v for k, v in r.items() if k != "source"} for r in clean(100)]))


@pytest.mark.parametrize("verified,status", [(None, "warn"), (True, "pass"), ("A. Teacher", "pass"), (False, "fail")])
def test_verified_is_asked(verified, status):
    item = next(c for c in quality(clean(30), verified=verified).checklist if "verified" in c["item"])
    assert item["status"] == status and (verified != "A. Teacher" or "A. Teacher" in item["evidence"])


def test_directory_places_and_leakage(tmp_path):
    rows = clean(100)
    rows[90] = question(rows[90], f"Write to {EMAIL} about the museum")
    for name, part in (("train", rows[:80]), ("validation", rows[80:90]), ("test", rows[90:])): write_jsonl(tmp_path/"set"/f"{name}.jsonl", part)
    class Leak: findings = [type(quality(rows[:1]).findings[0])("leak-exact", "error", 3, f"the same as train 4: 'ask {EMAIL[:9]}…", "remove it", "test")]
    r = quality(tmp_path/"set", leakage=Leak)
    assert r.lines["personal-email"] == [("test", 1)] and r.rows == 100
    assert ("test", 1) in [(f.split, f.line) for f in r.findings if f.code == "personal-email"]
    assert "leak-exact" in codes(r) and not r.ok
    assert next(c for c in r.checklist if c["item"].startswith("split"))["status"] == "fail"
    assert all(EMAIL[:9] not in text for text in outputs(r, tmp_path/"q.html").values())


def test_prepared_directory(tmp_path):
    from ftlearn.data.split import leakage, load_splits, prep
    rows = clean(300)
    prep(write_jsonl(tmp_path/"rows.jsonl", rows), tmp_path/"set")
    splits = load_splits(tmp_path/"set")
    r = quality(tmp_path/"set", leakage=leakage(splits), verified=True)
    status = {c["item"]: c["status"] for c in r.checklist}
    assert r.ok and status["backup kept"] == "pass" and status["split into train, validation and test"] in ("pass", "warn") and not any(c.startswith("leak-exact") for c in codes(r))
    splits.test.extend(splits.train[:8])
    r = quality(rows, leakage=leakage(splits))
    assert [f.code for f in r.findings].count("leak-exact") == 1 and len(r.lines["leak-exact"]) == 8 and not r.ok


def test_empty_and_tiny(tmp_path):
    (tmp_path/"empty.jsonl").write_text("")
    r = quality(tmp_path/"empty.jsonl")
    assert not r.ok and r.rows == 0 and len(r.checklist) == 8 and r._repr_html_()
    assert quality([{"prompt": "Why?", "completion": "So."}]).ok


def test_tokens_and_cost():
    from ftlearn.tiny import tiny_rows, tiny_tokenizer
    rows = tiny_rows(60)
    r = quality(rows, tokenizer=tiny_tokenizer(), max_length=10, epochs=2)
    assert len(r.lines["too-long"]) == 60 and any("Cost" in t for t in r.tables)
    with pytest.raises(UserError, match="chat template"):
        tok = tiny_tokenizer(); tok.chat_template = None
        quality(rows, tokenizer=tok)


def test_html_escapes(tmp_path):
    rows = [{**r, "source": "<script>alert(1)</script>"} for r in clean(30)]
    page = quality(rows).write(tmp_path/"q.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page


@pytest.mark.parametrize("name", ["addresses", "definitions"])
def test_shipped_data_have_no_errors(name):
    start = time.process_time()
    r = quality(data_root()/name/f"{name}.jsonl")
    assert r.ok and len(r.findings) < 15 and time.process_time() - start < 20
    assert codes(r) <= set(CODES) | {"crlf"}
