"""When a run ends, with which weights, and what it does against learning by heart: early stopping, the best weights, a metric of generated answers, a validation that is no number, NEFTune, replay.

All by real training of the tiny model; kills and signals in real processes."""
import functools, random, shutil, signal, tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest, torch
from transformers import TrainerCallback

from forked import Whole, run, training, whole
from ftlearn.config import Config, resolve
from ftlearn.core import UserError, read_json, read_jsonl, sha256_file, write_json, write_jsonl
from ftlearn.data.encode import collate, encode_rows
from ftlearn.evaluate.generate import generate
from ftlearn.evaluate.metrics import score
from ftlearn.tiny import tiny_rows
from ftlearn.train.checkpoint import newest
from ftlearn.train.sft import NotFinite, Run, _trainer_class, answer_loss, load_tuned, train
from ftlearn.train.watch import EarlyStopping
from test_checkpoint_faults import broken_model
from test_kill import DEADLY, results

# The validations and the checkpoints fall on other steps; an epoch has three steps; dropout draws random numbers.
EARLY = dict(split="60/40/0", num_train_epochs=12, per_device_eval_batch_size=8, eval_steps=3, save_steps=4, learning_rate=0.01, lr_scheduler_type="constant", early_stopping_patience=3, load_best="true")


def unrelated(n):
    "Rows whose answers belong to other rows: what can be learned beyond their form is learned by heart."
    rows = tiny_rows(n)
    answers = [r["messages"][-1] for r in rows]
    random.Random(0).shuffle(answers)
    return [r | {"messages": [r["messages"][0], a]} for r, a in zip(rows, answers)]


@functools.lru_cache(None)
def early():
    "A run that stops early, and that nothing happened to."
    home = Path(tempfile.mkdtemp())
    rows, out = home / "rows.jsonl", home / "run"
    write_jsonl(rows, unrelated(40))
    c = run(home / "log", *training(rows, out, **EARLY))
    assert c.code == 0, c.said
    return SimpleNamespace(rows=rows, out=out, said=c.said, run=Run(out), log=Run(out).log, same=functools.partial(Whole.same, SimpleNamespace(out=out)))


@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    if early.cache_info().currsize: shutil.rmtree(early().out.parent)


def one_run(rows, out, callbacks=(), **settings):
    "A run in this process."
    write_jsonl(out.with_suffix(".jsonl"), rows)
    usual = dict(model="tiny", method="lora", dtype="float32", data=str(out.with_suffix(".jsonl")), split="60/40/0", out=str(out), max_length=512, learning_rate=0.01, max_steps=12, eval_steps=3, per_device_train_batch_size=8)
    said = []
    return train(resolve(usual | settings, settings=False), progress=False, say=said.append, callbacks=callbacks), said


def loss_of(run):
    "The validation loss of the weights in `adapter/`, worked out from the files of the run."
    loaded = load_tuned(run, say=str)
    rows = list(encode_rows(read_jsonl(run.data / "validation.jsonl"), loaded.tokenizer, 512))
    with torch.no_grad(): return answer_loss(loaded.model.eval(), collate(rows, loaded.tokenizer.pad_token_id))[0].item()


# --- when to stop

@pytest.mark.parametrize("greater", [False, True])
def test_the_same_stop_as_transformers(greater):
    "Without a margin, on 300 made-up curves."
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
    args = TrainingArguments(use_cpu=True, report_to="none", metric_for_best_model="loss", greater_is_better=greater, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True)
    rng, ended = random.Random(0), 0
    for _ in range(300):
        patience, values = rng.randint(1, 4), [round(rng.gauss(0, 1) + (-1 if greater else 1) * 6 / (1 + i), 1) for i in range(12)]
        theirs, control, state, mine = EarlyStoppingCallback(patience), TrainerControl(), TrainerState(), EarlyStopping(patience=patience, margin=0.0, greater=greater)
        for step, value in enumerate(values):
            theirs.on_evaluate(args, state, control, {"eval_loss": value})
            if state.best_metric is None or (value > state.best_metric if greater else value < state.best_metric): state.best_metric = value
            assert mine.update({"step": step, "eval_loss": value}) == control.should_training_stop
            assert mine.best == state.best_metric == values[mine.best_step]
            if mine.done: break
        ended += mine.done
    assert 100 < ended < 300, "some curves must end early, and some must not"


