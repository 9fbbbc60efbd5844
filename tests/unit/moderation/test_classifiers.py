"""Classifiers of pictures: the fake one, and the real one with the weights that its package brings."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from fluxserve import doctor
from fluxserve.catalogue import Size
from fluxserve.errors import ClassifierMissing
from fluxserve.moderation import opennsfw
from fluxserve.moderation.fake import SIGNAL, FakeClassifier
from fluxserve.moderation.pictures import Classifier, create, suited_to
from fluxserve.settings import Settings

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec(opennsfw.PACKAGE) is None,
    reason="the packages of local drawing are not installed",
)


@pytest.fixture(scope="module")
def real() -> Classifier:
    """The real one, warm."""
    classifier = create("opennsfw")
    classifier.warm()
    return classifier


def score(classifier: Classifier, image: Image.Image) -> float:
    (found,) = classifier.score(Size(image.width, image.height), image.tobytes()).values()
    return found


def harmless() -> Iterator[Image.Image]:
    """Things without people: colours, noise, shapes, stripes."""
    rng = random.Random(3)
    for size in ((64, 64), (512, 512), (640, 256), (1, 1), (300, 1000)):
        yield Image.new("RGB", size, "white")
        yield Image.new("RGB", size, (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
        yield Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
        image = Image.new("RGB", size, "lightblue")
        draw = ImageDraw.Draw(image)
        draw.rectangle((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill="red", outline="black")
        draw.ellipse((size[0] // 3, size[1] // 3, size[0], size[1]), fill="green")
        yield image


def test_the_fake_one_scores_by_colour() -> None:
    classifier = create("fake")
    classifier.warm()
    image = Image.new("RGB", (40, 40), "white")
    assert score(classifier, image) == 0.0
    image.paste(SIGNAL, (0, 0, 40, 20))
    assert score(classifier, image) == 0.5
    assert isinstance(classifier, FakeClassifier)
    assert (suited_to("fake"), suited_to("auto"), suited_to("diffusion")) == ("fake", "opennsfw", "opennsfw")


@needs_weights
def test_shapes_and_noise_are_harmless_at_every_size(real: Classifier) -> None:
    scores = [score(real, image) for image in harmless()]
    assert all(0.0 <= found < 0.3 for found in scores), scores


@needs_weights
def test_equal_pictures_have_equal_scores(real: Classifier) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    other = create("opennsfw")
    other.warm()
    assert score(real, image) == score(real, image) == score(other, image)
    assert real.identity == other.identity
    assert opennsfw.missing() == ""


@pytest.mark.parametrize(
    ("content", "message"), [(None, "are not there"), (b"", "are not there"), (b"other weights", "not those")]
)
def test_weights_that_are_gone_or_others_are_refused(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / opennsfw.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")  # nothing of it is ever run
    if content is not None:
        (package / opennsfw.FILE).write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    with pytest.raises(ClassifierMissing, match=message):
        create("opennsfw").warm()
    assert message in opennsfw.missing() or "onnxruntime" in opennsfw.missing()
    findings = doctor.examine(Settings(data_dir=tmp_path, engine="diffusion", device="cpu"))
    (told,) = (finding for finding in findings if finding.subject == "moderation")
    assert (told.grade, "cannot be judged" in told.text) == ("bad", True)


@pytest.mark.parametrize(("moderation", "words"), [("off", "off"), ("on", "pictures by fake")])
def test_doctor_says_what_is_moderated(moderation: str, words: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": "fake", "moderation": moderation})
    (told,) = (finding for finding in doctor.examine(settings) if finding.subject == "moderation")
    assert words in told.text
