"A server process for a trained run: OpenAI's own client, the same answers as in the evaluation, adapters that come and go, keys, stars, metrics; and the same behind llama.cpp."
import base64, json, re, shutil, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from serving import SLOW, Server, answer, held, request, until
from ftlearn.config import resolve
from ftlearn.core import write_jsonl
from ftlearn.data.formats import prompt_of
from ftlearn.deploy.log import RequestLog
from ftlearn.deploy.page import PAGE
from ftlearn.evaluate.endpoint import Endpoint
from ftlearn.evaluate.generate import generate
from ftlearn.model.load import load_model
from ftlearn.core import pick_device
from ftlearn.tiny import tiny_rows
from ftlearn.train.sft import load_tuned, train

KEY = "test-key-0123456789"


@pytest.fixture(scope="module")
def home():
    "A folder with a run of the tiny model on its task: the tuned one answers in JSON, the base babbles."
    home = Path(tempfile.mkdtemp())
    write_jsonl(home / "rows.jsonl", tiny_rows(48))
    for name, steps in (("tuned", 40), ("short", 2)):
        train(resolve(dict(model="tiny", method="lora", dtype="float32", data=str(home / "rows.jsonl"), split="60/20/20", out=str(home / "runs" / name), learning_rate=0.01, max_steps=steps,
                           per_device_train_batch_size=16, max_length=512), settings=False), progress=False, say=lambda text: None)
    (home / "keys").write_text(f"# a comment\n{KEY}\nanother-key-0123456789\n")
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def server(home):
    with Server(home / "runs" / "tuned", "--api-key-file", home / "keys", "--log", home / "log.db") as s: yield s


@pytest.fixture(scope="module")
def client(server): return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=SLOW)


@pytest.fixture(scope="module")
def rows(): return tiny_rows(6, seed=5)


@pytest.fixture(scope="module")
def expected(home, rows):
    "What the evaluation says: base, and tuned."
    from ftlearn.train.run import Run
    base = generate(load_model("tiny", device=pick_device("cpu", "float32")), rows, max_new_tokens=40, progress=False)
    tuned = generate(load_tuned(Run.open(home / "runs" / "tuned"), say=lambda text: None), rows, max_new_tokens=40, progress=False)
    return {name: [p["prediction"] for p in made] for name, made in (("tiny", base), ("tuned", tuned))}


def test_openai_client_streams_from_base_and_tuned(client, rows, expected):
    "All at once, base and tuned in one batch: each the answer of the evaluation, in more than one piece, with its usage."
    assert sum(e.startswith('{"count":') for e in expected["tuned"]) >= 4, "the run did not learn its task"
    def ask(model, i):
        chunks = list(client.chat.completions.create(model=model, messages=prompt_of(rows[i]), max_tokens=40, stream=True, stream_options={"include_usage": True}))
        text = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert chunks[0].choices[0].delta.role == "assistant" and len([t for t in text if t]) > 1 and chunks[-1].usage.completion_tokens >= len(text) - 3
        return "".join(text)
    with ThreadPoolExecutor(12) as pool:
        asked = {(m, i): pool.submit(ask, m, i) for i in range(6) for m in ("tiny", "tuned")}
        assert {k: f.result() for k, f in asked.items()} == {(m, i): expected[m][i] for m, i in asked}


def test_a_long_answer_comes_in_many_pieces(client, rows):
    "The untrained toy goes on to the end of what it may write; the text arrives on the way, not at the end."
    stream = client.chat.completions.create(model="tiny", messages=prompt_of(rows[0]), max_tokens=400, stream=True)
    pieces = [c for c in stream if c.choices and c.choices[0].delta.content]
    assert len(pieces) > 8


def test_whole_answers_are_the_same(client, rows, expected):
    got = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), max_tokens=40)
    assert got.choices[0].message.content == expected["tuned"][0] and got.choices[0].finish_reason == "stop" and got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    cut = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2
    stopped = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), stop=['"colour'])
    assert stopped.choices[0].message.content == expected["tuned"][0].split('"colour')[0] and stopped.choices[0].finish_reason == "stop"
    two = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), n=2, temperature=1.5, seed=3, max_tokens=20)
    again = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), n=2, temperature=1.5, seed=3, max_tokens=20)
    assert [c.message.content for c in two.choices] == [c.message.content for c in again.choices] and two.choices[0].message.content != two.choices[1].message.content
    many = list(client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), n=2, max_tokens=5, stream=True))
    assert {c.choices[0].index for c in many} == {0, 1} and sum(c.choices[0].finish_reason is not None for c in many) == 2


