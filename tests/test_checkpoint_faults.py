"""What can befall a checkpoint or a training from outside: damage, a full disk, numbers that are none, another base, other data. Each in a real process."""
import contextlib, re, shutil, subprocess
from pathlib import Path

import pytest

from forked import run, training, whole
from ftlearn.core import read_json, read_jsonl, write_json, write_jsonl
from ftlearn.tiny import save_tiny, tiny_model, tiny_rows, tiny_tokenizer
from ftlearn.train.checkpoint import newest
from ftlearn.train.sft import Run

STOP_AT = """
import os, signal
import ftlearn.train.sft as sft
real = sft.save_checkpoint
def save(run, step, write, **kw):
    done = real(run, step, write, **kw)
    if step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    return done
sft.save_checkpoint = save
"""


def cut(out, *args, step=9):
    "A run that was killed right after the checkpoint of `step`."
    c = run(out.parent / f"{out.name}.log", *args, first=STOP_AT.format(step=step))
    assert c.code == -9 and newest(out).step == step, c.said
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    out = tmp_path_factory.mktemp("killed") / "run"
    return cut(out, *training(whole().rows, out))


@pytest.fixture
def copy(killed, tmp_path): return Path(shutil.copytree(killed, tmp_path / "run"))


def truncate(path): path.write_bytes(path.read_bytes()[:-1])
def empty(path): path.write_bytes(b"")
def delete(path): path.unlink()
def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm, codes", [(truncate, {"size", "bad-manifest"}), (empty, {"size", "bad-manifest"}), (flip, {"hash", "bad-manifest"}), (delete, {"missing", "no-manifest"})])
def test_each_file_damaged(copy, harm, codes):
    "Every file of a real checkpoint in turn: the damage is named with the file, and the checkpoint before is taken."
    folder = copy / "checkpoints" / "step-000009"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert {p.name for p in files} >= {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "epoch_rng_0.pth", "trainer_state.json", "manifest.json"}
    for path in files:
        kept = path.read_bytes()
        harm(path)
        found = newest(copy)
        (name, [problem]), = found.skipped
        assert found.step == 8 and name == "step-000009" and problem.file == path.relative_to(folder).as_posix() and problem.code in codes
        path.write_bytes(kept)
    assert newest(copy).step == 9


def test_goes_on_from_the_one_before(copy, tmp_path):
    (copy / "checkpoints" / "step-000009" / "optimizer.pt").unlink()
    c = run(tmp_path / "log", *training(whole().rows, copy))
    assert c.code == 0 and "checkpoint step-000009 is damaged and was not used: missing: optimizer.pt" in c.said and "going on from step 8" in c.said, c.said
    whole().same(copy)


def test_no_checkpoint_is_left_whole(copy, tmp_path):
    for step in (8, 9): flip(copy / "checkpoints" / f"step-00000{step}" / "adapter_model.safetensors")
    c = run(tmp_path / "log", *training(whole().rows, copy))
    assert c.code == 0 and c.said.count("is damaged and was not used: hash: adapter_model.safetensors") == 2 and "going on" not in c.said, c.said
    whole().same(copy)


@contextlib.contextmanager
def small_disk(folder, megabytes):
    "A disk of its own, so small that it can be filled."
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True)
    if made.returncode: pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    try: yield folder
    finally: subprocess.run(["umount", "-l", str(folder)], check=True)


FILL = """
import os, shutil
import ftlearn.train.sft as sft
def fill(leave):
    "All of the disk but `leave` bytes is taken by someone else."
    with open("{disk}/ballast", "wb", buffering=0) as f:
        while (free := shutil.disk_usage("{disk}").free - leave) > 0: f.write(bytes(min(free, 1 << 20)))
def before(module, name, when, leave):
    real, calls = getattr(module, name), [0]
    def call(*args, **kw):
        calls[0] += 1
        if calls[0] == when: fill(leave)
        return real(*args, **kw)
    setattr(module, name, call)
"""
FULL = {
    "in a save": ("before(sft, 'save_checkpoint', 5, 300_000)", "checkpoint step 5 was not saved; step-000004 is kept and verifies", 4),
    "in the adapter": ("before(sft, 'atomic_dir', 1, 100_000)", "the run stopped; step-000012 is kept and verifies", 12),
}


