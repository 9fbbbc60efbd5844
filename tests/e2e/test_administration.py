"""Keys, the books' check and backups: through the running server, and without one."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from servers import MakeServer, Server, run

from fluxserve.api import admin
from fluxserve.errors import ConfigurationError

#: Listens as another user where the admin socket should be.
IMPOSTOR = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
listener.accept()[0].recv(1)
"""
KEY = re.compile(r"fx_live_[A-Za-z0-9_-]+")


@pytest.fixture(params=["running", "stopped"])
def server(make_server: MakeServer, request: pytest.FixtureRequest) -> Server:
    """A server that has drawn one picture; it runs, or it has been stopped."""
    server = make_server().start()
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"
    if request.param == "stopped":
        assert server.stop() == 0
    return server


def key_id(listed: str, name: str) -> str:
    """The id that `keys list` shows for a name."""
    return next(line.split("\t")[0] for line in listed.splitlines() if f"\t{name}\t" in line)


def test_keys_are_made_listed_and_revoked(server: Server) -> None:
    made = server.command("keys", "create", "second", "--credits", "12.5", "--rate", "60")
    assert made.returncode == 0, made.stderr
    assert KEY.fullmatch(made.stdout.strip())
    listed = server.command("keys", "list")
    assert "12.5" in listed.stdout
    assert made.stdout.strip() not in listed.stdout
    revoked = server.command("keys", "revoke", key_id(listed.stdout, "second"))
    assert (revoked.returncode, "is revoked" in revoked.stdout) == (0, True)
    unknown = server.command("keys", "revoke", "key_unknown")
    assert unknown.returncode == 1
    assert "There is no key key_unknown" in unknown.stderr


def test_credits_are_granted_and_shown(server: Server) -> None:
    made = server.command("keys", "create", "payer", "--account", "payers", "--credits", "5")
    assert made.returncode == 0, made.stderr
    granted = server.command("credits", "grant", "payers", "2.5")
    assert (granted.returncode, granted.stdout.strip()) == (0, "payers has 7.5 credits now.")
    by_key = server.command("credits", "grant", key_id(server.command("keys", "list").stdout, "payer"), "1")
    assert (by_key.returncode, by_key.stdout.strip()) == (0, "payers has 8.5 credits now.")
    shown = server.command("credits", "show").stdout.splitlines()
    assert "payers\t8.5\t8.5\t0" in shown
    for account, amount, problem in (
        ("nobody", "1", "no account or key nobody"), ("payers", "0", "not a positive number"),
        (shown[1].split("\t")[0], "1", "is unlimited"),
    ):  # fmt: skip
        refused = server.command("credits", "grant", account, amount)
        assert refused.returncode == 1
        assert problem in refused.stderr
    assert server.command("fsck").returncode == 0


def test_credits_go_to_a_key_by_its_name_unless_several_accounts_have_one(server: Server) -> None:
    for name, account in (("shop", "buyers"), ("lab", "science")):
        assert server.command("keys", "create", name, "--account", account, "--credits", "1").returncode == 0
    granted = server.command("credits", "grant", "shop", "2.5")
    assert (granted.returncode, granted.stdout.strip()) == (0, "buyers has 3.5 credits now.")
    listed = server.command("keys", "list").stdout
    assert server.command("keys", "revoke", key_id(listed, "shop")).returncode == 0
    assert server.command("keys", "create", "shop", "--account", "science", "--credits", "1").returncode == 0
    unclear = server.command("credits", "grant", "shop", "1")
    assert (unclear.returncode, "buyers, science. Name one of these." in unclear.stderr) == (1, True)


def test_the_name_of_a_key_is_one_line_that_no_other_has(server: Server) -> None:
    twice = server.command("keys", "create", "first")
    assert (twice.returncode, "There is a key named first already" in twice.stderr) == (1, True)
    for name in ("two\nlines", "a\x1b[31mred", " "):
        refused = server.command("keys", "create", name)
        assert refused.returncode == 1, name
        assert "name" in refused.stderr


def test_an_amount_that_is_none_is_told_so(server: Server) -> None:
    for amount in ("-5", "0", "nan", "1.0001"):
        refused = server.command("credits", "grant", "default", amount)
        assert (refused.returncode, "is not a positive number of credits" in refused.stderr) == (1, True), amount