def test_it_stops_after_the_patience_and_ends_with_the_best():
    e = early()
    losses = {r["step"]: r["eval_loss"] for r in e.log.validation}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 9 == e.log.train[-1]["step"] < 36, "three validations, three steps apart, after the best one"
    assert f"stopped early after step {best + 9}" in e.said and f"the weights of step {best} are kept" in e.said
    assert e.run.manifest["best"] == {"step": best, "metric": "eval_loss", "value": losses[best]} and e.run.validation_loss == losses[best]
    assert loss_of(e.run) == pytest.approx(losses[best], rel=1e-5) and loss_of(e.run) < losses[max(losses)]
    assert best not in {int(p.name[5:]) for p in (e.out / "checkpoints").iterdir()}, "the limit of two checkpoints has passed over the best step, or nothing is tested here"


def test_without_load_best_the_last_weights_are_kept(tmp_path):
    e = early()
    c = run(tmp_path / "log", *training(e.rows, tmp_path / "run", **EARLY | {"load_best": "false"}))
    r = Run(tmp_path / "run")
    assert c.code == 0 and "the last weights are kept" in c.said, c.said
    assert [x["eval_loss"] for x in r.log.validation] == [x["eval_loss"] for x in e.log.validation], "what is kept changes nothing in the training"
    assert r.manifest["best"] is None and not (r.path / "best").exists() and loss_of(r) == pytest.approx(r.log.validation[-1]["eval_loss"], rel=1e-5)


def test_a_threshold_stops_earlier(tmp_path):
    a, _ = one_run(unrelated(40), tmp_path / "a", max_steps=30, early_stopping_patience=2, early_stopping_threshold=0.5, load_best=True)
    losses = [r["eval_loss"] for r in a.log.validation]
    assert a.manifest["steps"] < 30 and a.manifest["best"]["value"] == min(losses)
    watch = EarlyStopping(patience=2, margin=0.5)
    assert [watch.update(r) for r in a.log.validation] == [False] * (len(losses) - 1) + [True]


def test_the_last_step_is_validated(tmp_path):
    "Else the last weights could not be the best: 10 is no multiple of 3."
    r, _ = one_run(tiny_rows(40), tmp_path / "run", max_steps=10, load_best=True, save_total_limit=1)
    assert [x["step"] for x in r.log.validation] == [3, 6, 9, 10] and r.manifest["best"]["step"] == 10


@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "prompt", "ia3", "full"])
def test_the_best_weights_with_each_method(tmp_path, method):
    "After step 6 the trained weights are spoilt by noise: the best ones are of a step before, and the run ends with those."
    from transformers import TrainerCallback
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kw):
            if state.global_step != 6: return
            for p in model.parameters():
                if p.requires_grad: p.data.add_(torch.randn_like(p))
    rate = {"full": 3e-3, "ia3": 0.1, "prompt": 0.3}.get(method, 0.01)
    r, said = one_run(tiny_rows(24), tmp_path / "run", callbacks=[Spoil()], method=method, learning_rate=rate, max_steps=8, eval_steps=1, load_best=True, save_total_limit=1)
    losses = [x["eval_loss"] for x in r.log.validation]
    best = r.manifest["best"]["step"]
    assert losses[best - 1] == min(losses) and best <= 6 and losses[7] > 1.1 * min(losses), "the last step was the best, or nothing was trained: nothing is tested here"
    assert loss_of(r) == pytest.approx(min(losses), rel=1e-4), said


# --- killed, and taken up again

AT_SAVE = """
import os, signal
import ftlearn.train.sft as sft, ftlearn.train.best as best
def after(module, name, nth, sign):
    real, calls = getattr(module, name), [0]
    def call(*args, **kw):
        done = real(*args, **kw)
        calls[0] += 1
        if calls[0] == nth: os.kill(os.getpid(), sign)
        return done
    setattr(module, name, call)
"""


@pytest.mark.parametrize("nth", [1, 3, 6])
def test_killed_after_the_best_weights_are_written(tmp_path, nth):
    "kill -9 when the best weights are newer than every checkpoint: the same last step, the same bytes, the same log."
    e, out = early(), tmp_path / "run"
    c = run(tmp_path / "log", *training(e.rows, out, **EARLY), first=AT_SAVE + f"after(best, 'save_checkpoint', {nth}, signal.SIGKILL)")
    assert c.code == -9 and newest(out / "best").step > newest(out).step, c.said
    assert run(tmp_path / "log", *training(e.rows, out, **EARLY)).code == 0
    e.same(out)
    assert Run(out).manifest["best"] == e.run.manifest["best"] and not newest(out / "best").skipped


