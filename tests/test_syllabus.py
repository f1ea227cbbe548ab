"Each row of the syllabus leads to a heading and to names that exist, and every tutorial is in it."
from ftlearn.core import project_root
from ftlearn.teach.syllabus import SYLLABUS, Row, syllabus_faults, syllabus_table

NUMBERED = sorted(p.stem for p in (project_root()/"nbs/tutorials").glob("[0-9]*.ipynb"))


def test_all_31_rows_lead_somewhere():
    assert [r.number for r in SYLLABUS] == list(range(1, 32)) and syllabus_faults() == []


def test_a_lesson_or_name_that_is_gone_is_named():
    said = syllabus_faults([Row(7, "x", (("03_stats", "No such heading"), ("03_stats", "The verdict"), ("98_none", "x")), ("stats.nothing", "nosuch.module", "stats.wilson"))])
    assert len(said) == 4 and all(s.startswith("row 7") for s in said) and "No such heading" in said[0] and "98_none" in said[1]
    assert syllabus_faults([Row(8, "x", (), ("stats.wilson",))]) == ["row 8: nothing teaches it, or nothing does it"]


def test_every_tutorial_teaches_a_row():
    named = {notebook.split("/")[1] for r in SYLLABUS for notebook, _ in r.lessons if notebook.startswith("tutorials/")}
    assert set(NUMBERED) <= named, f"in no row: {sorted(set(NUMBERED) - named)}"


def test_the_table_links_each_lesson():
    table = syllabus_table()
    assert all(f"({notebook}.ipynb#" in table for r in SYLLABUS for notebook, _ in r.lessons) and table.count("\n") >= 32
