"""The painter puts every thing where its layer says, in its colour, before its backdrop, at every size."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sprite_house import SHADES, house_records, house_sprites  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from training.backdrops import COLOURS, GROUNDS, SKIES, outdoors, plain  # noqa: E402
from training.layout import Layer  # noqa: E402
from training.looks import measure  # noqa: E402
from training.painter import Painter  # noqa: E402
from training.scenes import Facts, Scene, SceneSampler  # noqa: E402

DISC, WIDE, TALL = 0, 1, 2
SPRITES = house_sprites(15)
FACTS = Facts(labels=("disc",), style="flat")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def scene(*layers: Layer, colour: str = "white") -> Scene:
    rgb = COLOURS[colour]
    return Scene(layers=layers, top=rgb, bottom=rgb, seed=1, caption="", facts=FACTS)


def paint(*scenes: Scene, height: int = 128, width: int = 128) -> Tensor:
    return Painter(SPRITES).paint(scenes, height, width)


def inked(picture: Tensor) -> Tensor:
    """(H, W) bool: what is not the white background."""
    return (picture < 0.99).any(dim=0)


def extent(picture: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the ink, in pixels."""
    ink = inked(picture)
    columns, rows = ink.any(0).nonzero()[:, 0], ink.any(1).nonzero()[:, 0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_every_named_background_is_painted_exactly() -> None:
    pictures = paint(*(scene(colour=name) for name in COLOURS), height=64, width=96)
    for picture, rgb in zip(pictures, COLOURS.values(), strict=True):
        assert torch.allclose((picture + 1) / 2, torch.tensor(rgb)[:, None, None].expand(3, 64, 96), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 224), (224, 128)])
def test_a_thing_is_where_its_layer_says_and_as_large(height: int, width: int) -> None:
    picture = paint(scene(Layer(TALL, 0.25, 0.6, 0.5)), height=height, width=width)[0]
    left, top, right, bottom = extent(picture)
    assert abs((left + right) / 2 - 0.25 * width) <= 1
    assert abs((top + bottom) / 2 - 0.6 * height) <= 1
    assert abs((bottom - top) - 64) <= 2
    assert abs((right - left) - 32) <= 2


def test_a_thing_keeps_its_colour() -> None:
    picture = paint(scene(Layer(DISC, 0.5, 0.5, 0.8)))[0]
    assert torch.allclose((picture[:, 64, 64] + 1) * 127.5, torch.tensor(SHADES[0]).float(), atol=1)


def test_an_edge_on_white_has_no_dark_fringe() -> None:
    picture = (paint(scene(Layer(DISC, 0.5, 0.5, 0.7)))[0] + 1) / 2
    assert float(picture[0].min()) > SHADES[0][0] / 255 - 0.01


def test_the_later_layer_lies_on_the_earlier() -> None:
    picture = paint(scene(Layer(DISC, 0.5, 0.5, 0.8), Layer(WIDE, 0.5, 0.5, 0.8)))[0]
    assert torch.allclose((picture[:, 64, 64] + 1) * 127.5, torch.tensor(SHADES[1]).float(), atol=1)


@pytest.mark.parametrize("size", [0.2, 0.45, 0.8])
def test_a_picture_looks_the_same_at_every_size(size: float) -> None:
    scenes = [scene(Layer(index, 0.5, 0.5, size)) for index in range(3)]
    small, large = paint(*scenes, height=64, width=64), paint(*scenes, height=256, width=256)
    assert float((functional.avg_pool2d(large, 4) - small).square().mean()) < 0.006


def test_mirroring_and_turning() -> None:
    sprites = house_sprites(1)
    sprites[0, :, :128] = 0  # the right half of the disc
    painter = Painter(sprites)
    layer = Layer(0, 0.5, 0.5, 0.8)
    plain_one, mirrored, turned = painter.paint(
        [scene(layer), scene(layer._replace(flip=True)), scene(layer._replace(angle=float(np.pi / 2)))], 128, 128
    )
    assert extent(plain_one)[0] == pytest.approx(64, abs=2)
    assert torch.allclose(plain_one.flip(2), mirrored, atol=1e-4)
    assert extent(turned)[1] == pytest.approx(64, abs=2) or extent(turned)[3] == pytest.approx(64, abs=2)
    assert extent(turned)[0] < 20