def test_killed_again_and_again(tmp_path):
    "kill -9 after every checkpoint: one run that goes through many processes and stops at the same step, with the same bytes and the same log."
    e, out, kills = early(), tmp_path / "run", 0
    settings = EARLY | {"save_steps": 3}
    while (c := run(tmp_path / "log", *training(e.rows, out, **settings), first=AT_SAVE + "after(sft, 'save_checkpoint', 1, signal.SIGKILL)")).code:
        assert c.code == -9 and kills < 20, c.said
        kills += 1
    assert kills >= 7
    e.same(out)


def test_killed_at_the_step_of_the_stop(tmp_path):
    "The decision is saved, the adapter is not: not one more step is made."
    e, out = early(), tmp_path / "run"
    settings = EARLY | {"save_steps": 3}
    c = run(tmp_path / "log", *training(e.rows, out, **settings), first="import os, signal\nimport ftlearn.train.sft as sft\nsft._write_end = lambda *a: os.kill(os.getpid(), signal.SIGKILL)")
    assert c.code == -9 and newest(out).step == e.log.train[-1]["step"] and not Run(out).finished, c.said
    c = run(tmp_path / "log", *training(e.rows, out, **settings))
    assert c.code == 0 and "stopped early" in c.said, c.said
    e.same(out)


IN_VALIDATION = """
import os, signal
import ftlearn.train.sft as sft
real, passes = sft.answer_loss, [0]
def loss(model, *args, **kw):
    if not model.training:
        passes[0] += 1
        if passes[0] == {n}: os.kill(os.getpid(), signal.SIGTERM)
    return real(model, *args, **kw)
sft.answer_loss = loss
"""