@pytest.mark.parametrize("where", FULL)
def test_disk_full(tmp_path, where):
    "A real small disk fills up under a training: the last good checkpoint stays, the message says what can go, and with space again the run goes on to the same bytes."
    when, said, step = FULL[where]
    with small_disk(tmp_path / "disk", 16) as disk:
        c = run(tmp_path / "log", *training(whole().rows, disk / "run"), first=FILL.replace("{disk}", str(disk)) + when)
        assert c.code == 2 and f"the disk is full: {said}" in c.said and "Traceback" not in c.said, c.said
        assert re.search(r"MB free'\. Allowed: at least \d\.\d MB free\. Next: delete run/checkpoints/step-0000\d\d \(\d\.\d MB\)", c.said), c.said
        assert newest(disk / "run").step == step and newest(disk / "run").skipped == []
        (disk / "ballast").unlink()
        c = run(tmp_path / "log", *training(whole().rows, disk / "run"))
        assert c.code == 0 and f"going on from step {step}" in c.said, c.said
        whole().same(disk / "run")


def test_disk_full_when_the_log_is_written(tmp_path):
    when = "\nreal = sft.LogWriter.append\ndef append(self, row):\n    if row['step'] == 7: fill(0); row = row | {'padding': 'x' * 9000}\n    real(self, row)\nsft.LogWriter.append = append"
    with small_disk(tmp_path / "disk", 16) as disk:
        c = run(tmp_path / "log", *training(whole().rows, disk / "run"), first=FILL.replace("{disk}", str(disk)) + when)
        assert c.code == 2 and "the disk is full: the run stopped; step-000006 is kept and verifies" in c.said, c.said
        (disk / "ballast").unlink()
        assert run(tmp_path / "log", *training(whole().rows, disk / "run")).code == 0
        whole().same(disk / "run")


ONCE = """
import ftlearn.train.sft as sft
real, passes = sft.answer_loss, [0]
def loss(model, *args, **kw):
    out, n, right = real(model, *args, **kw)
    passes[0] += model.training
    {fault}
    return out, n, right
sft.answer_loss = loss
"""
FAULTS = {"loss": "if passes[0] == 16 and model.training: out = out * float('nan')",
          "gradient": "if passes[0] == 16 and model.training: out.register_hook(lambda g: g * float('inf'))"}


@pytest.mark.parametrize("what", FAULTS)
def test_a_number_that_is_none(tmp_path, what):
    "A fault in one pass of step 9: the weights of step 8 are saved, although no checkpoint was due, and the run goes on from them to the same bytes."
    out = tmp_path / "run"
    c = run(tmp_path / "log", *training(whole().rows, out, save_steps=100), first=ONCE.format(fault=FAULTS[what]))
    assert c.code == 1 and f"the {what} of step 9 is not a finite number; the weights were left as they were after step 8" in c.said, c.said
    assert "lower learning_rate" in c.said and newest(out).step == 8
    assert [r["step"] for r in Run(out).log.train] == list(range(1, 9)) or Run(out).log.rows[-1]["step"] == 9
    ids = {r["id"] for r in read_jsonl(out / "data" / "train.jsonl")}
    named = re.search(r"rows: (.*?)\.?$", c.said.strip().splitlines()[-1])[1].split(", ")
    assert set(named) <= ids and len(named) == (4 if what == "loss" else 8)
    assert run(tmp_path / "log", *training(whole().rows, out, save_steps=100)).code == 0
    whole().same(out)


def broken_model(folder):
    "A whole model in which the embedding of one token, `~`, is not a number."
    import torch
    tok, model = tiny_tokenizer(), tiny_model()
    head = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad(): model.model.embed_tokens.weight[tok("~", add_special_tokens=False)["input_ids"][0]] = float("nan")
    model.save_pretrained(folder), tok.save_pretrained(folder)
    return folder


