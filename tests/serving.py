"Real server processes for the tests: started on a free port, asked over HTTP, killed at the end."
import json, os, re, socket, subprocess, sys, threading, time
from pathlib import Path

import psutil

SLOW = 240   # seconds that anything may take on a machine that is busy with other things


class Server:
    "A server in a process of its own. `args`: those of `ftlearn serve`; or `code`: Python that calls `serve`."
    def __init__(self, *args, code=None, env=None):
        code = code or f"from ftlearn.cli import main; main({['serve', *map(str, args), '--port', '0']!r})"
        self.lines, self.ready = [], threading.Event()
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if m := re.search(r"serving (.*) at (http://[\d.]+:(\d+))", line): self.models, self.url, self.port = m[1].split(", "), m[2], int(m[3]); self.ready.set()
        self.ready.set()

    def __enter__(self):
        assert self.ready.wait(SLOW) and hasattr(self, "url"), self.said
        return self

    def __exit__(self, *error):
        self.process.terminate()
        try: self.process.wait(30)
        except subprocess.TimeoutExpired: self.process.kill(); raise

    @property
    def said(self): return "".join(self.lines)
    @property
    def engine(self): return psutil.Process(self.process.pid).children()[0]
    def memory(self): return sum(p.memory_info().rss for p in (psutil.Process(self.process.pid), self.engine)) / 2**20

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=SLOW)
        return s

    def raw(self, data):
        "Send bytes, read all that comes until the server closes or is silent; the status and the body."
        with self.connect() as s:
            s.sendall(data)
            return answer(s)


def request(path, body=None, method=None, headers=()):
    "A whole request as bytes; a body that is no text is sent as JSON."
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": "localhost", "connection": "close", **({"content-type": "application/json", "content-length": len(body)} if body else {}), **dict(headers)}
    return (f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items() if v is not None) + "\r\n").encode() + body


def answer(s):
    "(status, body) from a socket; status 0 where the connection was cut without a word."
    got = b""
    try:
        while piece := s.recv(2**16): got += piece
    except ConnectionResetError: pass
    head, _, body = got.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower(): body = b"".join(re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body))
    return (int(head.split()[1]) if head else 0), body


def until(what, seconds=SLOW):
    "Wait until `what()` is true."
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(.02)


def held(server):
    "Places that questions hold now."
    status, body = server.raw(request("/metrics"))
    return float(re.search(rb"^ftlearn_places_held (\S+)", body, re.M)[1])