@pytest.mark.parametrize("last", [False, True])
def test_asked_to_stop_in_a_validation(tmp_path, last):
    "In the third validation, and in the one that ends the run. The next process validates first; asked to stop once more there, it has nothing to save."
    e, out = early(), tmp_path / "run"
    which = len(e.log.validation) if last else 3
    batches = -(-len(read_jsonl(e.out / "data" / "validation.jsonl")) // 8)
    c = run(tmp_path / "log", *training(e.rows, out, **EARLY), first=IN_VALIDATION.format(n=(which - 1) * batches + 1))
    assert c.code == 143 and newest(out).step == 3 * which, c.said
    before = {p.name: sha256_file(p) for p in newest(out).path.iterdir()}
    c = run(tmp_path / "log2", *training(e.rows, out, **EARLY), first=IN_VALIDATION.format(n=1))
    assert c.code == 143 and {p.name: sha256_file(p) for p in newest(out).path.iterdir()} == before, c.said
    c = run(tmp_path / "log3", *training(e.rows, out, **EARLY))
    assert c.code == 0, c.said
    e.same(out)


IN_THE_BEST = DEADLY + """
import json, shutil
from pathlib import Path
import ftlearn.train.sft as sft, ftlearn.train.best as best
from ftlearn.train.checkpoint import newest
real, calls = sft.keep_best, [0]

def keep(run, watch, write):
    calls[0] += 1
    if calls[0] != 3: return real(run, watch, write)
    home, spare, n, end = Path(run) / "best", Path(run) / "spare", 0, -9
    shutil.copytree(home, spare)
    while end == -9:
        n += 1
        end = fork_and_die(n)
        if end is None: real(run, watch, write); os._exit(0)
        found = newest(home)
        print("RESULT", json.dumps([n, end, found.step, len(found.skipped)]), flush=True)
        shutil.rmtree(home), shutil.copytree(spare, home)
    shutil.rmtree(spare)
    return real(run, watch, write)

sft.keep_best = keep
"""


def test_killed_at_every_file_boundary_of_the_best(tmp_path):
    "Before every call to the file system while the third best weights are written: those before stay whole."
    e = early()
    c = run(tmp_path / "log", *training(e.rows, tmp_path / "run", **EARLY), first=IN_THE_BEST)
    assert c.code == 0, c.said
    table = results(c.said)
    assert len(table) > 15 and [r[1] for r in table] == [-signal.SIGKILL] * (len(table) - 1) + [0]
    steps = [r[2] for r in table]
    assert steps == sorted(steps) and len(set(steps)) == 2 and {r[3] for r in table} == {0}
    e.same(tmp_path / "run")


def test_best_weights_that_are_damaged(tmp_path):
    "A killed run whose best weights lost a byte: it says so, and goes on with the validations to come."
    e, out = early(), tmp_path / "run"
    c = run(tmp_path / "log", *training(e.rows, out, **EARLY), first=AT_SAVE + "after(sft, 'save_checkpoint', 4, signal.SIGKILL)")
    assert c.code == -9, c.said
    held = newest(out / "best")
    (held.path / "adapter_model.safetensors").write_bytes(b"no weights")
    c = run(tmp_path / "log2", *training(e.rows, out, **EARLY))
    assert c.code == 0 and f"the best weights, those of step {held.step}, are damaged and forgotten (size: adapter_model.safetensors" in c.said, c.said
    assert [r["loss"] for r in Run(out).log.train] == [r["loss"] for r in e.log.train] and Run(out).manifest["best"]["step"] != held.step


# --- what is watched

def test_a_metric_of_generated_answers(tmp_path):
    "It stands in the log, decides what is best, and is what `generate` and `score` give for the weights that are kept."
    r, said = one_run(tiny_rows(200), tmp_path / "run", method="full", learning_rate=3e-3, max_steps=50, eval_steps=10, per_device_train_batch_size=16, metric_for_best="exact_match", metric_rows=20, max_new_tokens=48, load_best=True)
    seen = {x["step"]: x["eval_exact_match"] for x in r.log.validation}
    best = max(seen, key=seen.get)
    assert seen[10] < 0.2 and seen[best] > 0.5 and r.manifest["best"] == {"step": best, "metric": "eval_exact_match", "value": seen[best]}
    rows = random.Random(r.config.seed).sample(read_jsonl(r.data / "validation.jsonl"), 20)
    answers = generate(load_tuned(r, say=str), rows, max_new_tokens=48, progress=False)
    assert score([a["prediction"] for a in answers], [a["references"] for a in answers], ["exact_match"])["exact_match"].score == seen[best]


def test_tied_weights_are_not_missing(tmp_path, caplog):
    "All weights trained, the best taken back: the output layer stands in the file under the name of the embeddings, and nothing is said to be missing. What is missing is told."
    from transformers.utils import logging as hf
    hf.enable_propagation()
    caplog.set_level("WARNING", logger="transformers")   # a test before this one may have made it quieter
    seen = []
    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kw): seen.append(model.get_input_embeddings().weight.detach().clone())
    try:
        r, _ = one_run(tiny_rows(40), tmp_path / "run", callbacks=[Look()], method="full", learning_rate=0.05, max_steps=9, load_best=True)
        assert "missing keys" not in caplog.text
        best = [x["eval_loss"] for x in r.log.validation]
        model = load_tuned(r, say=str).model
        assert model.lm_head.weight is model.get_input_embeddings().weight and torch.equal(model.lm_head.weight, seen[best.index(min(best))])
        trainer = object.__new__(_trainer_class())
        trainer.model, trainer.accelerator = model, SimpleNamespace(unwrap_model=lambda m: m)
        for gone, told in ((["lm_head.weight"], False), (["lm_head.weight", "model.embed_tokens.weight"], True), (["model.norm.weight"], True)):
            caplog.clear()
            trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=gone, unexpected_keys=[]))
            assert ("missing keys" in caplog.text) == told
    finally: hf.disable_propagation()


def test_the_metric_changes_nothing_in_the_training(tmp_path):
    a, _ = one_run(tiny_rows(40), tmp_path / "a", lora_dropout=0.1)
    b, _ = one_run(tiny_rows(40), tmp_path / "b", lora_dropout=0.1, metric_for_best="token_f1", metric_rows=4, max_new_tokens=16)
    assert all("eval_token_f1" in x for x in b.log.validation) and sha256_file(a.adapter / "adapter_model.safetensors") == sha256_file(b.adapter / "adapter_model.safetensors")


def test_a_metric_that_is_not_known(tmp_path):
    with pytest.raises(UserError, match="exact_match"): one_run(tiny_rows(20), tmp_path / "a", metric_for_best="exact_mach")
    for more in (dict(load_best=True), dict(early_stopping_patience=2), dict(metric_for_best="bleu")):
        with pytest.raises(UserError, match="needs validation rows"): one_run(tiny_rows(20), tmp_path / "b", split="100/0/0", **more)


