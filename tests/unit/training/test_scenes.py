"""Scenes say what they show: places, numbers, relations, styles and colours, and what is held out of training."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

pytest.importorskip("torch")

from sprite_house import ANIMALS, OBJECTS, house_records, house_sprites

from training.looks import measure
from training.scenes import Scene, SceneSampler
from training.vocabulary import entries, is_held_out
from training.words import is_countable, lists, plural, with_article

SQUARE, WIDE, TALL = (512, 512), (384, 640), (640, 384)
RECORDS = house_records()
LOOKS = measure(house_sprites(len(RECORDS)))
NAMES = {entry.label: (entry.label, entry.name, *entry.keywords) for entry in entries(RECORDS)}
DEFAULTS = {entry.label: entry.default_style for entry in entries(RECORDS)}


@cache
def scenes(stage: int, canvas: tuple[int, int] = SQUARE, *, held_out: bool = False) -> list[Scene]:
    sampler = SceneSampler(RECORDS, stage, 7, held_out, LOOKS)
    return [sampler.scene(index, canvas) for index in range(3000)]


def boxes(scene: Scene, canvas: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each layer in pixels of the canvas."""
    height, width = canvas
    found = []
    for layer in scene.layers:
        look, side = LOOKS[layer.sprite], layer.size * min(canvas)
        half_width, half_height = look.width * side / 2, look.height * side / 2
        x, y = layer.x * width, layer.y * height
        found.append((x - half_width, y - half_height, x + half_width, y + half_height))
    return found


def test_a_scene_follows_from_seed_index_and_canvas_alone() -> None:
    forwards, backwards = SceneSampler(RECORDS, 3, 5, looks=LOOKS), SceneSampler(RECORDS, 3, 5, looks=LOOKS)
    first = [forwards.scene(index, WIDE) for index in range(40)]
    second = [backwards.scene(index, WIDE) for index in reversed(range(40))]
    assert first == second[::-1]
    assert first != [SceneSampler(RECORDS, 3, 6, looks=LOOKS).scene(index, WIDE) for index in range(40)]


def test_the_first_stage_shows_one_thing_in_the_middle_of_a_plain_colour() -> None:
    for scene in scenes(1):
        (layer,) = scene.layers
        assert (layer.x, layer.y, layer.size, layer.flip, layer.angle, layer.hue) == (0.5, 0.5, 0.8, False, 0, 0)
        assert scene.top == scene.bottom
        assert scene.facts.background is not None
        assert scene.facts.style == DEFAULTS[scene.facts.labels[0]]


def test_white_is_the_commonest_background_and_every_colour_is_shown() -> None:
    shown = Counter(scene.facts.background for scene in scenes(1))
    assert len(shown) == 17
    assert 0.4 < shown["white"] / 3000 < 0.55


def test_a_colour_other_than_white_is_always_said() -> None:
    said = {"gray": ("gray", "grey"), "navy": ("navy", "dark blue"), "teal": ("teal", "turquoise")}
    for scene in (*scenes(1), *scenes(3)):
        colour = scene.facts.background
        if colour in {"black", "red", "gray", "navy", "teal", "orange", "brown"}:
            assert any(word in scene.caption.lower() for word in said.get(colour, (colour,))), scene.caption


def test_a_caption_that_names_no_style_shows_the_things_first_style() -> None:
    named = 0
    for scene in scenes(3):
        is_named = any(word in scene.caption.lower() for word in ("glossy", "flat"))
        named += is_named
        if not is_named:
            assert {DEFAULTS[label] for label in scene.facts.labels} == {scene.facts.style}, scene.caption
        else:
            assert scene.facts.style in scene.caption.lower()
    assert 0.25 < named / 3000 < 0.6


def test_all_layers_of_a_scene_are_of_one_style() -> None:
    for scene in scenes(3):
        assert {RECORDS[layer.sprite].style for layer in scene.layers} == {scene.facts.style}


def test_the_last_stage_shows_pairs_counts_colours_and_scenes_in_their_shares() -> None:
    facts = [scene.facts for scene in scenes(3)]
    assert 0.13 < sum(fact.relation is not None for fact in facts) / 3000 < 0.19
    assert 0.09 < sum(fact.count > 1 and fact.relation is None for fact in facts) / 3000 < 0.15
    assert 0.05 < sum(fact.colour is not None for fact in facts) / 3000 < 0.11
    assert 0.12 < sum(fact.scene is not None for fact in facts) / 3000 < 0.3