def test_the_books_are_in_order(server: Server) -> None:
    checked = server.command("fsck")
    assert (checked.returncode, checked.stdout.strip()) == (0, "The books are in order.")


@pytest.mark.parametrize(
    "command", [("backup", "copy.db"), ("fsck",), ("quarantine",), ("keys", "list"), ("keys", "revoke", "x")]
)
def test_a_folder_without_a_database_is_not_made_one_by_looking(tmp_path: Path, command: tuple[str, ...]) -> None:
    asked = run(*command, "--data-dir", str(tmp_path / "typo"), cwd=tmp_path)
    assert asked.returncode == 1
    assert "There is no database in" in asked.stderr
    assert list(tmp_path.iterdir()) == []


def test_empty_credits_are_an_error_and_not_an_unlimited_key(server: Server) -> None:
    made = server.command("keys", "create", "second", "--credits", "")
    assert (made.returncode, made.stdout) == (1, "")


def test_an_admin_socket_of_another_user_is_not_asked() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    open_to_all = Path(tempfile.mkdtemp(dir="/tmp"))
    open_to_all.chmod(0o777)
    path = open_to_all / "admin.sock"
    impostor = subprocess.Popen([sys.executable, "-c", IMPOSTOR, str(path)], stdout=subprocess.PIPE, cwd="/")
    try:
        assert impostor.stdout is not None
        impostor.stdout.readline()
        with pytest.raises(ConfigurationError, match="another user"):
            admin.ask(path, admin.ListKeys())
    finally:
        impostor.kill()
        impostor.communicate()
        shutil.rmtree(open_to_all)


def test_a_backup_is_whole_and_private(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "backups" / "one.db"
    backed_up = server.command("backup", str(target))
    assert backed_up.returncode == 0, backed_up.stderr
    assert target.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert copy.execute("SELECT state FROM tasks").fetchall() == [("ready",)]


def test_cooked_books_are_found(server: Server) -> None:
    if server.process is not None and server.process.poll() is None:
        assert server.stop() == 0
    with closing(sqlite3.connect(server.data_dir / "fluxserve.db")) as database, database:
        database.execute("DELETE FROM outbox")
    checked = server.command("fsck")
    assert checked.returncode == 1
    assert "not in the outbox" in checked.stdout
    assert "1 violations" in checked.stderr


def test_a_new_key_works_and_a_revoked_one_does_not_within_a_second(make_server: MakeServer) -> None:
    server = make_server().start()
    key = server.command("keys", "create", "second").stdout.strip()
    listed = server.command("keys", "list").stdout
    with server.client(key) as client:
        assert client.post("/v1/flux-dev", json={"prompt": "a red apple"}).status_code == 200
        assert server.command("keys", "revoke", key_id(listed, "second")).returncode == 0
        began = time.monotonic()
        assert client.post("/v1/flux-dev", json={"prompt": "a red apple"}).status_code == 401
        assert time.monotonic() - began < 1.0
    server.kill_tree()
    server.start()
    with server.client(key) as client:
        assert client.post("/v1/flux-dev", json={"prompt": "a red apple"}).status_code == 401


def test_a_restore_brings_back_what_was_backed_up(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server().start()
    before = server.submit("a red apple")
    assert server.wait(before)["status"] == "Ready"
    assert server.command("backup", str(tmp_path / "one.db")).returncode == 0
    after = server.submit("a green apple")
    refused = server.command("restore", str(tmp_path / "one.db"))
    assert refused.returncode == 1
    assert "in use by another fluxserve" in refused.stderr
    assert server.stop() == 0
    assert server.command("restore", str(tmp_path / "one.db")).returncode == 0
    server.start()
    assert server.poll(before)["status"] == "Ready"
    with server.client() as client:
        assert client.get("/v1/get_result", params={"id": after}).status_code == 404


def test_a_first_key_is_made_before_a_public_start(tmp_path: Path) -> None:
    made = run("keys", "create", "first", "--data-dir", str(tmp_path / "data"))
    assert made.returncode == 0, made.stderr
    assert KEY.fullmatch(made.stdout.strip())
