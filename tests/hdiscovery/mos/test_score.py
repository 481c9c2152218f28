"""Answers in, mean opinion score out."""

import json

import pytest
from hdiscovery.cli import main
from hdiscovery.mos.answers import read_answers
from hdiscovery.mos.score import score, table
from hdiscovery.mos.study import Study

STUDY = Study(
    id="abc", run="a", step=40, S=2.0, examples=8, strengths=9, seed=0, codes=["QQQQ", "BBBB"],
    raters={"r1": ["QQQQ", "BBBB"], "r2": ["BBBB"], "r3": ["QQQQ"]},
)  # fmt: skip


def answer(code, marks="111", seconds=10.0):
    smooth, consistent, interpretable = (mark == "1" for mark in marks)
    return {"direction": code, "smooth": smooth, "consistent": consistent,
            "interpretable": interpretable, "seconds": seconds}  # fmt: skip


def file(tmp_path, rater, *answers, **changes):
    path = tmp_path / f"{rater}-{len(list(tmp_path.iterdir()))}.json"
    content = {"format": "hdiscovery-mos-answers-1", "study": "abc", "rater": rater,
               "answers": list(answers), **changes}  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def all_files(tmp_path):
    return [
        file(tmp_path, "r1", answer("QQQQ"), answer("BBBB", "110", seconds=40.0)),
        file(tmp_path, "r2", answer("BBBB")),
        file(tmp_path, "r3", answer("QQQQ")),
    ]


def test_a_mark_is_one_only_where_all_three_conditions_hold(tmp_path):
    for marks in ("011", "101", "110", "111"):
        (only,) = read_answers(STUDY, [file(tmp_path, "r2", answer("BBBB", marks))])
        assert only.mark == (marks == "111")


def test_the_mos_is_the_mean_of_all_marks(tmp_path):
    result = score(STUDY, read_answers(STUDY, all_files(tmp_path)))

    assert result.mos == 0.75
    assert result.answers == 4
    assert result.conditions == {"smooth": 1, "consistent": 1, "interpretable": 0.75}
    assert result.seconds == 17.5
    assert result.missing == []
    first, second = result.directions
    assert (first.k, first.code, first.mos, first.marks) == (0, "QQQQ", 1, {"r1": 1, "r3": 1})
    assert (second.k, second.mos, second.marks) == (1, 0.5, {"r1": 0, "r2": 1})
    assert second.conditions["interpretable"] == 0.5


def test_agreement_is_that_of_raters_of_the_same_direction(tmp_path):
    result = score(STUDY, read_answers(STUDY, all_files(tmp_path)))

    assert result.agreement["mark"].raw == 0.5
    assert result.agreement["mark"].alpha == 0  # marks 11 and 01: as chance would have it
    assert result.agreement["smooth"].raw == 1
    assert result.agreement["smooth"].alpha is None


def test_the_table_names_every_direction_and_the_whole(tmp_path):
    lines = table(score(STUDY, read_answers(STUDY, all_files(tmp_path)))).splitlines()

    assert [line.split()[:2] for line in lines[1:4]] == [["0", "1.00"], ["1", "0.50"],
                                                         ["all", "0.75"]]  # fmt: skip
    assert lines[6].endswith("alpha      —")


@pytest.mark.parametrize(
    ("rater", "answers", "changes", "message"),
    [
        ("r9", [], {}, "of rater 'r9', who is not in the study.*r1, r2, r3"),
        ("r1", [], {"study": "xyz"}, "of study 'xyz', not of 'abc'"),
        ("r1", [], {"format": "2"}, "not an answer file.*'2'"),
        ("r2", [answer("QQQQ")], {}, "'QQQQ' was not assigned to rater r2"),
        ("r2", [answer("BBBB"), answer("BBBB")], {}, "'BBBB' is answered 2 times"),
        ("r2", [{"direction": "BBBB"}], {}, "not an answer file.*'smooth'"),
        ("r2", [{**answer("BBBB"), "smooth": 1}], {}, "`smooth` of 'BBBB' is 1, not a yes or no"),
        ("r2", [{**answer("BBBB"), "seconds": "9"}], {}, "`seconds` of 'BBBB'"),
        ("r2", ["BBBB"], {}, "not an answer file"),
    ],
)
def test_a_file_that_does_not_fit_the_study_is_refused(tmp_path, rater, answers, changes, message):
    path = file(tmp_path, rater, *answers, **changes)

    with pytest.raises(ValueError, match=message) as refused:
        read_answers(STUDY, [path])
    assert str(path) in str(refused.value)


def test_a_rater_who_comes_twice_is_refused(tmp_path):
    paths = [file(tmp_path, "r2", answer("BBBB")) for _ in range(2)]

    with pytest.raises(ValueError, match="both of rater r2"):
        read_answers(STUDY, paths)


def test_nobody_s_answers_have_no_score():
    with pytest.raises(ValueError, match="nobody has marked"):
        score(STUDY, [])


def test_missing_answers_are_named_and_scored_only_when_asked_to(tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text(STUDY.to_json())
    paths = [str(path) for path in all_files(tmp_path)[:2]]

    assert main(["mos", "score", str(study), *paths]) == 2
    assert "1 answers are missing: r3: QQQQ" in capsys.readouterr().err
    assert not (study / "mos.json").exists()

    assert main(["mos", "score", str(study), *paths, "--partial"]) == 0
    result = json.loads((study / "mos.json").read_text())
    assert result["mos"] == pytest.approx(2 / 3)
    assert result["missing"] == [["r3", "QQQQ"]]


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no study\.json"):
        Study.open(tmp_path)
    (tmp_path / "study.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not a study of this version"):
        Study.open(tmp_path)