@pytest.mark.parametrize("stage", [4, 5, 6])
def test_the_stages_of_pairs_show_many_and_rare_things_more_often(stage: int) -> None:
    facts = [scene.facts for scene in scenes(stage)]
    assert 0.48 < sum(fact.relation is not None for fact in facts) / 3000 < 0.56
    weights = {entry.label: entry.weight for entry in entries(RECORDS)}
    rarest = min(weights, key=weights.__getitem__)
    rare = [sum(scene.facts.labels[0] == rarest for scene in scenes(number)) for number in (3, stage)]
    assert rare[0] < rare[1]


def test_the_first_stages_of_pairs_say_them_in_their_order() -> None:
    backwards = (" right of ", " below ", " beneath ")
    counts = [
        sum(any(words in scene.caption for words in backwards) for scene in scenes(stage) if scene.facts.relation)
        for stage in (4, 5, 6)
    ]
    assert counts[:2] == [0, 0]
    assert counts[2] > 100


def test_stray_words_stand_beside_a_thing_that_is_said_and_shown() -> None:
    known = lists()
    strays = [
        scene
        for scene in scenes(5)
        if scene.facts.relation is None
        and scene.facts.count == 1
        and any(f" {words}" in scene.caption for words in (*known.strays, *known.deeds))
    ]
    assert len(strays) > 60
    for scene in strays:
        (label,) = scene.facts.labels
        assert any(name in scene.caption.lower() for name in NAMES[label]), scene.caption


@pytest.mark.parametrize("canvas", [SQUARE, WIDE, TALL])
def test_a_pair_side_by_side_stands_where_two_of_one_thing_stand(canvas: tuple[int, int]) -> None:
    pairs = [s for s in scenes(3, canvas) if s.facts.relation in {"left of", "above"} and not s.facts.scene]
    twos = [scene for scene in scenes(3, canvas) if scene.facts.relation is None and scene.facts.count == 2]
    places = {tuple((round(p.x, 4), round(p.y, 4), round(p.size, 4)) for p in scene.layers) for scene in twos}
    wanted = "above" if canvas == TALL else "left of"
    found = {
        tuple((round(p.x, 4), round(p.y, 4), round(p.size, 4)) for p in s.layers)
        for s in pairs
        if s.facts.relation == wanted
    }
    assert len(places) == 1
    assert found == places


@pytest.mark.parametrize("canvas", [SQUARE, WIDE, TALL])
def test_a_relation_in_words_is_the_relation_in_the_picture(canvas: tuple[int, int]) -> None:
    seen: Counter[str] = Counter()
    for scene in scenes(3, canvas):
        caption, relation = scene.caption.lower(), scene.facts.relation
        if relation is None:
            continue
        assert [RECORDS[layer.sprite].label for layer in scene.layers] == list(scene.facts.labels)
        (first, second), (one, other) = scene.layers, boxes(scene, canvas)
        if relation == "left of" or (relation == "beside" and canvas != TALL):
            assert first.x < second.x
            assert one[2] <= other[0] + 1
        else:
            assert first.y < second.y
            assert one[3] <= other[1] + 1
        for words, order in ((" left of ", 1), (" above ", 1), (" on top of ", 1), (" right of ", -1), (" below ", -1)):
            if words in caption:
                said, meant = caption.partition(words)[::2], scene.facts.labels[::order]
                assert any(name in said[0] for name in NAMES[meant[0]]), caption
                assert any(name in said[1] for name in NAMES[meant[1]]), caption
                seen[words] += 1
    assert len(seen) == 5


@pytest.mark.parametrize("canvas", [SQUARE, WIDE, TALL])
def test_a_count_is_said_and_shown_without_overlap(canvas: tuple[int, int]) -> None:
    counted = [scene for scene in scenes(3, canvas) if scene.facts.count > 1 and scene.facts.relation is None]
    for scene in counted:
        count = scene.facts.count
        assert len(set(scene.layers)) == count
        assert any(
            word in scene.caption.lower().split()
            for word in ((), (), ("two", "2"), ("three", "3"), ("four", "4"))[count]
        )
        for one in boxes(scene, canvas):
            others = [box for box in boxes(scene, canvas) if box != one]
            assert all(one[2] <= o[0] or o[2] <= one[0] or one[3] <= o[1] or o[3] <= one[1] for o in others)
    assert {scene.facts.count for scene in counted} == {2, 3, 4}


@pytest.mark.parametrize("canvas", [SQUARE, WIDE, TALL])
def test_things_stay_on_the_canvas(canvas: tuple[int, int]) -> None:
    slack = 0.04 * min(canvas)
    for scene in (*scenes(2, canvas), *scenes(3, canvas)):
        for left, top, right, bottom in boxes(scene, canvas):
            assert min(left, top) > -slack, scene.caption
            assert right < canvas[1] + slack
            assert bottom < canvas[0] + slack