def test_two_processes_stop_at_the_same_step(tmp_path):
    from test_multiprocess import pair, settings
    write_jsonl(tmp_path / "rows.jsonl", unrelated(40))
    more = dict(split="60/40/0", num_train_epochs=12, eval_steps=3, save_steps=4, lr_scheduler_type="constant", early_stopping_patience=2, load_best=True, max_length=512)
    one = train(resolve(settings(tmp_path / "rows.jsonl", tmp_path / "one", 8, **more), settings=False), progress=False, say=str)
    code, said = pair(settings(tmp_path / "rows.jsonl", tmp_path / "two", 4, **more), tmp_path)
    two = Run(tmp_path / "two")
    assert code == 0 and "stopped early" in said, said
    assert two.manifest["steps"] == one.manifest["steps"] < 36 and two.manifest["best"]["step"] == one.manifest["best"]["step"] < one.manifest["steps"]
    assert loss_of(two) == pytest.approx(two.manifest["best"]["value"], rel=1e-6)
    assert loss_of(two) == pytest.approx(one.manifest["best"]["value"], rel=1e-3)   # 18 steps of AdamW: another number of threads alone moves it by 1.3e-4
    (two.adapter / "ftlearn.json").unlink()
    whole = (two.adapter / "adapter_model.safetensors").read_bytes()
    code, said = pair(settings(tmp_path / "rows.jsonl", tmp_path / "two", 4, **more), tmp_path)
    assert code == 0 and "going on from step" in said and (two.adapter / "adapter_model.safetensors").read_bytes() == whole, said


def test_a_run_from_before_these_settings(tmp_path):
    "Its manifest does not name them; it is the same run as long as they have their defaults."
    r, _ = one_run(tiny_rows(20), tmp_path / "run", max_steps=2)
    old = r.manifest
    for name in ("early_stopping_patience", "load_best", "metric_for_best", "replay"): del old["identity"]["settings"][name]
    write_json(r.path / "manifest.json", old)
    assert "already trained" in " ".join(one_run(tiny_rows(20), tmp_path / "run", max_steps=2)[1])
    with pytest.raises(UserError, match="load_best"): one_run(tiny_rows(20), tmp_path / "run", max_steps=2, load_best=True)


# --- a validation that is no number

NAN = """
import ftlearn.train.sft as sft
real, passes = sft.answer_loss, [0]
def loss(model, *args, **kw):
    out, n, right = real(model, *args, **kw)
    passes[0] += model.training
    return (out * float('{value}') if not model.training and passes[0] > 12 else out), n, right
sft.answer_loss = loss
"""


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_validation_loss_that_is_no_number(tmp_path, value):
    "In the validation after step 8, which no checkpoint was to follow: the run stops with the weights of that step, and without the fault it goes on to the same bytes."
    out = tmp_path / "run"
    c = run(tmp_path / "log", *training(whole().rows, out, save_steps=100), first=NAN.format(value=value))
    assert c.code == 1 and "the validation loss after step 8 is not a finite number; the weights of that step are kept" in c.said and "Traceback" not in c.said, c.said
    assert newest(out).step == 8 and not Run(out).finished
    last = Run(out).log.rows[-1]
    assert last["step"] == 8 and str(last["eval_loss"]) == value
    assert run(tmp_path / "log", *training(whole().rows, out, save_steps=100)).code == 0
    whole().same(out)


def test_a_validation_row_that_the_model_cannot_read(tmp_path):
    "Nothing is patched: a spoilt token in the model, and one validation row that has it. Taken up again the run stops in the same way, with no step more."
    model, rows = broken_model(tmp_path / "model"), [r | {"id": f"row-{i}"} for i, r in enumerate(tiny_rows(20))]
    spoilt = rows[17]["messages"][0]
    spoilt["content"] += "~"
    folder = tmp_path / "data"
    from ftlearn.data.split import Splits, write_splits
    write_splits(Splits(rows[:14], rows[14:], [], {"source": {"sha256": ""}, "seed": 0, "ratios": [0.7, 0.3, 0]}), folder)
    config = resolve(dict(model=str(model), method="lora", dtype="float32", data=str(folder), out=str(tmp_path / "run"), max_length=512, max_steps=8, eval_steps=4, per_device_eval_batch_size=2), settings=False)
    for _ in range(2):
        with pytest.raises(NotFinite, match="validation loss after step 4.*row-17"): train(config, progress=False, say=str)
        assert newest(tmp_path / "run").step == 4 and [r["step"] for r in Run(tmp_path / "run").log.train] == [1, 2, 3, 4]


