"""The report of a run under way, over HTTP."""

import urllib.error
import urllib.request
from threading import Thread

import pytest

from grpo_ao.errors import UserError
from grpo_ao.files import append_jsonl
from grpo_ao.report.live import ReportServer
from tests.report.made_run import make_run


@pytest.fixture
def served(tmp_path):
    folder = make_run(tmp_path / "run")
    server = ReportServer(folder, port=0)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as reply:
        assert reply.headers["Refresh"] == "30"
        return reply.read().decode()


def test_the_report_follows_the_run(served):
    folder, address = served
    first = get(address)
    assert "grpo_ao run report" in first
    assert get(address) == first
    assert "Look." not in first
    alert = {"step": 40, "alert": "kl_explodes", "message": "Look."}
    append_jsonl(folder / "metrics.jsonl", [alert])
    assert "Look." in get(address + "?kind=open")


@pytest.mark.parametrize(
    ("path", "headers", "code"), [("other", {}, 404), ("", {"Host": "example.com"}, 403)]
)
def test_nothing_else_is_served_and_to_no_other_name(served, path, headers, code):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(served[1] + path, **headers)
    assert caught.value.code == code


def test_what_cannot_be_served_is_one_sentence(served, tmp_path_factory):
    folder, address = served
    with pytest.raises(UserError, match="there is no run in"):
        ReportServer(tmp_path_factory.mktemp("empty"), 0)
    with pytest.raises(UserError, match=r"cannot be listened at .*: give another --port"):
        ReportServer(folder, int(address.rstrip("/").split(":")[-1]))
