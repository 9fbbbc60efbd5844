"""What is measured of a picture is what was painted, real pictures earn their marks, and the report says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from sprite_house import SHADES, house_records, house_sprites  # noqa: E402
from torch import Tensor  # noqa: E402

from fluxserve import mini  # noqa: E402
from training import classifier, measures, report  # noqa: E402
from training.backdrops import COLOURS, plain  # noqa: E402
from training.closeness import Sprites, traits  # noqa: E402
from training.drawing import Artist, Gallery, Wish  # noqa: E402
from training.exams import Exam, Examiner, Question  # noqa: E402
from training.grading import Grader, Judges  # noqa: E402
from training.layout import Layer, grid  # noqa: E402
from training.looks import measure  # noqa: E402
from training.painter import Painter  # noqa: E402
from training.scenes import Facts, Scene  # noqa: E402
from training.sheets import Sheets  # noqa: E402
from training.views import compose  # noqa: E402
from training.vocabulary import is_held_out  # noqa: E402

RECORDS = house_records()
SPRITES = house_sprites(len(RECORDS))
LOOKS = measure(SPRITES)
PAINTER = Painter(SPRITES)
FACTS = Facts(labels=("cat",), style="flat")
DISC, WIDE, TALL = 0, 1, 2


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def paint(*scenes: Scene) -> Tensor:
    return PAINTER.paint(scenes, 128, 128)


def thing(sprite: int, size: float = 0.8, x: float = 0.5, colour: str = "white") -> Scene:
    return compose((Layer(sprite, x, 0.5, size),), plain(colour), FACTS)


def examiner(share: float = 0.1) -> Examiner:
    return Examiner(RECORDS, LOOKS, share, 4, 3.5)


def untrained_judges() -> Judges:
    torch.manual_seed(0)
    judge = classifier.build(tuple(sorted({record.label for record in RECORDS})), ("flat", "glossy"))
    judge.network.eval()
    return Judges(strict=judge, known=judge)


def real(questions: Sequence[Question]) -> list[Tensor]:
    return [PAINTER.paint([question.scene], 128 * h // min(h, w), 128 * w // min(h, w))[0] for question in questions
            for h, w in (question.canvas,)]  # fmt: skip


def test_every_named_background_is_told_from_the_others() -> None:
    pictures = paint(*(thing(DISC, colour=name) for name in COLOURS))
    assert measures.background_names(pictures) == list(COLOURS)


def test_things_are_counted() -> None:

    scenes = [
        compose(grid(sprite, (512, 512), count), plain("white"), FACTS)
        for sprite in (DISC, WIDE, TALL)
        for count in (2, 3, 4)
    ]
    assert measures.counts(paint(*scenes)) == [2, 3, 4] * 3
    assert measures.counts(paint(thing(DISC), compose((), plain("red"), FACTS))) == [1, 0]


def test_a_small_speck_is_no_thing() -> None:
    speck = compose((Layer(DISC, 0.5, 0.5, 0.5), Layer(DISC, 0.1, 0.1, 0.1)), plain("white"), FACTS)
    assert measures.counts(paint(speck)) == [1]


def test_the_colour_of_a_thing_is_named_whatever_is_behind_it() -> None:
    shown = [thing(index, colour=colour) for index in range(4) for colour in ("white", "black", "beige")]
    assert measures.colour_names(paint(*shown)) == [
        name for name in ("red", "green", "blue", "yellow") for _ in range(3)
    ]
    assert len(SHADES) == 5


def test_a_thing_is_boxed_alike_wherever_it_is_and_however_large() -> None:
    boxed = measures.boxed(paint(thing(WIDE, 0.8), thing(WIDE, 0.4, x=0.3)), 64)
    assert float((boxed[0] - boxed[1]).square().mean()) < 0.01
    assert float((boxed[0] - measures.boxed(paint(thing(TALL)), 64)[0]).square().mean()) > 0.1


def test_the_frechet_distance_is_none_to_itself_and_the_square_of_a_shift() -> None:
    sample = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert measures.frechet(sample, sample) == pytest.approx(0, abs=1e-6)
    assert measures.frechet(sample, sample + 2) == pytest.approx(8 * 4, rel=1e-3)
    assert measures.frechet(sample, 3 * sample) > measures.frechet(sample, 2 * sample) > 1


def test_a_picture_of_a_sprite_is_near_to_it_and_another_is_not() -> None:
    judge = untrained_judges().known
    sprites = Sprites(PAINTER, 15, judge)
    same, turned = (
        sprites.distances(*traits(paint(compose((layer,), plain("white"), FACTS)), judge))[1].mean
        for layer in (Layer(WIDE, 0.45, 0.5, 0.7), Layer(WIDE, 0.5, 0.5, 0.8, angle=0.7))
    )
    assert same < 12 < turned


def test_halves_hold_one_thing_each() -> None:
    pair = compose((Layer(DISC, 0.25, 0.5, 0.45), Layer(WIDE, 0.75, 0.5, 0.45)), plain("white"), FACTS)
    left, right = measures.halves(paint(pair), is_row=True)
    for half in (left, right):
        middle, whole = measures.squared(half)
        assert middle.shape[-2:] == (64, 64)
        assert whole.shape[-2:] == (128, 128)
        assert measures.counts(middle) == measures.counts(whole) == [1]


def test_the_same_share_asks_the_same_questions() -> None:
    assert list(examiner().exams()) == list(examiner().exams())


def test_all_questions_ask_for_every_label_eight_times() -> None:
    exams = {exam.name: exam for exam in examiner(1.0).exams() if exam.name == "plain"}
    asked = [question.facts.labels[0] for question in exams["plain"].questions]
    assert sorted(asked) == sorted(label for label in {record.label for record in RECORDS} for _ in range(8))
    assert {question.seed for question in exams["plain"].questions} == set(range(8))


def test_held_out_combinations_are_asked_for_in_their_own_exam_only() -> None:
    for exam in examiner(0.2).exams():
        for question in exam.questions:
            facts = question.facts
            assert question.scene.caption
            if exam.name == "backgrounds":
                assert not is_held_out("background", facts.labels[0], facts.background or "")
            assert facts.held_out == (exam.name == "held out")


def test_real_pictures_earn_every_mark_that_needs_no_judge() -> None:
    exams = {exam.name: exam for exam in examiner(0.05).exams()}
    grader = Grader(untrained_judges(), PAINTER)
    for name in ("backgrounds", "mixture"):
        questions = exams[name].questions[:200]
        marks = grader.marks(questions, real(questions))
        for mark in {"background", "scene", "2 things", "3 things", "4 things", "colour"} & set(marks):
            asked = [value for value in marks[mark] if value is not None]
            assert sum(asked) >= 0.9 * len(asked), mark
    assert {"scene", "2 things", "3 things", "4 things"} <= set(marks)


def test_marks_are_lost_when_the_picture_is_another() -> None:
    questions = next(exam for exam in examiner(0.05).exams() if exam.name == "mixture").questions[:60]
    shown = real(questions)
    marks = Grader(untrained_judges(), PAINTER).marks(questions, shown[1:] + shown[:1])
    for mark in ("background", "scene", "2 things", "3 things"):
        asked = [value for value in marks[mark] if value is not None]
        assert sum(asked) <= 0.5 * len(asked), mark


def test_a_label_mark_is_what_the_judge_says() -> None:
    judges = untrained_judges()
    picture = paint(thing(DISC))
    best = judges.known.look(picture).labels.topk(6).indices[0].tolist()
    said = [judges.known.labels[place] for place in best]
    questions = [
        Question(scene=compose((), plain("white"), Facts(labels=(label,), style="flat"), "?"), seed=0)
        for label in (*said, "no label of the judge's")
    ]
    marks = Grader(judges, PAINTER).marks(questions, [picture[0]] * len(questions))
    assert marks["known top-1"] == [True, False, False, False, False, False, None]
    assert marks["strict top-5"] == [True, True, True, True, True, False, None]


def test_figures_stand_beside_those_of_real_pictures() -> None:
    drawn, real_marks = {"top-1": [True, False, None, True]}, {"top-1": [True, True, None, False]}
    figure, = report.figures("plain", drawn, real_marks)  # fmt: skip
    assert (figure.count, figure.drawn, figure.real) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert figure.drawn_where_real == pytest.approx(1 / 2)


def test_a_report_is_written_for_people_and_for_programs(tmp_path: Path) -> None:
    figures = report.figures("plain", {"top-1": [True, False]}, {"top-1": [True, True]})
    values = [report.Value(name="autoencoder", drawn="30.1 dB", real="")]
    written = report.Report(facts={"weights": "mini"}, figures=figures, values=values, things={"cat": {"known": 7}})
    report.write(written, tmp_path)
    assert "| plain | top-1 | 50.0% | 100.0% | 50.0% | 2 |" in (tmp_path / "evaluation.md").read_text()
    assert report.msgspec.json.decode((tmp_path / "evaluation.json").read_bytes(), type=report.Report) == written


def test_pictures_are_drawn_once_as_the_engine_draws_them_alone(tmp_path: Path) -> None:
    artist = Artist(mini.folder(), "cpu", 1)
    questions = tuple(
        Question(scene=compose((), plain("white"), FACTS, caption), seed=seed)
        for seed, caption in enumerate(("a red apple", "a cat", "a dog"))
    )
    exam = Exam(name="test", questions=questions, steps=2, guidance=3.5)
    pictures = Gallery(artist, tmp_path).pictures(exam)
    assert [tuple(picture.shape) for picture in pictures] == [(3, 128, 128)] * 3
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = Gallery(artist, tmp_path).pictures(exam)
    assert all(torch.equal(*pair) for pair in zip(pictures, again, strict=True))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept
    wishes = [Wish(prompt=q.scene.caption, seed=q.seed, size=(512, 512), steps=2, guidance=3.5) for q in questions]
    together, alone = artist.draw(wishes)[1], artist.draw(wishes[1:2])[0]
    difference = torch.tensor(list(together.data)).float() - torch.tensor(list(alone.data)).float()
    assert float(difference.abs().max()) <= 2


def test_sheets_are_seeded_and_show_every_kind_of_prompt() -> None:
    sheets, same, other = Sheets(RECORDS, 0), Sheets(RECORDS, 0), Sheets(RECORDS, 1)
    assert {"prompts", "scenes", "styles", "pairs", "counts", "languages", "settings", "animals"} <= set(sheets.names)
    for name in sheets.names:
        assert sheets.sheet(name) == same.sheet(name)
        assert all(shown.wish.prompt for shown in sheets.sheet(name))
    assert sheets.sheet("pairs") != other.sheet("pairs")
    prompts = [shown.wish.prompt for shown in sheets.sheet("prompts")]
    assert "A paper boat floating on calm water at sunrise." in prompts
    assert "a cat holding a sign" in prompts
