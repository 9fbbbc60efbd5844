"""What may stand beside a checkpoint: folders of networks that look at pictures for it.

Needs no torch.
What it does not know: settings, how the folders are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fluxserve.engine import depth, redux


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """`redux` reads image prompts, `depth` sees how near things are."""

    redux: Path | None = None
    depth: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(folder for folder in (self.redux, self.depth) if folder is not None)

    @property
    def files(self) -> Mapping[str, Path]:
        """Every file that decides what is seen, by a name that does not depend on where it lies."""
        kinds = (("redux", self.redux, redux.FILES), ("depth", self.depth, depth.FILES))
        return {
            f"{kind}/{name}": folder / name for kind, folder, names in kinds if folder is not None for name in names
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of their weights on disk."""
        return sum(file.stat().st_size for file in self.files.values() if file.suffix == ".safetensors")

    @property
    def words(self) -> tuple[str, ...]:
        """For people."""
        reads = (("image prompts by", self.redux), ("depths by", self.depth))
        return tuple(f"{what} {folder.name}" for what, folder in reads if folder is not None)

    def check(self, text_width: int) -> None:
        """Raise CheckpointRefused or CheckpointMissing; `text_width`: of the words that the checkpoint reads."""
        if self.redux is not None:
            redux.check(self.redux, text_width)
        if self.depth is not None:
            depth.check(self.depth)


NOTHING = Beside()
