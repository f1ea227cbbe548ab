"""Generation: the same fp32 tokens for every batch, nothing stale from the store, a killed run goes on, a real server as the engine."""
import json, random, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from ftlearn.core import UserError, pick_device, read_jsonl
from ftlearn.data.encode import encode_prompt
from ftlearn.evaluate.endpoint import Endpoint, gguf_endpoint
from ftlearn.evaluate.generate import Store, _last_logits, generate, greedy, left_pad
from ftlearn.model.fast import roomy_cache
from ftlearn.model.load import Loaded, stop_token
from ftlearn.tiny import tiny_model, tiny_rows, tiny_tokenizer


def tiny(seed=0): return Loaded(tiny_model(seed), tiny_tokenizer(), Path("tiny"), "tiny", pick_device("cpu", "float32"))


def uneven(n, seed=0):
    "Rows whose prompts are 1 to 60 words long."
    dice, words = random.Random(seed), "red cat blue dog green cup 4 7 key".split()
    return [{"id": f"r{i}", "messages": [{"role": "user", "content": " ".join(dice.choices(words, k=dice.randint(1, 60)))}, {"role": "assistant", "content": "x"}]} for i in range(n)]


def test_same_tokens_for_every_batch_and_order():
    model, rows, dice = tiny(), uneven(24), random.Random(1)
    alone = {p["id"]: p["prediction"] for p in generate(model, rows, 12, batch_size=1, progress=False)}
    assert len(set(alone.values())) > 12, "the rows must not all have one answer"
    for size in dice.sample(range(2, 40), 5):
        mixed = dice.sample(rows, len(rows))
        assert [(p["id"], p["prediction"]) for p in generate(model, mixed, 12, batch_size=size, progress=False)] == [(r["id"], alone[r["id"]]) for r in mixed], size


def changed_template(m): m.tokenizer.chat_template = m.tokenizer.chat_template.replace("Answer in JSON.", "Answer in XML.")
def changed_weight(m):
    with torch.no_grad(): next(m.model.parameters())[0, 0] += 1