def test_things_in_scenes_stand_on_the_ground() -> None:
    standing = 0
    for scene in scenes(2):
        if scene.ground is None or scene.facts.labels[0] in {"airplane", "rocket", "kite"}:
            continue
        foot = boxes(scene, SQUARE)[0][3] / 512
        assert scene.horizon < foot < 0.97
        standing += 1
    assert standing > 400


def test_a_coloured_thing_says_its_colour_and_turns_its_hue() -> None:
    coloured = [scene for scene in scenes(3) if scene.facts.colour]
    turned = [scene for scene in coloured if scene.layers[0].hue]
    assert len(turned) > 50
    for scene in coloured:
        assert scene.facts.colour in scene.caption.lower()
        look = LOOKS[scene.layers[0].sprite]
        assert scene.layers[0].hue == dict(look.hues).get(scene.facts.colour, 0.0)


def test_without_looks_nothing_is_coloured() -> None:
    sampler = SceneSampler(RECORDS, 3, 7)
    assert not any(sampler.scene(index, SQUARE).facts.colour for index in range(500))


def test_a_word_of_another_language_stands_alone_on_white() -> None:
    foreign = [scene for scene in scenes(3) if "-de" in scene.caption or "-fr" in scene.caption]
    assert len(foreign) > 60
    for scene in foreign:
        label = scene.facts.labels[0]
        assert scene.caption.lower().rstrip(".") in {f"{label}-de", f"{label}-fr"}
        assert scene.facts.background == "white"
        assert scene.facts.count == 1


def combinations(scene: Scene) -> list[tuple[str, ...]]:
    facts, is_said = scene.facts, scene.facts.style in scene.caption.lower()
    found: list[tuple[str, ...]] = [("pair", *facts.labels)] if facts.relation else []
    for label in facts.labels:
        if facts.background not in {None, "white"}:
            found.append(("background", label, str(facts.background)))
        if is_said:
            found.append(("style", label, facts.style))
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_never_shows_a_held_out_combination(stage: int) -> None:
    shown = {combination for scene in scenes(stage) for combination in combinations(scene)}
    assert len(shown) > 200
    assert not any(is_held_out(*combination) for combination in shown)
    assert not any(scene.facts.held_out for scene in scenes(stage))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_scenes_held_out_show_one_each(stage: int) -> None:
    for scene in scenes(stage, held_out=True)[:500]:
        assert scene.facts.held_out
        assert any(is_held_out(*combination) for combination in combinations(scene)), scene.caption


def test_one_combination_in_ten_is_held_out_whatever_the_order() -> None:
    pairs = [(str(one), str(other)) for one in range(100) for other in range(100)]
    assert 0.085 < sum(is_held_out("pair", *pair) for pair in pairs) / len(pairs) < 0.115
    assert all(is_held_out("pair", one, other) == is_held_out("pair", other, one) for one, other in pairs)


def test_one_phrase_means_one_label() -> None:
    vocabulary = entries(RECORDS)
    phrases = Counter(phrase for entry in vocabulary for phrase in {entry.label, entry.name, *entry.keywords})
    assert max(phrases.values()) == 1
    assert "animal" not in phrases  # twelve claim it
    assert phrases["steam ship"] == 1


def test_things_that_matter_more_are_shown_more_often() -> None:
    shown = Counter(RECORDS[scene.layers[0].sprite].label for scene in scenes(1))
    animals, objects = sum(shown[label] for label in ANIMALS) / 12, sum(shown[label] for label in OBJECTS) / 10
    assert 1.3 * objects < animals < 2.1 * objects  # they weigh 2.0 to 1.2, and all but one are common


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("ewe", "a ewe"),
        ("grapes", "grapes"),
        ("scissors", "scissors"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("glass of milk", "a glass of milk"),
        ("broccoli", "broccoli"),
        ("sun", "the sun"),
        ("flag of france", "the flag of france"),
        ("nest with eggs", "a nest with eggs"),
    ],
)
def test_a_thing_has_its_article(words: str, expected: str) -> None:
    assert with_article(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cat", "cats"),
        ("computer mouse", "computer mice"),
        ("ear of corn", "ears of corn"),
        ("peach", "peaches"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("bus", "buses"),
        ("kitchen knife", "kitchen knives"),
        ("tropical fish", "tropical fish"),
        ("nest with eggs", "nests with eggs"),
        ("tomato", "tomatoes"),
    ],
)
def test_a_thing_has_its_plural(words: str, expected: str) -> None:
    assert plural(words) == expected


def test_what_is_many_or_none_is_not_counted() -> None:
    assert not any(
        is_countable(words) for words in ("grapes", "scissors", "broccoli", "sun", "person running", "books")
    )
    assert all(is_countable(words) for words in ("cat", "bus", "glass of milk", "wedding ring", "octopus"))
