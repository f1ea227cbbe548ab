"""Files as people really send them: what is found, on which line, how many good rows are left, the exit code, the time and the memory."""
import codecs, gzip, json, os, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import ROOT
from ftlearn.cli import main
from ftlearn.core import UserError
from ftlearn.data.formats import CODES, load_rows, repair, validate
from ftlearn.files import EXPANDS, open_rows
from ftlearn.parse import LIMIT

GOOD = b'{"prompt": "Name the capital: France", "completion": "Paris"}\n'
NEXT = b'{"prompt": "Name the capital: Spain", "completion": "Madrid"}\n'
MB = 300                                                        # the most that any of these may take


def chat(*messages, **more): return json.dumps({"messages": [{"role": r, "content": c} for r, c in messages], **more}).encode() + b"\n"


def line(**kw): return json.dumps({"prompt": "p", "completion": "c", **kw}).encode() + b"\n"


U, A = ("user", "x"), ("assistant", "y")
BAD = {  # name: (bytes, findings as (code, line), rows, good rows)
    "bad line in the middle": (GOOD + b"{oops\n" + NEXT, [("json-syntax", 2)], 2, 2),
    "BOM": (codecs.BOM_UTF8 + GOOD + NEXT, [("byte-order-mark", 1)], 2, 2),
    "CRLF": ((GOOD + NEXT).replace(b"\n", b"\r\n"), [("crlf", 1)], 2, 2),
    "UTF-16, little end first": (codecs.BOM_UTF16_LE + (GOOD + NEXT).decode().encode("utf-16-le"), [("encoding", 1)], 2, 2),
    "UTF-16, big end first": (codecs.BOM_UTF16_BE + (GOOD + NEXT).decode().encode("utf-16-be"), [("encoding", 1)], 2, 2),
    "UTF-16 without a mark": ((GOOD + NEXT).decode().encode("utf-16-le"), [("encoding", 1)], 2, 2),
    "Latin-1": (GOOD + '{"prompt": "café", "completion": "c"}\n'.encode("latin-1") + NEXT, [("encoding", 2)], 2, 2),
    "NUL in a text": (GOOD + b'{"prompt": "a\0b", "completion": "c"}\n' + NEXT, [("bad-character", 2)], 2, 2),
    "NUL as an escape": (GOOD + b'{"prompt": "a\\u0000b", "completion": "c"}\n' + NEXT, [("bad-character", 2)], 3, 2),
    "NULs at the end": (GOOD + NEXT + b"\0" * 4096, [("bad-character", 3)], 2, 2),
    "high surrogate": (GOOD + b'{"prompt": "a\\ud83d", "completion": "c"}\n' + NEXT, [("bad-character", 2)], 3, 2),
    "low surrogate": (GOOD + b'{"prompt": "p", "completion": "\\ude00"}\n' + NEXT, [("bad-character", 2)], 3, 2),
    "surrogate as bytes": (GOOD + b'{"prompt": "\xed\xa0\xbd", "completion": "c"}\n' + NEXT, [("encoding", 2)], 2, 2),
    "trailing comma": (GOOD + b'{"prompt": "p", "completion": "c",}\n' + NEXT, [("json-syntax", 2)], 2, 2),
    "NaN": (GOOD + line(weight=float("nan")) + NEXT, [("json-syntax", 2)], 2, 2),
    "infinity": (GOOD + line(weight=float("-inf")) + NEXT, [("json-syntax", 2)], 2, 2),
    "NaN where nothing reads it": (GOOD + line(note=[{"a": float("nan")}]) + NEXT, [("json-syntax", 2)], 2, 2),
    "duplicate key": (GOOD + b'{"prompt": "p", "completion": "a", "completion": "b"}\n' + NEXT, [("duplicate-key", 2)], 3, 2),
    "duplicate key, deep": (GOOD + chat(U, A).replace(b'"content": "y"', b'"content": "y", "content": "z"') + NEXT, [("duplicate-key", 2), ("mixed-formats", 2)], 3, 2),
    "100,000 brackets": (GOOD + b"[" * 100_000 + b"]" * 100_000 + b"\n" + NEXT, [("json-depth", 2)], 2, 2),
    "100,000 braces": (GOOD + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n" + NEXT, [("json-depth", 2)], 2, 2),
    "100,000 brackets in a row": (GOOD + b'{"prompt": "p", "completion": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + NEXT, [("json-depth", 2)], 2, 2),
    "a number with 400 digits": (GOOD + b'{"prompt": "p", "completion": "c", "id": ' + b"7" * 400 + b"}\n" + NEXT, [("number-range", 2)], 3, 2),
    "a number with 40,000 digits": (GOOD + b'{"prompt": "p", "completion": "c", "note": -' + b"7" * 40_000 + b"}\n" + NEXT, [("number-range", 2), ("unknown-key", 2)], 3, 2),
    "a number too large for a float": (GOOD + b'{"prompt": "p", "completion": "c", "weight": 1e400}\n' + NEXT, [("number-range", 2)], 3, 2),
    "no final newline": (GOOD + NEXT[:-1], [], 2, 2),
    "empty file": (b"", [("empty-file", None)], 0, 0),
    "only white space": (b"\n \n", [("blank-line", 1), ("blank-line", 2), ("empty-file", None)], 0, 0),
    "only a BOM": (codecs.BOM_UTF8, [("byte-order-mark", 1), ("empty-file", None)], 0, 0),
    "roles out of order": (GOOD + chat(A, U) + NEXT, [("role-order", 2), ("mixed-formats", 2)], 3, 2),
    "no assistant turn": (GOOD + chat(U) + NEXT, [("no-answer", 2), ("mixed-formats", 2)], 3, 2),
    "null as content": (GOOD + chat(("user", None), A) + NEXT, [("content-type", 2), ("mixed-formats", 2)], 3, 2),
    "a number as content": (GOOD + chat(U, ("assistant", 42)) + NEXT, [("content-type", 2), ("mixed-formats", 2)], 3, 2),
    "a list as content": (GOOD + chat(U, ("assistant", ["a", "b"])) + NEXT, [("content-type", 2), ("mixed-formats", 2)], 3, 2),
    "a JSON array": (b"[" + GOOD.strip() + b",\n" + NEXT.strip() + b"]\n", [("json-array", 1)], 2, 2),
    "two rows on a line": (GOOD.strip() + b" " + NEXT + GOOD, [("json-syntax", 1)], 1, 1),
    "a row over two lines": (GOOD.replace(b", ", b",\n") + NEXT, [("json-syntax", 1), ("json-syntax", 2)], 1, 1),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, capsys, name):
    "The codes and lines, the good rows and their use, the exit code; and a repaired copy that has no error and leaves the original as it is."
    data, want, rows, good = BAD[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    start = time.monotonic()
    r = validate(path)
    found = [(f.code, f.line) for f in r.findings]
    assert [f for f in found if f[0] != "type-change"] == sorted(want, key=lambda f: (f[1] is None, f[1] or 0))
    assert (r.rows, r.good) == (rows, good)
    assert all(f.severity == CODES[f.code][0] and f.message and f.fix and len(f.message) < 300 for f in r.findings)
    usable = load_rows(path, skip_bad=True)
    assert len(usable) == good and all(row["completion"] in ("Paris", "Madrid") for row in usable)
    errors = any(CODES[code][0] == "error" for code, _ in want)
    with pytest.raises(SystemExit) as e: main(["check", str(path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert e.value.code == errors and said["ok"] is not errors
    assert {(f["code"], f["line"]) for f in said["findings"]} >= set(found)
    if good:
        made = repair(path, tmp_path / "fixed.jsonl")
        again = validate(tmp_path / "fixed.jsonl")
        assert again.ok and made.rows == again.rows >= good and {code for code, _ in want if code in ("byte-order-mark", "crlf", "encoding")} <= set(made.counts)
    else:
        with pytest.raises(UserError, match="no row is left"): repair(path, tmp_path / "fixed.jsonl")
        assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert path.read_bytes() == data
    assert time.monotonic() - start < 60


# --- the same in the other kinds of file

def test_json_array_in_disorder(tmp_path):
    path = tmp_path / "rows.json"
    rows = [GOOD.strip(), b'{"prompt": "p", "completion": "c",}', b'{"prompt": "p", "completion": "' + b"x" * 2000 + b'"}', b'{"prompt": NaN, "completion": "c"}',
            b'{"prompt": "p", "completion": "unclosed}', NEXT.strip(), b'{"prompt": ' + b"[" * 100_000, GOOD.strip(), b"7", NEXT.strip()]
    path.write_bytes(b"[\n" + b",\n".join(rows) + b"\n]")
    r = validate(path, limit=1000)
    assert [(f.code, f.line) for f in r.findings] == [("json-syntax", 3), ("line-too-long", 4), ("json-syntax", 5), ("json-syntax", 6), ("json-depth", 8), ("not-an-object", 10)]
    assert r.good == r.rows == 4


def test_table_with_faults(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(codecs.BOM_UTF8 + b'prompt,completion\r\na,b\r\nc\r\n"two\r\nlines",d\r\n\xe9,f\r\n"open,g\r\n')
    r = validate(path)
    assert [(f.code, f.line) for f in r.findings] == [("byte-order-mark", 1), ("csv-syntax", 3), ("encoding", 6), ("csv-syntax", 7)]
    assert [row["prompt"] for row in load_rows(path, skip_bad=True)] == ["a", "two\r\nlines"]


@pytest.mark.parametrize("ending, pack", [(".gz", gzip.compress), (".zst", lambda b: __import__("zstandard").compress(b))])
def test_damaged_archive(tmp_path, ending, pack):
    "What could be unpacked is read, and the damage is an error."
    path = tmp_path / f"rows.jsonl{ending}"
    rows = [json.dumps({"prompt": os.urandom(40).hex(), "completion": "c"}).encode() + b"\n" for _ in range(20_000)]
    path.write_bytes(pack(b"".join(rows))[:-2000])
    r = validate(path)
    assert r.counts["damaged-file"] == 1 and r.counts["json-syntax"] <= 1 and 0 < r.good < 20_000
    assert r.good == r.rows and not r.ok


def test_rows_in_columns(tmp_path):
    "Parquet and a `datasets` folder: a field that is absent in some rows is not a null in the rows."
    import pyarrow, pyarrow.parquet
    rows = [json.loads(GOOD), {"prompt": "p", "completion": " ", "label": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    r = validate(tmp_path / "rows.parquet")
    assert [(f.code, f.line) for f in r.findings] == [("empty-content", 2)] and r.good == 1
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match="Parquet"): list(open_rows(tmp_path / "cut.parquet"))


# --- what is no file

def check(path, seconds=60):
    return subprocess.run([Path(sys.executable).parent / "ftlearn", "check", path], capture_output=True, text=True, timeout=seconds, cwd=ROOT)


def test_pipe_is_refused_at_once(tmp_path):
    "A pipe that nobody writes to must not hang the command."
    os.mkfifo(tmp_path / "pipe")
    r = check(tmp_path / "pipe")
    assert r.returncode == 2 and "a pipe" in r.stderr and "Next:" in r.stderr and "Traceback" not in r.stderr


def test_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in [("/dev/zero", "a device"), (tmp_path / "folder", "without a data set"), (tmp_path / "broken", "not there"), (tmp_path / "loop", "back to itself"), (tmp_path / "none", "no such file")]:
        with pytest.raises(UserError, match=said) as e: validate(path)
        assert e.value.exit_code == 2


def test_link_to_a_file(tmp_path):
    "A link is followed; a repair through it does not touch what it leads to, and may not write over it."
    (tmp_path / "rows.jsonl").write_bytes(GOOD + b"{oops\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    os.link(tmp_path / "rows.jsonl", tmp_path / "hard.jsonl")
    assert validate(tmp_path / "link.jsonl").good == 1
    for out in ("rows.jsonl", "link.jsonl", "hard.jsonl"):
        with pytest.raises(UserError, match="overwrite the original"): repair(tmp_path / "link.jsonl", tmp_path / out)
    assert (tmp_path / "rows.jsonl").read_bytes() == GOOD + b"{oops\n"


# --- time and memory, each in a process of its own

def measured(code, *args, seconds=120):
    "What `code` prints as JSON, and the peak memory of its process in MB: VmHWM where there is one, for getrusage also counts the parent before the exec."
    peak = ("import re, os; s = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else ''\n"
            "peak = int(re.search(r'VmHWM:\\s+(\\d+)', s)[1]) if s else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss")
    code = f"import json, resource, sys\nfrom ftlearn.data.formats import validate, repair\n{code}\n{peak}\nprint(json.dumps([out, peak / 1024]))"
    r = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


CHECK = "r = validate(sys.argv[1]); out = [r.good, dict(r.counts), len(r.findings)]"


def test_line_of_a_gigabyte(tmp_path):
    "One text of a gigabyte between two good rows. It is packed with zstd, 1 part in 100 of it random, so that it is no bomb and needs little disk."
    import zstandard
    with open(tmp_path / "rows.jsonl.zst", "wb") as f, zstandard.ZstdCompressor(level=1).stream_writer(f) as out:
        out.write(GOOD + b'{"prompt": "p", "completion": "')
        for _ in range(1024): out.write(os.urandom(10_000).hex().encode() + b"a" * (2**20 - 20_000))
        out.write(b'"}\n' + NEXT)
    (good, counts, _), mb = measured(CHECK, tmp_path / "rows.jsonl.zst")
    assert (good, counts) == (2, {"line-too-long": 1}) and mb < MB


def test_plain_file_of_a_gigabyte_without_a_line_end(tmp_path):
    "The same without unpacking: a file with a hole, which reads as NULs and takes no disk."
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b'{"prompt": "p')
    with open(path, "r+b") as f: f.truncate(10**9); f.seek(0, 2); f.write(b'"}\n' + NEXT)
    (good, counts, _), mb = measured(CHECK, path)
    assert (good, counts) == (2, {"line-too-long": 1}) and mb < MB


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_bomb(tmp_path, ending):
    "20 GB packed into a few megabytes: reading stops early, and the good rows before it count."
    path = tmp_path / f"rows.jsonl{ending}"
    import zstandard
    pack = gzip.compress if ending == ".gz" else zstandard.compress
    rows = b"".join(line(completion="c" * 1000) for _ in range(16_000))
    path.write_bytes(pack(GOOD) + pack(rows) * (1250 if ending == ".zst" else 100))
    (good, counts, _), mb = measured(CHECK, path)
    assert counts["expands-too-far"] == 1 and good > 1 and mb < MB
    assert path.stat().st_size * EXPANDS < 16_000 * 1000 * 100, "the test file is no bomb"


def test_a_million_bad_lines(tmp_path):
    "Findings are counted, and a bounded number of them is kept; the good rows among them are found."
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as f:
        for _ in range(1000): f.write(b"{\n" * 999 + GOOD)
    (good, counts, kept), mb = measured(CHECK, path)
    assert (good, counts, kept) == (1000, {"json-syntax": 999_000}, 1000) and mb < MB


def test_types_that_change_after_row_100_000(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as f:
        for i in range(100_000): f.write(b'{"id": "r%d", "prompt": "p", "completion": "c", "label": "a"}\n' % i)
        f.write(b'{"id": "last", "prompt": "p", "completion": 5, "label": "a"}\n{"id": "more", "prompt": "p", "completion": "c", "label": 5}\n{"id": "r7", "prompt": "p", "completion": "c", "label": "a"}\n')
    code = "r = validate(sys.argv[1]); out = [r.good, [[f.code, f.line] for f in r.findings]]"
    (good, found), mb = measured(code, path)
    assert found == [["type-change", 100_001], ["content-type", 100_001], ["type-change", 100_002], ["duplicate-id", 100_003]] and good == 100_001 and mb < MB


def test_memory_does_not_grow_with_the_file(tmp_path):
    "Six times the rows, each with an id, and no more memory but that for the ids: 16 bytes a row."
    took = []
    for n in (10_000, 60_000):
        path = tmp_path / f"{n}.jsonl"
        with open(path, "wb") as f:
            for i in range(n): f.write(b'{"id": %d, "messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "y"}]}\n' % (i, b"some text " * 50))
        (good, *_), mb = measured(CHECK, path)
        assert good == n
        took.append(mb)
    assert took[1] - took[0] < 20, took


def test_widest_row_that_is_allowed(tmp_path):
    "Lines just under the limit: one text, and as many brackets as the limit allows."
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "p", "completion": "' + b"x" * (LIMIT - 33) + b'"}\n' + b'{"prompt": "p", "completion": [' + b"{}," * 2_000_000 + b"{}]}\n" + GOOD)
    (good, counts, _), mb = measured(CHECK, path)
    assert good == 2 and counts == {"line-too-long": 1} and mb < MB


WIDE = {  # lines near the limit that would be slow, or take much memory, for a checker that has not thought of them
    "200,000 unknown roles": b'{"messages": [' + b", ".join(b'{"role": "r%d", "content": "x"}' % i for i in range(200_000)) + b"]}",
    "200,000 unknown keys": b'{"prompt": "p", "completion": "c", ' + b", ".join(b'"key%d": 1' % i for i in range(200_000)) + b"}",
    "200,000 keys, some twice": b"{" + b", ".join(b'"key%d": 1' % (i % 190_000) for i in range(200_000)) + b"}",
    "a role of four megabytes": b'{"messages": [{"role": "' + b"x" * 4_000_000 + b'", "content": "x"}]}',
    "eight million quotation marks": b'"' * 8_000_000,
    "eight million backslashes": b'{"prompt": "' + b"\\" * 8_000_000,
    "nested 240 deep": b'{"prompt": ' + b"[" * 240 + b"]" * 240 + b', "completion": "x"}',
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_lines(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + WIDE[name] + b"\n" + NEXT)
    start = time.monotonic()
    r = validate(path)
    assert {f.line for f in r.findings} == {2} and r.good >= 2 and len(r.findings) <= 201
    assert repair(path, tmp_path / "out.jsonl").rows == r.good
    assert time.monotonic() - start < 60


def test_repair_in_bounded_memory(tmp_path):
    "30,000 changes: the copy is whole, the list is complete on disk, and little of it is held."
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as f:
        for _ in range(300): f.write(b'{"question": "a", "answer": "b"}\n' * 99 + b"{\n")
    (rows, changed, left_out, kept), mb = measured("r = repair(sys.argv[1], sys.argv[2]); out = [r.rows, r.changed, r.left_out, len(r.changes)]", path, tmp_path / "out.jsonl")
    assert (rows, changed, left_out, kept) == (29_700, 29_700, 300, 1000) and mb < MB
    assert sum(1 for _ in open(tmp_path / "out.changes.jsonl")) == 30_000 and validate(tmp_path / "out.jsonl").ok