def changed_tokenizer(m): m.tokenizer.add_tokens(["zebra"])
def changed_adapter(m):
    from peft import LoraConfig, get_peft_model
    m.model = get_peft_model(m.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
def changed_stop(m): m.model.generation_config.eos_token_id = [0, 2]


@pytest.mark.parametrize("change", [changed_template, changed_weight, changed_tokenizer, changed_adapter, changed_stop])
def test_nothing_stale_is_served(tmp_path, change):
    model, rows = tiny(), uneven(3)
    assert generate(model, rows, 4, store=tmp_path / "s.jsonl", progress=False).info["made"] == 3
    assert generate(model, rows, 4, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 3
    change(model)
    assert generate(model, rows, 4, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 0
    assert generate(tiny(), rows, 5, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 0, "another length limit"
    assert generate(tiny(), rows, 4, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 3, "the first model finds its own again"


def test_a_changed_prompt_is_asked_anew(tmp_path):
    rows = uneven(3)
    generate(tiny(), rows, 4, store=tmp_path / "s.jsonl", progress=False)
    rows[1]["messages"][0]["content"] += " cat"
    assert generate(tiny(), rows, 4, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 2


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_generate as t
put = t.Store.put
def slow(self, new): put(self, new); print(len(self), flush=True); time.sleep(.2)
t.Store.put = slow
t.generate(t.tiny(), t.uneven(24), 12, batch_size=2, store={store!r}, progress=False)
"""


def test_a_killed_run_goes_on(tmp_path):
    store = tmp_path / "s.jsonl"
    p = subprocess.Popen([sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent), store=str(store))], stdout=subprocess.PIPE, text=True)
    while int(p.stdout.readline() or 99) < 6: pass
    p.send_signal(signal.SIGKILL); p.wait()
    done = len(read_jsonl(store))
    assert 6 <= done < 24
    with store.open("a") as f: f.write('{"key": "half a li')
    rest = generate(tiny(), uneven(24), 12, batch_size=5, store=store, progress=False)
    assert (rest.info["stored"], rest.info["made"]) == (done, 24 - done)
    assert [p["prediction"] for p in rest] == [p["prediction"] for p in generate(tiny(), uneven(24), 12, progress=False)]


def test_memory_that_is_too_small_for_a_batch(monkeypatch, tmp_path):
    "A batch that does not fit is halved; the answers are the same, and none is lost."
    model, sizes = tiny(), []
    whole = [p["prediction"] for p in generate(model, uneven(20), 6, progress=False)]
    def small(m, prompts, *more, **kw):
        sizes.append(len(prompts))
        if len(prompts) > 6: raise torch.OutOfMemoryError("CUDA out of memory")
        return greedy(m, prompts, *more, **kw)
    monkeypatch.setattr("ftlearn.evaluate.generate.greedy", small)
    got = generate(model, uneven(20), 6, batch_size=20, store=tmp_path / "s.jsonl", progress=False)
    assert [p["prediction"] for p in got] == whole and sizes[:2] == [20, 10] and len(Store(tmp_path / "s.jsonl")) == 20


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_near_ties(scaling):
    "In bfloat16 the best tokens are scored in float32; a model that scales its logits behind the output layer keeps its own."
    config = GraniteConfig(vocab_size=20_000, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, logits_scaling=scaling, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = GraniteForCausalLM(config).bfloat16().eval()
    ids, mask, positions = left_pad([[5 + i, 6, 7 + 2*i] for i in range(400)], 0)
    with torch.inference_mode():
        plain = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1].float()
        ours = _last_logits(model, roomy_cache(config), mask, positions, input_ids=ids)
        exact = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state[:, -1].float() @ model.lm_head.weight.float().T
    if scaling == 1: assert torch.equal(ours.argmax(-1), exact.argmax(-1)) and not torch.equal(plain.argmax(-1), exact.argmax(-1))
    else: assert torch.equal(ours, plain)


def test_one_bad_row_loses_no_other(capsys):
    bad = {"id": "bad", "messages": [{"role": "user", "content": "cat " * 2000}, {"role": "assistant", "content": "x"}]}
    got = generate(tiny(), [*uneven(5), bad], 4, progress=False)
    assert [p["finish_reason"] == "error" for p in got] == [False]*5 + [True] and got.info["failed"] == 1
    assert "too long" in got[-1]["error"] and "1 of 6 rows failed" in capsys.readouterr().err
    assert "1 of 6 rows failed" in got._repr_markdown_()


# --- a server

class Server(BaseHTTPRequestHandler):
    "The tiny model behind OpenAI's protocol. `plan` holds the faults: a status for each of the next requests, 200 afterwards; `always` a status by word."
    def log_message(self, *args): pass

    def send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        for k, v in {"content-type": "application/json", "content-length": len(data), "retry-after-ms": 2}.items(): self.send_header(k, str(v))
        self.end_headers(); self.wfile.write(data)

    def do_GET(self): self.send(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "created": time.time_ns(), "owned_by": "test", "root": self.server.root}]})

    def do_POST(self):
        body, s = json.loads(self.rfile.read(int(self.headers["content-length"]))), self.server
        with s.lock:
            text = body["messages"][-1]["content"]
            s.asked.append(text)
            status = next((code for word, code in s.always.items() if word in text), None) or (s.plan.pop(0) if s.plan else 200)
            if status == 1: return self.send(200, {"hello": "world"})
            if status == -1: return self.connection.close()
            if status != 200: return self.send(status, {"error": {"message": "as planned"}})
            tok = s.engine.tokenizer
            a = greedy(s.engine.model, [encode_prompt(body["messages"], tok)], [stop_token(tok)], tok.pad_token_id, body["max_tokens"])[0]
            said = a.tokens[:-1] if a.finish_reason == "stop" else a.tokens
        self.send(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "usage": {"prompt_tokens": 3, "completion_tokens": len(a.tokens), "total_tokens": 9},
                        "choices": [{"index": 0, "finish_reason": a.finish_reason, "message": {"role": "assistant", "content": tok.decode(said, skip_special_tokens=True)}}]})


@pytest.fixture
def server():
    s = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.engine, s.lock, s.asked, s.plan, s.always, s.root = tiny(), threading.Lock(), [], [], {}, "v1"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


def at(s, **kw): return Endpoint(f"http://127.0.0.1:{s.server_port}/v1", "tiny", **{"retries": 2, **kw})


def test_a_server_gives_the_models_answers(server):
    rows = uneven(8)
    direct = generate(tiny(), rows, 8, progress=False)
    server.plan += [429, 500, 503, 429]
    got = generate(at(server, retries=4), rows, 8, progress=False)
    assert [(p["id"], p["prediction"], p["finish_reason"], p["tokens"]) for p in got] == [(p["id"], p["prediction"], p["finish_reason"], p["tokens"]) for p in direct]
    assert len(server.asked) == 12 and all(p["latency_ms"] > 0 for p in got)


@pytest.mark.parametrize("status, tries, why", [(429, 3, "status 429 after 3 tries"), (500, 3, "status 500 after 3 tries"), (400, 1, "status 400 after 1 tries"), (1, 1, "no chat completion")])
def test_a_failed_row_stays_failed_with_its_reason(server, tmp_path, status, tries, why):
    rows = uneven(4)
    rows[2]["messages"][0]["content"] = "FAULT"
    server.always["FAULT"] = status
    got = generate(at(server), rows, 6, store=tmp_path / "s.jsonl", progress=False)
    assert [bool(p.get("error")) for p in got] == [False, False, True, False] and why in got[2]["error"] and server.asked.count("FAULT") == tries
    server.always.clear()
    again = generate(at(server), rows, 6, store=tmp_path / "s.jsonl", progress=False)
    assert (again.info["stored"], again.info["made"], again.info["failed"]) == (3, 1, 0), "only the failed row is asked again"


def test_a_wrong_key_ends_the_run(server):
    server.plan += [401]
    with pytest.raises(UserError, match="status 401"): generate(at(server, workers=1), uneven(5), 6, progress=False)
    assert len(server.asked) <= 2, "all 5 were asked"


def test_a_server_that_goes_away(server, tmp_path):
    server.plan += [200]*3 + [-1]*99
    with pytest.raises(UserError, match="went away"): generate(at(server, workers=1, retries=0), uneven(12), 6, store=tmp_path / "s.jsonl", progress=False)
    server.plan.clear()
    rest = generate(at(server), uneven(12), 6, store=tmp_path / "s.jsonl", progress=False)
    assert (rest.info["stored"], rest.info["made"]) == (3, 9)


def test_answers_of_another_served_model_are_not_used(server, tmp_path):
    store, rows = tmp_path / "s.jsonl", uneven(2)
    generate(at(server), rows, 6, store=store, progress=False)
    assert generate(at(server), rows, 6, store=store, progress=False).info["stored"] == 2, "`created` changes with every list and says nothing"
    assert generate(at(server, identity={"version": 2}), rows, 6, store=store, progress=False).info["stored"] == 0
    assert generate(at(server, options={"top_p": .5}), rows, 6, store=store, progress=False).info["stored"] == 0
    server.root = "v2"
    assert generate(at(server), rows, 6, store=store, progress=False).info["stored"] == 0


def test_a_key_is_sent_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("FTLEARN_TEST_KEY", "sk-secret")
    e = at(server, api_key_env="FTLEARN_TEST_KEY")
    server.plan += [403]
    with pytest.raises(UserError) as error: generate(e, uneven(1), 4, progress=False)
    assert "sk-secret" not in str(error.value) + repr(e) + json.dumps(e.who(4))


# --- a GGUF file

def gguf(path, model, tok):
    "The tiny model as a float32 GGUF file, written with the package gguf."
    import gguf as g
    c, w, state = model.config, g.GGUFWriter(path, "llama"), json.loads(tok.backend_tokenizer.to_str())
    w.add_context_length(512); w.add_embedding_length(c.hidden_size); w.add_block_count(c.num_hidden_layers); w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads); w.add_head_count_kv(c.num_key_value_heads); w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"]); w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads); w.add_vocab_size(c.vocab_size)
    vocab = sorted(tok.get_vocab(), key=tok.get_vocab().get)
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("gpt-2"); w.add_token_list(vocab); w.add_token_types([3 if i < 3 else 1 for i in range(len(vocab))])
    w.add_token_merges([" ".join(m) for m in state["model"]["merges"]])
    w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_pad_token_id(2); w.add_add_bos_token(False); w.add_chat_template(tok.chat_template)
    def pairs(x, heads):      # llama.cpp turns neighbouring numbers, transformers those half a head apart
        return x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)
    s = {k: v.float().numpy() for k, v in model.state_dict().items()}
    w.add_tensor("token_embd.weight", s["model.embed_tokens.weight"]); w.add_tensor("output_norm.weight", s["model.norm.weight"])
    names = dict(input_layernorm="attn_norm", post_attention_layernorm="ffn_norm") | {f"self_attn.{a}_proj": f"attn_{b}" for a, b in zip("qkvo", ("q", "k", "v", "output"))} | {f"mlp.{a}_proj": f"ffn_{a}" for a in ("gate", "up", "down")}
    for i in range(c.num_hidden_layers):
        for ours, theirs in names.items():
            x = s[f"model.layers.{i}.{ours}.weight"]
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(theirs)
            w.add_tensor(f"blk.{i}.{theirs}.weight", pairs(x, heads).copy() if heads else x)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return path


def test_a_gguf_file_answers_as_the_model_does(tmp_path):
    pytest.importorskip("xllamacpp")
    model, rows = tiny(), tiny_rows(6)
    file = gguf(tmp_path / "tiny.gguf", model.model, model.tokenizer)
    direct = generate(model, rows, 8, progress=False)
    with gguf_endpoint(file, slots=2, context=256, threads=1) as e: got = generate(e, rows, 8, store=tmp_path / "s.jsonl", progress=False)
    whole = lambda answers: [p["prediction"].replace("\ufffd", "") for p in answers]     # an untrained model writes broken UTF-8, which the two mend differently
    assert whole(got) == whole(direct) and len(set(whole(got))) == 6
    with gguf_endpoint(file, slots=2, context=256, threads=1) as e: assert generate(e, rows, 8, store=tmp_path / "s.jsonl", progress=False).info["stored"] == 6, "another port, the same file"


def test_a_gguf_file_that_is_none(tmp_path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "x.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(UserError, match="x.gguf"):
        with gguf_endpoint(tmp_path / "x.gguf"): pass
