"""GGUF files against llama.cpp itself, and the certificate: each planted fault is named by it, with its stage."""
import json, shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
from peft import LoraConfig, get_peft_model

import ftlearn.deploy.gguf as gguf
from ftlearn.core import UserError, write_json
from ftlearn.data.encode import encode_prompt
from ftlearn.deploy.gguf import LlamaCpp, adapter_to_gguf, describe_gguf, to_gguf
from ftlearn.deploy.merge import merge
from ftlearn.deploy.parity import ask_folder, ask_gguf, ask_model, parity
from ftlearn.evaluate.endpoint import gguf_endpoint
from ftlearn.model.load import load_model, load_tokenizer, weights_sha256
from ftlearn.tiny import save_tiny, tiny_rows


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A trained adapter with its record, the merged model and its GGUF file."
    tmp = tmp_path_factory.mktemp("toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1); torch.manual_seed(0)
    base = save_tiny(tmp / "base")
    tok, rows = load_tokenizer(base), tiny_rows(140)
    x = torch.tensor([tok.apply_chat_template(r["messages"], return_dict=False)[:-1] for r in rows[:124]])
    model = get_peft_model(load_model(base, "cpu", "float32").model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    opt, pick = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=6e-3), torch.Generator().manual_seed(0)
    for _ in range(70):
        b = x[torch.randint(len(x), (16,), generator=pick)]
        y = b.clone(); y[:, :20] = -100
        model(input_ids=b, labels=y).loss.backward(); opt.step(); opt.zero_grad()
    model.save_pretrained(tmp / "adapter")
    write_json(tmp / "adapter/ftlearn.json", {"base": str(base), "base_sha256": weights_sha256(base), "method": "lora", "quant": None, "dtype": "float32"})
    merged = merge(tmp / "adapter", base, tmp / "merged")
    yield dict(tmp=tmp, base=base, adapter=tmp / "adapter", merged=merged, tok=tok, gguf=to_gguf(merged, tmp / "m.gguf", "f32"), prompts=[r["messages"][:1] for r in rows[124:132]], expected=[r["messages"][1]["content"] for r in rows[124:132]])
    torch.set_num_threads(threads)


def certificate(toy, stages, **more): return parity(toy["adapter"], toy["base"], toy["prompts"], stages, expected=toy["expected"], n=24, **more)


def test_llama_cpp_reads_and_answers_as_transformers(toy):
    mine = ask_model(load_model(toy["merged"], "cpu", "float32"), toy["prompts"], 24)
    theirs = ask_gguf(toy["gguf"], toy["prompts"], 24, [s.tokens for s in mine])
    assert [(s.prompt, s.ids, s.tokens, s.stopped, s.text) for s in theirs] == [(s.prompt, s.ids, s.tokens, s.stopped, s.text) for s in mine]
    assert all(s.stopped for s in mine), "the toy model learnt to stop, or the test shows nothing"
    assert max(abs(a - b) for s, m in zip(theirs, mine) for a, b in zip(s.logprob, m.logprob)) < 0.05


def test_tokens_of_awkward_texts(toy):
    texts = ["", " ", "  a  b ", "1234567890", "\n\n\t", "été Zürich 東京 🙂", "<|im_end|><|im_start|>", "don't I'LL", "a" * 300, "\u200b\ufeff", "x\r\ny", "{\"a\":\"b\"}"]
    with LlamaCpp(toy["gguf"]) as llama:
        for t in texts: assert llama.ids(t) == toy["tok"](t, add_special_tokens=False)["input_ids"], repr(t)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1"])
def test_sound_precisions_pass(toy, kind):
    r = certificate(toy, {kind: to_gguf(toy["merged"], toy["tmp"] / f"{kind}.gguf", kind)}, limits=gguf_limits(kind))
    assert r.ok, r.reasons


def gguf_limits(kind):
    from ftlearn.deploy.parity import Limits
    return Limits(agreement=0.9) if kind == "q4_1" else Limits()


def test_one_base_serves_two_adapters(toy):
    other = toy["tmp"] / "other"
    torch.manual_seed(5)
    model = get_peft_model(load_model(toy["base"], "cpu", "float32").model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(other)
    base = to_gguf(toy["base"], toy["tmp"] / "b.gguf", "f32")
    files = {name: adapter_to_gguf(folder, toy["tmp"] / f"{name}.lora.gguf", toy["base"]) for name, folder in (("first", toy["adapter"]), ("second", other))}
    answers = {name: [s.tokens for s in ask_gguf(base, toy["prompts"][:3], 12, adapters=[f])] for name, f in files.items()}
    plain = [s.tokens for s in ask_gguf(base, toy["prompts"][:3], 12)]
    assert answers["first"] != answers["second"] and plain not in answers.values()
    assert certificate(toy, {"apart": (base, files["first"])}).ok
    assert certificate(toy, {"apart": (base, files["second"])}).guilty.cause == "weights"


# ---- planted faults

def test_wrong_base_is_named(toy):
    shutil.copytree(toy["adapter"], toy["tmp"] / "foreign"); (toy["tmp"] / "foreign/ftlearn.json").unlink()
    wrong = save_tiny(toy["tmp"] / "wrong", seed=1)
    file = to_gguf(merge(toy["tmp"] / "foreign", wrong, toy["tmp"] / "onto-wrong"), toy["tmp"] / "wrong.gguf")
    r = certificate(toy, {"sound": toy["gguf"], "gguf": file})
    assert (r.guilty.name, r.guilty.cause) == ("gguf", "weights") and not r.stages[0].reasons
    with pytest.raises(UserError, match="trained on another base"): parity(toy["adapter"], wrong, toy["prompts"], {})


def test_wrong_template_is_named(toy):
    folder = shutil.copytree(toy["merged"], toy["tmp"] / "template")
    t = load_tokenizer(folder); t.chat_template = t.chat_template.replace("+ message['content'] +", "+ ' ' + message['content'] +"); t.save_pretrained(folder)
    r = certificate(toy, {"sound": toy["gguf"], "gguf": to_gguf(folder, toy["tmp"] / "template.gguf")})
    assert (r.guilty.name, r.guilty.cause) == ("gguf", "template"), r.reasons
    with gguf_endpoint(toy["tmp"] / "template.gguf", slots=1, threads=1) as server: r = certificate(toy, {"http": server})
    assert r.guilty and r.guilty.cause in ("template", "weights"), "a server tells only how many tokens a prompt has; that or the answers give it away"


def test_wrong_stop_token_is_named(toy, monkeypatch):
    def renamed(folder, out):
        shutil.copytree(folder, out)
        for f in [*out.glob("*token*"), *out.glob("*.jinja")]: f.write_text(f.read_text().replace("<|im_end|>", "<|fin|>"))
        return out
    base, merged = renamed(toy["base"], toy["tmp"] / "fin"), renamed(toy["merged"], toy["tmp"] / "fin-merged")
    sound = to_gguf(merged, toy["tmp"] / "sound.gguf")
    monkeypatch.setattr(gguf, "_ends", lambda folder, tokenizer: [tokenizer.convert_tokens_to_ids("!")])
    endless = to_gguf(merged, toy["tmp"] / "endless.gguf")
    assert describe_gguf(sound).stop[0] == "<|fin|>" and describe_gguf(endless).stop == ["!"]
    r = parity(toy["adapter"], base, toy["prompts"], {"sound": sound, "gguf": endless}, n=24)
    assert (r.guilty.name, r.guilty.cause) == ("gguf", "stop token"), r.reasons


def test_base_served_in_place_of_the_tuned_model_is_named(toy):
    r = certificate(toy, {"gguf": to_gguf(toy["base"], toy["tmp"] / "bare.gguf")})
    assert r.guilty.cause == "adapter missing", r.reasons
    with gguf_endpoint(toy["tmp"] / "bare.gguf", slots=1, threads=1) as server: assert certificate(toy, {"http": server}).guilty.cause == "adapter missing"


def test_adapter_that_changes_nothing(toy):
    idle = toy["tmp"] / "idle"
    get_peft_model(load_model(toy["base"], "cpu", "float32").model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(idle)
    r = parity(idle, toy["base"], toy["prompts"][:2], {"base": toy["gguf"]}, n=4)
    assert not r.ok and r.reasons[0] == "the adapter changes nothing on these prompts"
    with pytest.raises(UserError, match="changes nothing"): adapter_to_gguf(idle, toy["tmp"] / "idle.gguf", toy["base"])


def test_heads_in_the_wrong_order_are_seen(toy, monkeypatch):
    monkeypatch.setitem(gguf.ARCHITECTURES, "LlamaForCausalLM", ("llama", False))
    assert certificate(toy, {"gguf": to_gguf(toy["merged"], toy["tmp"] / "turned.gguf")}).guilty.cause == "weights"


def test_certificate_is_plain_data(toy):
    d = certificate(toy, {"gguf": toy["gguf"]}).to_dict()
    assert json.loads(json.dumps(d))["stages"][0]["same_prompts"] == 8 and d["ok"] is True and d["guilty"] is None


# ---- what cannot be done

def test_new_process_that_fails_says_why(toy):
    with pytest.raises(UserError, match="cannot be used in a new process"): ask_folder(toy["tmp"] / "nothing", toy["prompts"])


def test_nothing_is_left_of_a_conversion_that_fails(toy, monkeypatch):
    monkeypatch.setattr(gguf, "_write_all", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError): to_gguf(toy["merged"], toy["tmp"] / "full.gguf")
    assert not [f for f in toy["tmp"].iterdir() if "full.gguf" in f.name]


def test_no_room(toy, monkeypatch):
    import ftlearn.core as core
    monkeypatch.setattr(core.shutil, "disk_usage", lambda p: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="(?i)disk|space|room"): to_gguf(toy["merged"], toy["tmp"] / "room.gguf")
