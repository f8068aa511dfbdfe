"""The server of a watched page: what it answers, to whom, and what it reads again."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.reporting import watch
from prnn.reporting.watch import Server, Source
from tests.reporting.conftest import Write, trained_at


@pytest.fixture
def run(write: Write) -> Path:
    return write("run", [trained_at(1)], config="seed: 1\n")


@pytest.fixture
def server(run: Path) -> Iterator[Server]:
    with Server(Source([str(run)])) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: Server, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_the_page_is_served_to_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.url == f"http://127.0.0.1:{server.server_port}/"
    status, headers, text = ask(server)
    assert status == 200 and 'id="status"' in text and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in headers["Content-Security-Policy"] and headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"] in text
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, Host=f"LOCALHOST:{server.server_port}")[0] == 200
    for host in (
        "evil.test",
        f"evil.test:{server.server_port}",
        "127.0.0.1",
        "127.0.0.1:x",
        f"127.0.0.1:{server.server_port}.evil",
    ):
        assert ask(server, Host=host)[0] == 403, host
    for path in ("/metrics.jsonl", "/../metrics.jsonl", "/x//", "/%2e%2e/etc/passwd"):
        assert ask(server, path)[0] == 404, path
    assert ask(server, method="POST")[0] == 501
    assert ask(server, method="HEAD")[2] == ""


def test_a_page_that_has_not_changed_is_not_sent_again(server: Server, run: Path) -> None:
    tag = ask(server)[1]["ETag"]
    status, headers, text = ask(server, If_None_Match=tag)
    assert (status, text, headers["ETag"]) == (304, "", tag)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "sample", "step": 1, "text": "a newer one"}) + "\n")
    status, headers, text = ask(server, If_None_Match=tag)
    assert status == 200 and headers["ETag"] != tag and "a newer one" in text


def test_only_what_has_changed_is_read_again(run: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write("other", [trained_at(1)])
    source = Source([str(run), str(other)])
    read: list[str] = []
    again = watch.load_again
    monkeypatch.setattr(watch, "load_again", lambda run: read.append(run.label) or again(run))
    assert source.page() is source.page() and read == []
    (other / "summary.json").write_text(json.dumps({"steps": 1, "stopped_by": "max_steps"}))
    assert b"done (step limit)" in source.page()[0] and read == [source.runs[1].label]
    source.page()
    assert len(read) == 1


def test_a_run_that_is_deleted_leaves_an_empty_page_and_one_that_cannot_be_read_a_sentence(
    server: Server, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run)
    assert ">empty<" in ask(server)[2]

    def refuse(run: object) -> None:
        raise UserError("it is \x1b locked.")

    monkeypatch.setattr(watch, "load_again", refuse)
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    assert ask(server)[::2] == (503, "the runs cannot be read: it is ␛ locked.")


def test_a_port_that_is_taken_is_told(server: Server, run: Path) -> None:
    with pytest.raises(UserError, match=f"port={server.server_port} cannot be used .*in use"):
        Server(Source([str(run)]), server.server_port)