def test_rows_that_the_model_cannot_read(tmp_path):
    "Nothing is patched: a spoilt token in the model, and one row that has it. The run stops where that row comes up, and names it."
    model, rows = broken_model(tmp_path / "model"), read_jsonl(whole().out / "data" / "train.jsonl")
    rows[5]["messages"][0]["content"] += "~"
    write_jsonl(tmp_path / "rows.jsonl", rows)
    c = run(tmp_path / "log", *training(tmp_path / "rows.jsonl", tmp_path / "run", model=model, split="100/0/0"))
    assert c.code == 1 and rows[5]["id"] in c.said.split("rows:")[-1], c.said
    step = int(re.search(r"the loss of step (\d+) is not a finite number", c.said)[1])
    assert newest(tmp_path / "run").step == step - 1


MASKED = {
    "weights": (lambda r: r["messages"][-1].update(weight=0), dict(train_on="weights"), "every answer has the weight 0"),
    "too long": (lambda r: r["messages"][0].update(content=r["messages"][0]["content"] * 9), dict(max_length=8, truncation="drop"), "max_length"),
    "empty": (lambda r: r["messages"][-1].update(content=""), {}, "is empty"),
}


@pytest.mark.parametrize("name", MASKED)
def test_all_labels_masked(tmp_path, name):
    "Rows in which nothing would be trained are an error before the first step."
    change, settings, said = MASKED[name]
    rows = tiny_rows(20)
    for r in rows: change(r)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    c = run(tmp_path / "log", *training(tmp_path / "rows.jsonl", tmp_path / "run", **settings))
    assert c.code == 1 and said in c.said and "Traceback" not in c.said, c.said
    assert not (tmp_path / "run" / "log.jsonl").exists() and not (tmp_path / "run" / "checkpoints").exists()


TRUE = """
import torch
from peft import PeftModel
from ftlearn.config import resolve
from ftlearn.data.encode import collate, encode_rows
from ftlearn.data.split import load_splits
from ftlearn.model.load import load_model
from ftlearn.train.sft import Run
run = Run("{out}")
splits, losses = load_splits(run.data), []

def plain(rows, step):
    "transformers' own loss over all rows, with the weights after `step`."
    loaded = load_model("tiny", "cpu", "float32")
    model = PeftModel.from_pretrained(loaded.model, run.path / "checkpoints" / f"step-{{step:06d}}") if step else loaded.model
    batch = collate(encode_rows(rows, loaded.tokenizer), loaded.tokenizer.pad_token_id)
    with torch.no_grad(): return model.eval()(**batch).loss.item()

for row in run.log.train: print("RESULT", row["loss"], plain(splits.train, row["step"] - 1))
for row in run.log.validation: print("RESULT", row["eval_loss"], plain(splits.validation, row["step"]))
raise SystemExit(0)
"""