def test_token_ids_are_those_of_training(client, rows):
    from ftlearn.data.encode import encode_prompt
    from ftlearn.tiny import tiny_tokenizer
    ids = encode_prompt(prompt_of(rows[0]), tiny_tokenizer())
    got = client.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), max_tokens=3, extra_body={"return_token_ids": True})
    assert got.prompt_token_ids == ids and len(got.choices[0].token_ids) == 3
    went_on = client.completions.create(model="tuned", prompt=ids, max_tokens=3)   # token ids as a prompt, the older route
    assert went_on.choices[0].text == got.choices[0].message.content
    assert [c.index for c in client.completions.create(model="tiny", prompt=["red", "blue"], max_tokens=2).choices] == [0, 1]


def test_our_own_endpoint_reads_it(server, rows, expected, monkeypatch):
    "`generate` (33) and `who` over HTTP, as the certificate and the reports use them."
    monkeypatch.setenv("SERVE_TEST_KEY", KEY)
    e = Endpoint(f"{server.url}/v1", "tuned", api_key_env="SERVE_TEST_KEY", retries=0)
    assert [p["prediction"] for p in generate(e, rows, max_new_tokens=40, progress=False)] == expected["tuned"]
    assert e.who()["served"]["parent"] == "tiny"


def test_models(client):
    base, tuned = client.models.list().data
    assert (base.id, tuned.id, tuned.parent, tuned.meta["method"], tuned.meta["max_tokens"]) == ("tiny", "tuned", "tiny", "lora", 128)
    assert client.models.retrieve("tuned").id == "tuned"
    with pytest.raises(openai.NotFoundError): client.models.retrieve("other")


def test_adapters_come_and_go(client, server, rows, expected):
    "While others ask: nobody else's answer changes."
    post = lambda **body: client.post("/adapters", body=body, cast_to=object)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(client.chat.completions.create, model=m, messages=prompt_of(rows[i % 6]), max_tokens=40) for i in range(8) for m in ("tiny", "tuned")]
        assert post(name="short", path="short")["parent"] == "tiny"
        short = client.chat.completions.create(model="short", messages=prompt_of(rows[0]), max_tokens=40).choices[0].message.content
        assert short not in (expected["tiny"][0], expected["tuned"][0])
        client.delete("/adapters/short", cast_to=object)
        assert [f.result().choices[0].message.content for f in others] == [expected[m][i % 6] for i in range(8) for m in ("tiny", "tuned")]
    assert [m.id for m in client.models.list().data] == ["tiny", "tuned"]
    with pytest.raises(openai.NotFoundError, match="no model of this name"): client.chat.completions.create(model="short", messages=prompt_of(rows[0]))
    for path in ("../keys", "..", "/etc", "short\0", "nothing", "a/../../keys"):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)): post(name="x", path=path)
    for name in ("..", "a/b", "", "x" * 99, "tiny", "a\0"):
        with pytest.raises(openai.BadRequestError): post(name=name, path="short")
    with pytest.raises(openai.NotFoundError): client.delete("/adapters/tiny", cast_to=object)


def test_a_link_out_of_the_folder(client, home):
    (home / "runs" / "way-out").symlink_to(home / "keys")
    with pytest.raises(openai.BadRequestError, match="no path inside"): client.post("/adapters", body=dict(name="x", path="way-out"), cast_to=object)


ROUTES = [("GET", "/"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/tuned"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/feedback"), ("POST", "/v1/adapters"),
          ("DELETE", "/v1/adapters/tuned"), ("GET", "/nowhere"), ("GET", "/docs"), ("GET", "/openapi.json"), ("OPTIONS", "/v1/models"), ("GET", "//health"), ("GET", "/health/"), ("GET", "/health/../metrics")]