def test_a_turned_hue_is_the_colour_that_was_measured() -> None:
    look = measure(SPRITES[:1])[0]
    assert look.colour == "red"
    assert {"blue", "green", "purple"} <= set(dict(look.hues))
    for name, hue in look.hues:
        red, green, blue = (paint(scene(Layer(DISC, 0.5, 0.5, 0.8, hue=hue)))[0, :, 64, 64] + 1).tolist()
        pixel = np.zeros((1, 256, 256, 4), dtype=np.uint8)
        pixel[..., :3], pixel[..., 3] = [channel * 127.5 for channel in (red, green, blue)], 255
        assert measure(pixel)[0].colour == name


def test_shapes_and_tiles_are_told_apart() -> None:
    disc, wide, tall = measure(SPRITES[:3])
    assert (round(disc.width, 1), round(disc.height, 1), disc.is_tile) == (1.0, 1.0, False)
    assert (round(wide.width, 1), round(wide.height, 1)) == (1.0, 0.5)
    assert (round(tall.width, 1), round(tall.height, 1)) == (0.5, 1.0)
    assert measure(np.full((1, 256, 256, 4), 255, dtype=np.uint8))[0].is_tile


def test_a_batch_equals_its_members_alone() -> None:
    records = house_records()
    sprites = house_sprites(len(records))
    sampler = SceneSampler(records, 3, 2, looks=measure(sprites))
    scenes = [sampler.scene(index, (512, 768)) for index in range(60)]
    together = Painter(sprites).paint(scenes, 128, 192)
    alone = torch.cat([Painter(sprites).paint([one], 128, 192) for one in scenes])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.shape == (60, 3, 128, 192)
    assert together.dtype == torch.float32
    assert -1 <= float(together.min()) < float(together.max()) <= 1


def test_sprites_may_lie_in_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "sprites.npy", SPRITES)
    scenes = [scene(Layer(index, 0.5, 0.5, size)) for index in range(3) for size in (0.3, 0.9)]
    mapped = Painter(np.load(tmp_path / "sprites.npy", mmap_mode="r"))
    assert torch.equal(mapped.paint(scenes, 192, 192), Painter(SPRITES).paint(scenes, 192, 192))


def backdrop(sky: str, ground: str | None) -> Scene:
    behind = outdoors(random.Random(1), sky, ground)
    return Scene(
        layers=(),
        top=behind.top,
        bottom=behind.bottom,
        ground=behind.ground,
        horizon=behind.horizon,
        waves=behind.waves,
        hills=behind.hills,
        lane=behind.lane,
        stars=behind.stars,
        clouds=behind.clouds,
        sun=behind.sun,
        seed=3,
        caption=str(behind.scene),
        facts=FACTS,
    )


def test_every_scene_differs_from_every_other() -> None:
    pictures = paint(*(backdrop(sky, ground) for sky in SKIES for ground in (*GROUNDS, None)), height=64, width=64)
    assert len(pictures) == 30
    distances = torch.cdist(pictures.flatten(1), pictures.flatten(1)) / pictures[0].numel() ** 0.5
    assert float(distances.fill_diagonal_(9).min()) > 0.05


def test_grass_is_green_and_night_is_dark_with_stars() -> None:
    grass, night = paint(backdrop("on a sunny day", "on grass"), backdrop("at night", None))
    assert int(grass[:, 120].mean(dim=1).argmax()) == 1
    assert float(night.mean()) < -0.4
    assert int((night.mean(dim=0) > 0.3).sum()) > 30


def test_stars_follow_from_the_seed() -> None:
    one = backdrop("at night", None)
    again, other = paint(one, one)
    assert torch.equal(again, other)
    elsewhere = paint(Scene(**{name: getattr(one, name) for name in one.__struct_fields__} | {"seed": 4}))[0]
    assert not torch.equal(again, elsewhere)


def test_a_plain_backdrop_has_no_scene() -> None:
    assert plain("navy").scene is None
    assert outdoors(random.Random(0), "at night", None).scene == "at night"
    assert outdoors(random.Random(0), "at sunset", "on water").scene == "on water at sunset"