def test_the_logged_loss_is_the_true_one(tmp_path):
    "All training rows in each step, in several passes: each logged loss is transformers' own loss over those rows with the weights of the step before, and so is the validation loss."
    write_jsonl(tmp_path / "rows.jsonl", tiny_rows(20))
    out = tmp_path / "run"
    c = run(tmp_path / "log", *training(tmp_path / "rows.jsonl", out, split="80/20/0", per_device_train_batch_size=3, gradient_accumulation_steps=6, lora_dropout=0, num_train_epochs=3,
                                        eval_steps=1, save_total_limit=9))
    assert c.code == 0 and len(Run(out).log.train) == 3, c.said
    c = run(tmp_path / "true", first=TRUE.format(out=out))
    pairs = [tuple(map(float, line.split()[1:])) for line in c.said.splitlines() if line.startswith("RESULT")]
    assert len(pairs) == 6 and pairs[0][0] > 1.2 * pairs[2][0], c.said
    for logged, true in pairs: assert logged == pytest.approx(true, rel=1e-5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "A finished run on a model folder, whose base can then be changed."
    home = tmp_path_factory.mktemp("own")
    save_tiny(home / "model")
    c = run(home / "log", *training(whole().rows, home / "run", model=home / "model", max_steps=2))
    assert c.code == 0, c.said
    return home


def test_adapter_on_the_wrong_base(own, tmp_path):
    "The base was exchanged for another one of the same shape: every way to use the adapter refuses."
    save_tiny(own / "model", seed=1, replace=True)
    try:
        for args in (["evaluate", own / "run"], ["chat", own / "run", "2 red cat"], ["package", own / "run", "--out", tmp_path / "merged"],
                     training(whole().rows, own / "run", model=own / "model", max_steps=2)):
            c = run(tmp_path / "said", *args)
            assert c.code in (1, 2) and "Traceback" not in c.said and "base" in c.said and "Next:" in c.said.replace("\n", " "), (args, c.said)
        assert not (tmp_path / "merged" / "model.safetensors").exists()
    finally: save_tiny(own / "model", replace=True)


def test_pickled_weights_are_refused(tmp_path):
    "A model whose weights are a pickle is not opened: the file would run code, and here it says so by making a file."
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    mark = tmp_path / "it-ran"
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    for args in (["model", tmp_path / "model"], ["chat", tmp_path / "model", "2 red cat"], training(whole().rows, tmp_path / "run", model=tmp_path / "model")):
        c = run(tmp_path / "said", *args)
        assert c.code == 2 and "pickle" in c.said and "Next: convert the model to safetensors" in c.said, c.said
    assert not mark.exists()


def test_remote_code_is_refused(tmp_path):
    "A model that brings its own Python is not run."
    save_tiny(tmp_path / "model")
    mark = tmp_path / "it-ran"
    (tmp_path / "model" / "own.py").write_text(f"open({str(mark)!r}, 'w')\nfrom transformers import LlamaConfig, LlamaForCausalLM\nclass C(LlamaConfig): model_type = 'own'\nclass M(LlamaForCausalLM): config_class = C\n")
    config = read_json(tmp_path / "model" / "config.json")
    write_json(tmp_path / "model" / "config.json", config | {"model_type": "own", "architectures": ["M"], "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}})
    for args in (["model", tmp_path / "model"], training(whole().rows, tmp_path / "run", model=tmp_path / "model")):
        c = run(tmp_path / "said", *args)
        assert c.code in (1, 2) and "code" in c.said and "Traceback" not in c.said, c.said
    assert not mark.exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "A run on a model folder and a data set directory, killed after its third step."
    home = tmp_path_factory.mktemp("begun")
    save_tiny(home / "model")
    assert run(home / "log", "prep", whole().rows, "--out", home / "data").code == 0
    cut(home / "run", *training(home / "data", home / "run", model=home / "model"), step=3)
    return home


def other_base(home): save_tiny(home / "model", seed=1, replace=True)
def other_rows(home): assert run(home / "log", "prep", whole().rows, "--out", home / "new", "--seed", "7").code == 0; shutil.rmtree(home / "data"); (home / "new").rename(home / "data")
def other_template(home):
    path = home / "model" / "chat_template.jinja"
    path.write_text(path.read_text().replace("Answer in JSON.", "Answer."))
def other_rank(home): return ["--set", "r=4"]


@pytest.mark.parametrize("change, names", [(other_base, ["base_sha256"]), (other_rows, ["data.train.jsonl"]), (other_template, ["template"]), (other_rank, ["settings.r (16 there, 4 now)"])])
@pytest.mark.parametrize("manifest", [True, False])
def test_resume_refuses_another_run(begun, tmp_path, change, names, manifest):
    "Another base, data, template or config is refused and named, also where only the checkpoint is left to tell."
    home = Path(shutil.copytree(begun, tmp_path / "home"))
    old = training(begun / "data", begun / "run", model=begun / "model")
    kept = Path(shutil.move(begun, tmp_path / "kept")); shutil.copytree(kept, begun)  # the same paths, so that only the change differs
    try:
        more = change(begun) or []
        if not manifest: (begun / "run" / "manifest.json").unlink()
        c = run(tmp_path / "said", *old, *more)
        assert c.code == 2 and "holds another run; these differ: " in c.said and all(n in c.said for n in names), c.said
        assert newest(begun / "run").step == 3 and c.said.count(" there, ") == len([n for n in c.said.split("these differ: ")[1].split(";")])
    finally:
        shutil.rmtree(begun)
        shutil.move(kept, begun)
