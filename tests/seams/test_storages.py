"""What every storage promises, run on each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from fluxserve.catalogue import OutputFormat
from fluxserve.delivery.storage import OBJECT_NAME, LocalStorage, Storage, new_object_name
from fluxserve.errors import PictureGone

FAR_FUTURE = 1e12
STORAGES: dict[str, Callable[[Path], Storage]] = {"local": lambda folder: LocalStorage(folder / "pictures")}

#: Whoever gets a name past the links still gets nothing but pictures.
STRANGE_NAMES = [
    "",
    ".",
    "..",
    "tmp",
    "/etc/passwd",
    "../secrets.json",
    "ab/../../secrets.json",
    "ab/" + "ab" * 16,
    "ab/" + "ab" * 16 + ".gif",
    "ab/" + "ab" * 16 + ".jpeg\n",
    "ab/" + "ab" * 16 + ".jpeg/..",
    "ab/" + "ab" * 16 + "\x00.jpeg",
    "AB/" + "AB" * 16 + ".jpeg",
    "cd/" + "ab" * 16 + ".jpeg",
    "ab/" + "ab" * 15 + ".jpeg",
    "ab\\" + "ab" * 16 + ".jpeg",
    "ab/" + "é" * 32 + ".jpeg",
    "a٣/" + "a٣" * 16 + ".jpeg",
]


def read(storage: Storage, name: str) -> bytes:
    with storage.open(name) as picture:
        return picture.read(picture.size)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return STORAGES[request.param](tmp_path)


@pytest.mark.parametrize("suffix", [*get_args(OutputFormat), "safetensors"])
def test_what_was_put_is_what_one_gets(storage: Storage, suffix: OutputFormat) -> None:
    name = new_object_name(suffix)
    data = bytes(range(256)) * 8000
    storage.put(name, data)
    assert read(storage, name) == data
    assert name.endswith("." + suffix)


def test_names_are_new_every_time_and_of_one_form() -> None:
    names = {new_object_name("png") for _ in range(10_000)}
    assert len(names) == 10_000
    assert all(OBJECT_NAME.fullmatch(name) for name in names)


def test_what_is_not_there_is_gone(storage: Storage) -> None:
    storage.put(new_object_name("png"), b"another")
    with pytest.raises(PictureGone):
        read(storage, new_object_name("png"))


def test_a_deleted_picture_is_gone_and_deleting_it_again_is_fine(storage: Storage) -> None:
    kept, deleted = new_object_name("png"), new_object_name("png")
    for name in (kept, deleted):
        storage.put(name, name.encode())
    for _ in range(2):
        storage.delete(deleted)
        with pytest.raises(PictureGone):
            read(storage, deleted)
    assert read(storage, kept) == kept.encode()


def test_a_picture_is_read_in_parts_up_to_its_end(storage: Storage) -> None:
    name, data = new_object_name("png"), bytes(range(250)) * 10
    storage.put(name, data)
    with storage.open(name) as picture:
        assert picture.size == 2500
        parts = [picture.read(999) for _ in range(5)]
    assert [len(part) for part in parts] == [999, 999, 502, 0, 0]
    assert b"".join(parts) == data


@pytest.mark.parametrize("act", ["delete", "replace"])
def test_an_open_picture_stays_as_it_was(storage: Storage, act: str) -> None:
    name, data = new_object_name("png"), b"first" * 100_000
    storage.put(name, data)
    with storage.open(name) as picture:
        begin = picture.read(10)
        if act == "delete":
            storage.delete(name)
        else:
            storage.put(name, b"second")
        assert begin + picture.read(picture.size) == data


def test_putting_again_replaces_the_whole_picture(storage: Storage) -> None:
    name = new_object_name("webp")
    storage.put(name, b"long" * 1000)
    storage.put(name, b"short")
    assert read(storage, name) == b"short"


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_names_that_were_not_made_here_lead_nowhere(storage: Storage, name: str) -> None:
    for act in (storage.open, storage.delete, lambda strange: storage.put(strange, b"")):
        with pytest.raises(PictureGone):
            act(name)


def test_old_names_are_listed_and_young_ones_are_not(storage: Storage) -> None:
    names = {new_object_name("jpeg") for _ in range(20)}
    assert list(storage.names_older_than(FAR_FUTURE)) == []
    for name in names:
        storage.put(name, b"x")
    assert sorted(storage.names_older_than(FAR_FUTURE)) == sorted(names)
    assert list(storage.names_older_than(0)) == []


def test_names_may_be_deleted_while_they_are_listed(storage: Storage) -> None:
    names = {new_object_name("jpeg") for _ in range(50)}
    for name in names:
        storage.put(name, b"x")
    listed = 0
    for name in storage.names_older_than(FAR_FUTURE):
        listed += 1
        for other in names:
            storage.delete(other)
        with pytest.raises(PictureGone):
            read(storage, name)
    assert 1 <= listed <= 50


def test_threads_may_put_and_get_at_once(storage: Storage) -> None:
    faults: list[object] = []

    def work(number: int) -> None:
        for _ in range(20):
            name, data = new_object_name("png"), bytes([number]) * 5000
            storage.put(name, data)
            if read(storage, name) != data:
                faults.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(list(storage.names_older_than(FAR_FUTURE))) == 160