def test_no_key_and_wrong_key_on_every_route(server):
    "401 before anything else; only /health answers without."
    for method, path in ROUTES:
        for key in (None, "Bearer", "Bearer wrong-key-0123456789", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"bearer{KEY}", "Basic !!!", "Basic " + base64.b64encode(b"x:y").decode(), f"Bearer {KEY.upper()}"):
            status, body = server.raw(request(path, b"{}" if method == "POST" else None, method, {"authorization": key}))
            assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key", (method, path, key)
    assert server.raw(request("/health")) == (200, b'{"status":"ok","engine_restarts":0}')


def test_a_browser_sends_the_key_as_a_password(server):
    word = base64.b64encode(f"me:{KEY}".encode()).decode()
    status, body = server.raw(request("/", headers={"authorization": f"Basic {word}"}))
    assert (status, body.decode()) == (200, PAGE)
    assert server.raw(request("/v1/models", headers={"authorization": "Bearer another-key-0123456789"}))[0] == 200


def test_stars_land_in_the_log(client, server, home, rows, expected):
    got = client.chat.completions.create(model="tuned", messages=prompt_of(rows[1]), max_tokens=40)
    assert client.post(f"{server.url}/feedback", body=dict(request_id=got.id, rating=2, comment="write to ann.lee@example.org"), cast_to=object) == {"request_id": got.id, "rating": 2}
    row = next(r for r in RequestLog(home / "log.db").rows() if r["id"] == got.id)
    assert (row["model"], row["input"], row["output"], row["rating"], row["comment"], row["finish_reason"]) == ("tuned", prompt_of(rows[1]), expected["tuned"][1], 2, "write to [EMAIL]", "stop")
    assert row["prompt_tokens"] == got.usage.prompt_tokens and row["completion_tokens"] == got.usage.completion_tokens and row["latency_ms"] >= row["first_token_ms"] > 0
    for bad in (0, 6, 2.5, "3", True, None):
        with pytest.raises(openai.BadRequestError): client.post(f"{server.url}/feedback", body=dict(request_id=got.id, rating=bad), cast_to=object)
    with pytest.raises(openai.NotFoundError): client.post(f"{server.url}/feedback", body=dict(request_id="chatcmpl-0", rating=3), cast_to=object)


def test_metrics(server, client):
    text = client.get(f"{server.url}/metrics", cast_to=str)
    assert re.search(r'ftlearn_requests_total\{route="/v1/chat/completions",status="200"\} \d', text) and 'ftlearn_engine_up 1.0' in text and 'ftlearn_tokens_total{kind="completion",model="tuned"}' in text
    assert "ftlearn_places_held 0.0" in text and "nowhere" not in text


def test_nothing_was_said_but_the_address(server):
    "No traceback, no warning, no content, after all of the above."
    assert len(server.lines) == 1, server.said


def test_a_run_by_llama_cpp(home, rows, expected):
    "Converted, in 16 bits: the same answers from base and adapter, one more adapter while it runs, a cancelled question frees its slot."
    from ftlearn.deploy.gguf import adapter_to_gguf
    adapter_to_gguf(home / "runs" / "short", home / "runs" / "short.gguf")
    with Server(home / "runs" / "tuned", "--engine", "llama.cpp", "--slots", 2, "--context", 256) as s:
        c = openai.OpenAI(base_url=f"{s.url}/v1", api_key="none", max_retries=0, timeout=SLOW)
        say = lambda model, i, **kw: c.chat.completions.create(model=model, messages=prompt_of(rows[i]), max_tokens=40, **kw).choices[0].message.content
        assert s.models == ["tiny", "tuned"]
        assert [say("tuned", i) for i in range(3)] == expected["tuned"][:3]
        assert "".join(x.choices[0].delta.content or "" for x in c.chat.completions.create(model="tuned", messages=prompt_of(rows[0]), max_tokens=40, stream=True)) == expected["tuned"][0]
        c.post("/adapters", body=dict(name="short", path="short.gguf"), cast_to=object)
        assert say("short", 0) not in (expected["tuned"][0], expected["tiny"][0]) and say("tuned", 0) == expected["tuned"][0]
        stream = c.chat.completions.create(model="tiny", messages=prompt_of(rows[0]), max_tokens=200, stream=True)
        next(iter(stream)); stream.close()
        until(lambda: held(s) == 0)
        assert say("tuned", 1) == expected["tuned"][1]