# --- against learning by heart

def test_the_noise_of_neftune(tmp_path):
    "It is there in training and not in validation; its size is that of the paper; a killed run goes on to the same bytes."
    seen = {True: [], False: []}
    from transformers import TrainerCallback
    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kw):
            if state.global_step: return
            embed = model.get_input_embeddings()
            def hook(module, inputs, out): seen[module.training].append((out - torch.nn.functional.embedding(inputs[0], module.weight)).detach())
            embed.register_forward_hook(hook)
    write_jsonl(tmp_path / "rows.jsonl", tiny_rows(40))
    settings = dict(model="tiny", method="lora", dtype="float32", data=str(tmp_path / "rows.jsonl"), split="60/40/0", max_length=512, max_steps=6, eval_steps=3, neftune_noise_alpha=5.0)
    r = train(resolve(settings | {"out": str(tmp_path / "a")}, settings=False), progress=False, say=str, callbacks=[Look()])
    for noise in seen[True]:
        limit = 5 / (noise.shape[1] * noise.shape[2]) ** 0.5
        assert 0.99 * limit < noise.abs().max() <= 1.001 * limit
    assert len(seen[True]) == 6 and len(seen[False]) >= 2 and all(x.abs().max() == 0 for x in seen[False])
    assert loss_of(r) == pytest.approx(r.log.validation[-1]["eval_loss"], rel=1e-5)
    command = lambda out: training(tmp_path / "rows.jsonl", out, neftune_noise_alpha=5.0, num_train_epochs=3)
    a = run(tmp_path / "log", *command(tmp_path / "b"))
    b = run(tmp_path / "log", *command(tmp_path / "c"), first=AT_SAVE + "after(sft, 'save_checkpoint', 5, signal.SIGKILL)")
    assert (a.code, b.code) == (0, -9) and run(tmp_path / "log", *command(tmp_path / "c")).code == 0
    Whole.same(SimpleNamespace(out=tmp_path / "b"), tmp_path / "c")


def test_replay(tmp_path):
    "As many general rows as asked for, in training only; another file of them is another run."
    general = [r | {"id": f"g-{i}", "messages": [{"role": "user", "content": f"say {i}"}, r["messages"][1]]} for i, r in enumerate(tiny_rows(30))]
    write_jsonl(tmp_path / "general.jsonl", general)
    more = dict(max_steps=4, replay=str(tmp_path / "general.jsonl"), replay_share=0.25)
    r, said = one_run(tiny_rows(40), tmp_path / "run", **more)
    note, train_rows = r.manifest["data"]["replay"], len(read_jsonl(r.data / "train.jsonl"))
    assert note["rows"] == round(train_rows / 3) and note["from"] == "general.jsonl" and any("replay: 8 rows" in s for s in said), said
    assert r.log.train[-1]["epoch"] == pytest.approx(4 / -(-(train_rows + note["rows"]) // 8), abs=1e-3)
    write_jsonl(tmp_path / "general.jsonl", general[1:])
    with pytest.raises(UserError, match="data.replay"): one_run(tiny_rows(40), tmp_path / "run", **more)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weight_decay_by_hand(tmp_path, decay):
    "One step of AdamW from a known start: the first update is the rate times the sign, and the decay is the rate times the weight."
    from ftlearn.core import seed_everything
    from ftlearn.model.adapt import adapt
    from ftlearn.model.load import load_model
    r, _ = one_run(tiny_rows(16), tmp_path / "run", max_steps=1, eval_steps=1, warmup_ratio=0.0, learning_rate=0.01, weight_decay=decay, lr_scheduler_type="constant", split="50/50/0")
    from safetensors.torch import load_file
    got = load_file(r.adapter / "adapter_model.safetensors")
    seed_everything(42)
    start = {k.replace(".default", ""): v for k, v in adapt(load_model("tiny", dtype="float32").model, "lora", Config(method="lora")).state_dict().items() if "lora_A" in k}
    for name, a in start.items(): assert torch.allclose(got[name], a * (1 - 0.01 * decay), atol=1e-6), name   # lora_B is zero, so lora_A has no gradient at the first step
