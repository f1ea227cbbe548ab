"The request log: what was acknowledged is there after kill -9, several processes write at once, and nothing private reaches a file."
import os, signal, sqlite3, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftlearn.core import UserError
from ftlearn.deploy.log import RequestLog

WRITERS = """
import os, sys
from ftlearn.deploy.log import RequestLog
path, writers = sys.argv[1], int(sys.argv[2])
for k in range(writers):
    if os.fork(): continue
    log = RequestLog(path)
    for i in range(10**6):
        log.add(f"{k}-{i}", "tiny", [{"role": "user", "content": f"question {i} of {k}"}], "x" * 500, 1.0)
        os.write(1, f"{k}-{i}\\n".encode())   # a line is written in one piece: the acknowledgement
os.wait()
"""


def test_kill_with_8_writers(tmp_path):
    "Every row that was acknowledged is there, and the file is whole; three times, at three moments. All eight have written by then, or 20 seconds have passed."
    for n, seconds in enumerate((.3, .6, .9)):
        path = tmp_path / f"{n}.db"
        p = subprocess.Popen([sys.executable, "-c", WRITERS, str(path), "8"], stdout=subprocess.PIPE, start_new_session=True)
        first, seen = b"", set()
        until = time.monotonic() + 20
        while len(seen) < 8 and not (len(seen) > 1 and time.monotonic() > until):   # SQLite's lock is not fair: on a slow disk one of the eight can wait for long
            line = p.stdout.readline()
            assert line, "the writers ended"
            first, seen = first + line, seen | {line.split(b"-")[0]}
        time.sleep(seconds)
        os.killpg(p.pid, signal.SIGKILL)
        said = (first + p.stdout.read()).decode().split("\n")[:-1]
        p.wait()
        log = RequestLog(path)
        there = {r["id"] for r in log.rows()}
        assert len(said) > 20
        assert not set(said) - there, "acknowledged rows are missing"
        assert log.problems() == []
        log.add("after", "tiny", "x", "y", 1.0)   # and it can be written to


def test_disk_full(tmp_path):
    "An error with the file's name, no half row, and the log goes on when there is room again."
    log = RequestLog(tmp_path / "log.db")
    log.add("1", "tiny", "x", "y", 1.0)
    log._db.execute(f"PRAGMA max_page_count={log._db.execute('PRAGMA page_count').fetchone()[0] + 2}")
    with pytest.raises(UserError, match="log.db: adding a row failed: database or disk is full"): log.add("2", "tiny", "x" * 10**6, "y", 1.0)
    log._db.execute("PRAGMA max_page_count=1000000")
    log.add("3", "tiny", "x" * 10**6, "y", 1.0)
    assert [r["id"] for r in log.rows()] == ["1", "3"] and log.problems() == []


PRIVATE = ["4111 1111 1111 1111", "ann.lee@example.org", "AKIAIOSFODNN7EXAMPLQ", "078-05-1120"]


def test_nothing_private_in_any_file(tmp_path):
    "Also not in a comment, in nested JSON, as a number, in the journal, or in an error message."
    log = RequestLog(tmp_path / "log.db")
    for i, secret in enumerate(PRIVATE):
        log.add(f"in-{i}", "tiny", [{"role": "system", "content": secret}, {"role": "user", "content": [{"type": "text", "text": f"it is {secret}"}]}], f'{{"deep": [{{"a": "{secret}"}}]}}', 1.0)
        log.rate(f"in-{i}", 1, f"why did it say {secret}?")
    log.add("number", "tiny", "card?", '{"card": 4111111111111111}', 1.0)
    with pytest.raises(UserError) as e: log.add("in-0", "tiny", PRIVATE[0], PRIVATE[1], 1.0)
    files = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert len(files) > 4096 and b"[CARD]" in files
    for secret in [*PRIVATE, "4111111111111111"]: assert secret.encode() not in files and secret not in str(e.value)


def test_readers_see_whole_rows_while_others_write(tmp_path):
    "Two connections in many threads: every row that is read is whole, and none is lost."
    logs = [RequestLog(tmp_path / "log.db") for _ in range(2)]
    def write(k):
        for i in range(25): logs[k % 2].add(f"{k}-{i}", f"m{k}", f"{k} " * 50, f"{k}", float(k))
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(write, k) for k in range(8)]
        while not all(d.done() for d in done):
            for r in logs[0].rows(limit=50): assert r["input"] == f"{r['output']} " * 50 and r["model"] == f"m{r['output']}"
        for d in done: d.result()
    assert len(logs[1].rows()) == 200


def test_what_the_file_itself_refuses(tmp_path):
    "Six stars are refused by the table, too: other programs may write."
    RequestLog(tmp_path / "log.db").add("1", "tiny", "x", "y", 1.0)
    with sqlite3.connect(tmp_path / "log.db") as db:
        with pytest.raises(sqlite3.IntegrityError): db.execute("UPDATE requests SET rating=6")
        with pytest.raises(sqlite3.IntegrityError): db.execute("UPDATE requests SET latency_ms='soon'")
    db.close()
    with sqlite3.connect(tmp_path / "log.db") as db: db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(UserError, match="newer version"): RequestLog(tmp_path / "log.db")
