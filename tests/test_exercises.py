"The course's exercises: each accepts its answer, turns down the usual wrong ones by name, is asked in its tutorial and solved in the solutions; what a learner did survives."
import json, os, re, subprocess, sys

import pytest

from ftlearn.core import UserError, project_root
from ftlearn.teach.book import BOOK
from ftlearn.teach.exercises import ask, check, progress
from ftlearn.teach.grade import grade, weak_points

TUTORIALS = project_root()/"nbs/tutorials"


def code(path): return "\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLEARN_PROGRESS", str(tmp_path/"sub/mine.json"))
    return tmp_path/"sub/mine.json"


@pytest.mark.parametrize("number", BOOK)
def test_an_exercise_proves_itself(number):
    ex = BOOK[number]
    assert weak_points(ex) == [] and len(ex.slips) >= 3 and ex.aim and ex.minutes
    shown = " ".join([ex._repr_markdown_(), repr(ex), repr(grade(ex, "no such word")), *(s.hint for s in ex.slips), *(repr(grade(ex, s.answer)) for s in ex.slips)])
    if ex.kind == "number" and ex.right: assert f"{ex.right:g}" not in shown.replace(",", ""), "a hint shows the answer"


@pytest.mark.parametrize("tutorial", sorted({number.split(".")[0] for number in BOOK}))
def test_asked_in_the_tutorial_and_solved_in_the_solutions(tutorial):
    page = next(TUTORIALS.glob(f"{tutorial}_*.ipynb"))
    numbers = [n for n in BOOK if n.startswith(tutorial + ".")]
    assert 3 <= len(numbers) <= 5
    assert re.findall(r'ask\("(\d\d\.\d)"\)', code(page)) == numbers
    assert re.findall(r'check\("(\d\d\.\d)"', code(TUTORIALS/"solutions"/page.name)) == numbers


def test_every_tutorial_has_exercises():
    assert {p.name[:2] for p in TUTORIALS.glob("[0-9]*.ipynb")} == {n[:2] for n in BOOK}


@pytest.mark.parametrize("answer", [None, [], float("inf"), float("nan"), "", {"a": 1}, lambda: 1, object(), lambda *a: (_ for _ in ()).throw(KeyError("x")), True, 10**400])
def test_any_answer_gets_a_verdict(answer):
    for ex in BOOK.values(): assert grade(ex, answer).ok is False


def test_a_function_that_changes_its_arguments_cannot_change_the_cases():
    def solve(train, test):
        label = min(sorted(set(train)), key=lambda x: -train.count(x))
        share = test.count(label)/len(test)
        train.clear(), test.clear()
        return share
    assert grade(BOOK["01.1"], solve).ok and grade(BOOK["01.1"], solve).ok


def test_what_was_solved_stays_solved(mine):
    assert not check("00.1", "all") and check("00.1", "ANSWER") and not check("00.1", "all")
    assert progress().done == {"00.1": {"tries": 2, "solved": progress().done["00.1"]["solved"]}} and progress().solved == ["00.1"]
    with pytest.raises(UserError, match="00.1"): ask("00.11")
    with pytest.raises(UserError): check("7", 1)
    mine.write_text('{"00.1": 3}')
    with pytest.raises(UserError, match="no file of solved exercises"): check("00.1", "answer")
    assert mine.read_text() == '{"00.1": 3}'


def test_two_kernels_at_once(mine):
    "Each notes its own tries; none is lost."
    run = [sys.executable, "-c", "from ftlearn.teach.exercises import check\nfor _ in range(20): check('00.2', 388)"]
    both = [subprocess.Popen(run, env=os.environ | {"PYTHONPATH": str(project_root())}) for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0] and progress().done["00.2"]["tries"] == 40
