"""How many tokens a second the server gives, and how long the first one takes, against other servers on the same machine in the same run.

    python benchmarks/serve_speed.py [--rounds 3] [--clients 8] [--tokens 64]

Rivals: `transformers serve` with its defaults and with --continuous-batching (8 streaming clients each), and the raw server of llama.cpp on the same GGUF file (one client).
Servers take turns, round by round; with 8 clients each is loaded for 20 seconds. Only one of them lives at a time (an idle one beside it costs the other a twentieth). With one client each is started eight times a round, as a machine's speed changes from minute to minute. Each round must reach the marks; the median is the figure. Exits 1 below a mark. Tokens are counted by one tokenizer in the text that came, since servers cut their pieces differently."""
import argparse, asyncio, contextlib, functools, json, socket, statistics, subprocess, sys, time
from pathlib import Path

import httpx

from ftlearn.deploy.llamacpp import shipped_gguf
from ftlearn.model.load import fetch, load_tokenizer
from rounds import told, verdict

QUESTIONS = [f"Write a short story about a {a} {b}." for a in "red green old tiny brave quick".split() for b in "cat box king garden river clock".split()]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s: return s.getsockname()[1]


@contextlib.contextmanager
def server(command, health):
    "A server process; the block begins when `health` answers."
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(1200):
            if p.poll() is not None: raise SystemExit(f"{command} ended with {p.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(health, timeout=5).status_code == 200: break
            time.sleep(.25)
        yield
    finally:
        p.terminate()
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()


async def one(client, url, model, question, tokens):
    "(seconds to the first text, seconds in all, text) of a streamed answer."
    began, first, text = time.perf_counter(), None, ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=dict(model=model, messages=[{"role": "user", "content": question}], max_tokens=tokens, temperature=0, stream=True)) as r:
        if r.status_code != 200: raise SystemExit(f"status {r.status_code}: {(await r.aread())[:300]}")
        async for line in r.aiter_lines():
            if not line.startswith("data: {"): continue
            delta = (json.loads(line[6:])["choices"] or [{"delta": {}}])[0]["delta"].get("content")
            if delta: first, text = first or time.perf_counter() - began, text + delta
    return first, time.perf_counter() - began, text


async def load(url, model, clients, tokens, each=2):
    "`clients` at once, `each` questions one after the other: tokens a second, and the waits for the first."
    tokenizer()
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients, max_keepalive_connections=0)) as c:
        await one(c, url, model, "Hi", 4)
        async def run(k): return [await one(c, url, model, QUESTIONS[(k * each + i) % len(QUESTIONS)], tokens) for i in range(each)]
        began = time.perf_counter()
        got = [a for answers in await asyncio.gather(*(run(k) for k in range(clients))) for a in answers]
        seconds = time.perf_counter() - began
    return sum(len(tokens_of(a[2])) for a in got) / seconds, [a[0] or a[1] for a in got]


def steady(url, model, clients, tokens, seconds=20):
    "The median of as many loads as begin within `seconds`."
    speeds, began = [], time.perf_counter()
    while not speeds or time.perf_counter() - began < seconds: speeds.append(asyncio.run(load(url, model, clients, tokens))[0])
    return statistics.median(speeds)


def alone(servers, url, tokens, lives=8, each=6):
    "Tokens a second with one client, by server: each is started `lives` times, in turns, and answers `each` questions; the median over all of its answers."
    tokenizer()
    async def ask(model):
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=1, max_keepalive_connections=0)) as c:
            await one(c, url, model, "Hi", 4)
            return [await one(c, url, model, q, tokens) for q in QUESTIONS[:each]]
    speeds = {name: [] for name in servers}
    for k in range(lives):
        for name in list(servers)[::1 if k % 2 else -1]:
            command, health, model = servers[name]
            with server(command, url + health): speeds[name] += [len(tokens_of(text)) / seconds for _, seconds, text in asyncio.run(ask(model))]
    return [statistics.median(s) for s in speeds.values()]


def tokens_of(text): return tokenizer()(text, add_special_tokens=False)["input_ids"]


@functools.cache
def tokenizer(): return load_tokenizer(fetch())


def ours(args, *more): return [str(Path(sys.executable).parent / "ftlearn"), "serve", *args, "--queue", "64", *more]


def judged(name, mine, theirs, mark):
    "Print the ratio, and whether every round reaches the mark."
    ratios = [a / b for a, b in zip(mine, theirs)]
    print(f"{verdict(min(ratios) >= mark)}: {name}: {told(ratios, mark, 2)}")
    return min(ratios) >= mark


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rounds", type=int, default=3); a.add_argument("--clients", type=int, default=8); a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--only", default="", help="names of servers, with semicolons")
    a = a.parse_args()
    folder, gguf, port = str(fetch()), str(shipped_gguf()), free_port()
    url, exe = f"http://127.0.0.1:{port}", str(Path(sys.executable).parent)
    raw = [sys.executable, "-c", f"import time, xllamacpp; p = xllamacpp.CommonParams(); p.model.path, p.n_ctx, p.n_parallel, p.port = {gguf!r}, 2048*8, 8, {port}; s = xllamacpp.Server(p); time.sleep(10**6)"]
    servers = {"ours, llama.cpp": (ours([gguf, "--port", str(port)]), "/health", Path(gguf).stem), "ours, transformers": (ours([folder, "--port", str(port)]), "/health", Path(folder).name),
               "transformers serve": ([f"{exe}/transformers", "serve", "--port", str(port), folder], "/health", folder),
               "transformers serve --continuous-batching": ([f"{exe}/transformers", "serve", "--continuous-batching", "--port", str(port), folder], "/health", folder),
               "raw llama.cpp": (raw, "/health", "any")}
    if a.only: servers = {n: v for n, v in servers.items() if n in a.only.split(";")}
    many, single, waits = {n: [] for n in servers}, {"ours, llama.cpp": [], "raw llama.cpp": []}, {}
    for _ in range(a.rounds):
        for name, (command, health, model) in servers.items():
            if name == "raw llama.cpp": continue   # it is a rival with one client
            with server(command, url + health):
                speed = steady(url, model, a.clients, a.tokens)
                many[name].append(speed)
                if name == "ours, llama.cpp":
                    for n in (1, 8, 32): waits.setdefault(n, []).extend(asyncio.run(load(url, model, n, 16))[1])
            print(f"{name}: {speed:.1f} tokens a second with {a.clients} clients", flush=True)
        if set(single) <= set(servers):
            found = alone({n: servers[n] for n in single}, url, a.tokens)
            for name, speed in zip(single, found): single[name].append(speed)
            print(f"one client: ours {found[0]:.1f} tokens a second, raw llama.cpp {found[1]:.1f}", flush=True)
    median = {n: statistics.median(v) for n, v in many.items() if v}
    best = max((n for n in median if n.startswith("ours")), key=median.get, default=None)
    pairs = [(f"{a.clients} clients, {best} / {name}", many.get(best), many.get(name), want) for name, want in (("transformers serve", 3), ("transformers serve --continuous-batching", 1.2))]
    pairs += [("one client, ours / raw llama.cpp", single["ours, llama.cpp"], single["raw llama.cpp"], .95)]
    good = [judged(name, mine, theirs, want) for name, mine, theirs, want in pairs if mine and theirs]
    for n, v in waits.items(): print(f"first token, {n} clients: 95 % within {sorted(v)[min(len(v) - 1, int(.95 * len(v)))]:.2f} s")
    sys.exit(not all(good))


if __name__ == "__main__": main()
