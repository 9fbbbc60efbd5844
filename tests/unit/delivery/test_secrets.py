import json
import threading
from pathlib import Path

import pytest

from fluxserve.delivery.secrets import FILE_NAME, Secrets, load_or_create
from fluxserve.errors import ConfigurationError


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_create(tmp_path)
    assert load_or_create(tmp_path) == made
    assert len({made.pepper, *made.link_keys}) == 2
    assert min(map(len, (made.pepper, *made.link_keys))) >= 32
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_every_server_has_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert load_or_create(tmp_path / "one") != load_or_create(tmp_path / "two")


def test_of_many_starts_at_once_all_get_the_same_secrets(tmp_path: Path) -> None:
    found: list[Secrets] = []
    together = threading.Barrier(16)

    def start() -> None:
        together.wait()
        found.append(load_or_create(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 16
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_open_to_others_is_refused_and_the_message_says_what_to_do(tmp_path: Path, mode: int) -> None:
    load_or_create(tmp_path)
    path = tmp_path / FILE_NAME
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        load_or_create(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"pepper": 1, "link_keys": []}',
        b'{"pepper": "AAAA", "link_keys": ["AAAA"]}',
        json.dumps({"pepper": "A" * 44, "link_keys": []}).encode(),
        json.dumps({"link_keys": ["A" * 44]}).encode(),
        json.dumps({"pepper": "%" * 44, "link_keys": ["A" * 44]}).encode(),
    ],
)
def test_damaged_secrets_stop_the_start_and_stay_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="Restore the file from a backup"):
        load_or_create(tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="check the data folder"):
        load_or_create(tmp_path / "missing")


def test_a_repr_shows_no_secret(tmp_path: Path) -> None:
    found = load_or_create(tmp_path)
    stored = json.loads((tmp_path / FILE_NAME).read_text())
    for text in (repr(found), str(found), f"{found}"):
        assert "***" in text
        assert stored["pepper"] not in text
        assert repr(found.pepper) not in text
        assert found.pepper.hex() not in text
        assert stored["link_keys"][0] not in text
