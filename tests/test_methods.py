"""Six methods, each from the command line: what should move moved, all else is bit-equal, and saved, reloaded and merged models agree (tiny model, float32)."""
import pytest, torch

from ftlearn.cli import main
from ftlearn.config import resolve
from ftlearn.core import UserError, seed_everything, write_jsonl
from ftlearn.data.encode import collate, encode_rows
from ftlearn.data.split import load_splits
from ftlearn.deploy.merge import merge
from ftlearn.evaluate.generate import generate
from ftlearn.model.adapt import METHODS, adapt
from ftlearn.model.load import load_model
from ftlearn.tiny import tiny_rows
from ftlearn.train.sft import Run, answer_loss, load_tuned, prepare_model, train

RATES = {"lora": 5e-3, "qlora": 5e-3, "dora": 5e-3, "full": 3e-3, "prompt": 3e-2, "ia3": 3e-2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_jsonl(path, tiny_rows(96))
    return path


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    "A run of each method, made when it is first asked for."
    made, root = {}, tmp_path_factory.mktemp("runs")
    def get(method):
        if method not in made:
            sets = [f"learning_rate={RATES[method]}", "max_steps=12", "eval_steps=4", "dtype=float32", "max_length=512", "split=80/20/0"]
            args = ["train", "--data", str(rows), "--out", str(root / method), "--model", "tiny", "--method", method, *[a for s in sets for a in ("--set", s)]]
            with pytest.raises(SystemExit) as e: main(args)
            assert not e.value.code
            made[method] = Run.open(root / method)
        return made[method]
    return get


def plain(name):
    for part in ("base_model.model.", ".base_layer"): name = name.replace(part, "")
    return name.removeprefix("base_model.")


@pytest.mark.parametrize("method", METHODS)
def test_only_what_should_move_moved(runs, method):
    run = runs(method)
    seed_everything(run.config.seed)
    before = adapt(prepare_model(run.config, say=str)[0].model, method, run.config)
    trains = {n for n, p in before.named_parameters() if p.requires_grad}
    after = {plain(k): v for k, v in load_tuned(run, say=str).model.state_dict().items()}
    assert trains
    for name, value in before.state_dict().items():
        if name == "lm_head.weight" or name.endswith("model.lm_head.weight"): continue            # tied to the embeddings
        assert torch.equal(after[plain(name)], value) != (name in trains), name


@pytest.mark.parametrize("method", METHODS)
def test_reloaded_it_has_the_loss_of_the_log(runs, method):
    run = runs(method)
    loaded = load_tuned(run, say=str)
    batch = collate(list(encode_rows(load_splits(run.data).validation, loaded.tokenizer)), loaded.tokenizer.pad_token_id)
    with torch.no_grad(): loss = answer_loss(loaded.model, batch)[0].item()
    last = run.log.validation[-1]
    assert last["step"] == 12 and loss == pytest.approx(last["eval_loss"], rel=1e-5)
    assert last["eval_loss"] < run.log.train[0]["loss"]                                            # it learned something


@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "ia3"])
def test_merged_it_gives_the_same_logits(runs, method, tmp_path):
    run = runs(method)
    loaded = load_tuned(run, say=str)
    batch = collate(list(encode_rows(tiny_rows(8, seed=3), loaded.tokenizer)), loaded.tokenizer.pad_token_id)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    merged = load_model(merge(run.path, None, tmp_path / "merged", dtype="float32"), dtype="float32").model
    base = prepare_model(run.config, say=str)[0].model
    with torch.no_grad(): one, two, none = (m(**inputs).logits for m in (loaded.model, merged, base))
    assert (one - two).abs().max() < 1e-3 * one.abs().max()
    assert (one - none).abs().max() > 1e-2 * one.abs().max()                                       # and not those of the base


@pytest.mark.parametrize("method", ["full", "prompt"])
def test_what_cannot_be_merged_says_so(runs, method, tmp_path):
    with pytest.raises(UserError, match="nothing to merge|cannot be merged"): merge(runs(method).path, None, tmp_path / "merged")


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16_it_trains_and_answers(rows, method, tmp_path):
    said = []
    run = train(resolve({"model": "tiny", "method": method, "dtype": "bfloat16", "data": str(rows), "split": "80/20/0", "out": str(tmp_path / "run"), "max_steps": 3, "max_length": 512,
                         "learning_rate": RATES[method]}, settings=False), progress=False, say=said.append)
    assert len(generate(load_tuned(run, say=str), tiny_rows(2), max_new_tokens=4, progress=False)) == 2
    slower = [s for s in said if "as PEFT has them" in s or "is computed for each row" in s]
    assert len(slower) == {"ia3": 1, "prompt": 1}.get(method, 0), said                  # what is not sped up is said
