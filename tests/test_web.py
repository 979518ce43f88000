"""The web page's server: whom it answers, what it refuses, what it shows; and real metrics over a router's restart."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.config import load_settings
from router.errors import Refusal
from router.model import Attachment, AttachmentKey, Endpoint
from router.observe.trace.steps import StepKind, TraceRequest, TraceStep
from router.web import pages
from router.web.app import MOST_BODY_BYTES, MOST_TRACES, App
from router.web.pages import _busiest
from router.web.server import MOST_CONNECTIONS, MOST_HEADER_BYTES, WebServer
from shim.answers import Tally
from shim.client import Client
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from tests.accounts import eventually
from tests.control_daemon import MemoryDaemon
from tests.engine_rig import Rig

LOCALHOST = ip_address("127.0.0.1")
STATIC = Path(pages.__file__).parent / "static"
POD = AttachmentKey("pod", "eth0")
EVIL = "<img src=x onerror=alert(1)>\"&'</script>"


class Tracer:
    """Tells what it was asked, and waits if it is to."""

    def __init__(self) -> None:
        self.asked: list[TraceRequest] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def trace(self, request: TraceRequest) -> Iterator[TraceStep]:
        self.asked.append(request)
        yield TraceStep(StepKind.DECISION, node="here")
        self.go_on.wait(20)
        yield TraceStep(StepKind.CONCLUSION, text=EVIL, reached=True)


class Site:
    """A page's server over a daemon in memory, and what it answers."""

    def __init__(self, rig: Rig) -> None:
        self.daemon = MemoryDaemon(rig.engine)
        self.tracer = Tracer()
        self.daemon.observatory._tracer = self.tracer  # type: ignore[assignment]
        self.daemon.held[POD] = Attachment(
            POD, "/run/netns/pod", (ip_interface("10.1.1.2/24"),), 1452, (("name", EVIL), ("namespace", "ns"))
        )
        self.server = WebServer(App(self.daemon, ("podwire.example",)), Endpoint(LOCALHOST, 0))
        self.server.start()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        status, _, body = self.ask("GET", path, None, headers)
        return status, body

    def trace(self, body: Any, **headers: str) -> tuple[int, bytes]:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.server.port}"}
        status, _, answer = self.ask("POST", "/api/trace", sent, own | headers)
        return status, answer


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    with Rig("python") as rig:
        made = Site(rig)
        try:
            yield made
        finally:
            made.server.stop()
            made.daemon.observatory.close()


@pytest.fixture
def site(shared_site: Site) -> Site:
    shared_site.tracer.asked.clear()
    return shared_site


@pytest.mark.parametrize("path", ["/", "/trace", "/pod/x", "/pod/a/b%3Cc%3E"])
def test_every_page_is_a_file_and_nothing_of_the_request_stands_in_it(site: Site, path: str) -> None:
    status, headers, body = site.ask("GET", path)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert body == (STATIC / "page.html").read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers


def test_the_page_is_small_and_brings_all_it_needs(site: Site) -> None:
    files = list(STATIC.iterdir())
    assert sum(file.stat().st_size for file in files) < 40_000
    for file in files:
        status, _, body = site.ask("GET", f"/static/{file.name}")
        assert (status, body) == (200, file.read_bytes())
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert dangerous not in text


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:9081", "192.0.2.7", "podwire.example:9081", "Podwire.Example"],
)
def test_a_name_of_ours_is_answered(site: Site, host: str) -> None:
    assert site.get("/api/cluster.json", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "podwire.example.evil", "", "[", "x@y", "127.0.0.1@evil", "0x7f.1"],
)  # fmt: skip
def test_a_name_of_somebody_else_is_not(site: Site, host: str) -> None:
    for path in ("/", "/metrics", "/api/cluster.json", "/static/app.js"):
        status, body = site.get(path, Host=host)
        assert status in (400, 421)
        assert b"podwire_" not in body
    assert site.trace({"src": "a", "dst": "b"}, Host=host)[0] in (400, 421)
    assert not site.tracer.asked


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405), ("PUT", "/api/cluster.json", 405), ("DELETE", "/pod/x", 405), ("GET", "/api/trace", 405),
        ("HEAD", "/", 405), ("OPTIONS", "/api/trace", 405), ("TRACE", "/", 405),
        ("GET", "/nothing", 404), ("GET", "/static/", 404), ("GET", "/static/../app.py", 404),
        ("GET", "/static/..%2fapp.py", 404), ("GET", "/static/%2e%2e/app.py", 404), ("GET", "/%ff%fe", 404),
        ("GET", "/api/pod.json", 404), ("GET", "/api/pod.json?name=nobody", 404), ("GET", "/api/pod.json?" + "&".join("a=b" for _ in range(99)), 400),
    ],
)  # fmt: skip
def test_what_is_not_there_or_not_allowed(site: Site, method: str, path: str, status: int) -> None:
    answered, headers, body = site.ask(method, path)
    assert answered == status
    assert headers["Content-Security-Policy"]
    assert b"Traceback" not in body


def test_the_cluster_as_json(site: Site) -> None:
    status, headers, body = site.ask("GET", "/api/cluster.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    found = json.loads(body)
    assert found["node"]["name"] == "here"
    assert found["node"]["table_error"]
    (peer,) = found["peers"]
    assert (peer["name"], peer["state"], peer["dropped"]) == ("there", "down", 0)
    assert peer["why"] == "it has not answered for 12 s"
    assert found["peers_by_state"] == {"down": 1}
    (pod,) = found["pods"]
    assert (pod["name"], pod["link"], pod["addresses"], pod["dropped"]) == (f"ns/{EVIL}", f"ns/{EVIL}", ["10.1.1.2"], 3)


def test_a_pod_as_json(site: Site) -> None:
    for name in ("pod", "pod/eth0", "10.1.1.2", f"ns/{EVIL}"):
        query = quote(name)
        status, body = site.get(f"/api/pod.json?name={query}")
        assert status == 200
        found = json.loads(body)
        assert found["name"] == f"ns/{EVIL}"
        assert found["fates"]["dropped"] == {"no_route": 2, "spoofed_source": 1}
        assert found["kernel_drops"] == 6
        assert found["labels"]["name"] == EVIL
    assert json.loads(site.get("/api/pod.json?name=node")[1])["is_node"]


def test_only_the_down_and_the_busiest_are_shown_when_there_are_many() -> None:
    def row(i: int) -> dict[str, Any]:
        rate = {"dropped_packets": float(i == 5), "received_bytes": float(i), "sent_bytes": 0.0}
        return {"name": f"n{i:03}", "state": "down" if i == 3 else "up", "rate": rate}

    shown = [each["name"] for each in _busiest([row(i) for i in range(200)], 60)]
    assert shown == sorted(["n003", "n005", *(f"n{i:03}" for i in range(142, 200))])
    crowd = [row(i) | {"state": "down" if i < 150 else "up"} for i in range(200)]
    shown = [each["name"] for each in _busiest(crowd, 60)]
    assert {"n005", *(f"n{i:03}" for i in range(171, 200))} <= set(shown), "the busiest are not crowded out"
    assert sum(each["state"] == "down" for each in crowd if each["name"] in shown) == 31
    assert len(_busiest([row(i) for i in range(60)], 60)) == 60


def test_metrics_in_both_formats(site: Site) -> None:
    status, headers, body = site.ask("GET", "/metrics")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert {family.name for family in text_string_to_metric_families(body.decode())} >= {"podwire_dropped_packets"}
    _, headers, body = site.ask("GET", "/metrics", None, {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


# Traces


def test_a_trace_streams_its_steps(site: Site) -> None:
    site.tracer.go_on.clear()
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=20)
    own = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{site.server.port}"}
    sent = {"src": "a", "dst": "b", "protocol": "tcp", "dst_port": 80, "dont_fragment": True}
    connection.request("POST", "/api/trace", json.dumps(sent), own)
    answer = connection.getresponse()
    assert json.loads(answer.readline())["kind"] == "decision"  # while the rest is not known yet
    site.tracer.go_on.set()
    last = json.loads(answer.readline())
    assert (last["kind"], last["text"], last["reached"]) == ("conclusion", EVIL, True)
    connection.close()
    assert site.tracer.asked == [TraceRequest("a", "b", "tcp", 80, 0, True)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_trace_is_only_for_our_own_page(site: Site, headers: dict[str, str], status: int) -> None:
    assert site.trace({"src": "a", "dst": "b"}, **headers)[0] == status
    assert not site.tracer.asked


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 4000, {"src": "a"}, {"src": 1, "dst": "b"}, {"src": "a", "dst": None},
        {"src": "a", "dst": "b", "dst_port": "80"}, {"src": "a", "dst": "b", "dry_run": 1}, {"src": "a", "dst": "b", "dst_port": True},
        {"src": "a", "dst": "b", "shell": "x"}, {"src": "a", "dst": "b", "dst_port": 1.5},
    ],
)  # fmt: skip
def test_a_trace_of_nonsense_is_refused_in_words(site: Site, body: Any) -> None:
    status, answer = site.trace(body)
    assert status == 400
    assert json.loads(answer)["error"]
    assert not site.tracer.asked


def test_only_some_traces_run_at_once_and_pages_are_served_meanwhile(site: Site) -> None:
    site.tracer.go_on.clear()
    waiting = [threading.Thread(target=site.trace, args=({"src": "a", "dst": "b"},)) for _ in range(MOST_TRACES)]
    for thread in waiting:
        thread.start()
    eventually(lambda: len(site.tracer.asked) == MOST_TRACES, what="the traces began")
    assert site.trace({"src": "a", "dst": "b"})[0] == 429
    assert site.get("/")[0] == 200
    site.tracer.go_on.set()
    for thread in waiting:
        thread.join()
    assert site.trace({"src": "a", "dst": "b"})[0] == 200


# The server


def test_too_much_is_refused_before_it_is_read(site: Site) -> None:
    assert site.trace(b"{" + b" " * MOST_BODY_BYTES + b"}")[0] == 413
    with socket.create_connection(("127.0.0.1", site.server.port), 20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (MOST_HEADER_BYTES + 100))
        assert b" 431 " in raw.recv(200)
    for nonsense in (
        b"\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n",
        b"\r\n" * 50,
    ):
        with socket.create_connection(("127.0.0.1", site.server.port), 20) as raw:
            raw.sendall(nonsense)
            raw.shutdown(socket.SHUT_WR)
            assert b"200 OK" not in raw.recv(4096)
    assert site.get("/")[0] == 200


def test_idle_connections_keep_no_thread(site: Site) -> None:
    idle = [socket.create_connection(("127.0.0.1", site.server.port), 20) for _ in range(MOST_CONNECTIONS // 2)]
    try:
        for raw in idle:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert site.get("/")[0] == 200
        assert sum(thread.name.startswith(("waitress", "web")) for thread in threading.enumerate()) <= 6
    finally:
        for raw in idle:
            raw.close()


def test_a_bug_is_an_answer_and_a_line_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    site.daemon.on_status = fail
    try:
        app = App(site.daemon)
        said: list[str] = []
        environ = {"HTTP_HOST": "localhost", "REQUEST_METHOD": "GET", "PATH_INFO": "/api/cluster.json"}
        body = b"".join(app(environ, lambda status, headers: said.append(status)))
    finally:
        site.daemon.on_status = lambda: None
    assert said == ["500 Internal Server Error"]
    assert b"secret" not in body
    assert "a page failed" in caplog.text


def test_a_server_ends_with_all_its_threads_and_its_port_is_free_again(site: Site) -> None:
    before = set(threading.enumerate())
    server = WebServer(App(site.daemon), Endpoint(LOCALHOST, 0))
    server.start()
    with pytest.raises(Refusal, match=r"--web-listen 127.0.0.1:\d+: cannot listen there: Address already in use"):
        WebServer(App(site.daemon), Endpoint(LOCALHOST, server.port))
    with socket.create_connection(("127.0.0.1", server.port), 20) as raw:
        server.stop()
        server.stop()
        with suppress(ConnectionResetError):  # then it was never accepted
            assert raw.recv(10) == b""
    eventually(lambda: set(threading.enumerate()) <= before, what="its threads ended")
    WebServer(App(site.daemon), Endpoint(LOCALHOST, server.port)).stop()


# Settings


def settings(**flags: object) -> Any:
    return load_settings({"node": "a", "network": ("10.32.0.0/12",), "underlay": "192.0.2.1", **flags}, {}, None).web


def test_it_is_off_unless_asked_for_and_stays_at_home_unless_told() -> None:
    assert settings() is None
    found = settings(**{"web.listen": "127.0.0.1:9081"})
    assert (str(found.listen), found.remote, found.hosts) == ("127.0.0.1:9081", False, ())
    assert str(settings(**{"web.listen": "[::1]:9081"}).listen) == "[::1]:9081"
    with pytest.raises(Refusal, match="192.0.2.1:9081 is no loopback address.*--web-remote"):
        settings(**{"web.listen": "192.0.2.1:9081"})
    found = settings(**{"web.listen": "192.0.2.1:9081", "web.remote": True, "web.hosts": ("Node-A.example",)})
    assert (found.remote, found.hosts) == (True, ("node-a.example",))
    for flags, words in (
        ({"web.remote": True}, "web.listen is not set"),
        ({"web.listen": "127.0.0.1"}, "needs a port"),
        ({"web.listen": "127.0.0.1:9081", "web.hosts": ("a:80",)}, "must be a name of a host"),
    ):
        with pytest.raises(Refusal, match=words):
            settings(**flags)


# A real router


@pytest.fixture(scope="module")
def web_lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=2, pods=1, router_args=("--web-listen", "127.0.0.1:9081", "--log-format", "json"))


def asked(node: LabNode, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", 9081, timeout=20)
    connection.sock = netns.open_socket(node.netns_path, socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(20)
        connection.sock.connect(("127.0.0.1", 9081))
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()
    finally:
        connection.close()


def measured(node: LabNode) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(asked(node, "/metrics").decode())
        for sample in family.samples
    }


def ping(pod: LabPod, address: object, count: int) -> None:
    pod.run(["ping", "-n", "-q", f"-c{count}", "-i0.02", "-W1", str(address)], timeout=30)


@pytest.mark.netns
def test_metrics_are_the_counters_also_after_a_restart(web_lab: Lab) -> None:
    near, far = web_lab.pods
    node = near.node
    nowhere = near.addresses[0] + 200

    def of(name: str, **labels: str) -> float:
        return measured(node)["podwire_" + name, tuple(sorted(labels.items()))]

    with node.client() as client:
        pod_names = {each.key.sandbox_id: each.labels for each in client.attachments()}
    labels = pod_names[near.sandbox_id]
    who = {"pod": f"{labels['namespace']}/{labels['name']}", "sandbox_id": near.sandbox_id, "ifname": "eth0"}
    peer = {"node": far.node.name, "endpoint": f"{web_lab.nodes[1].endpoint.removesuffix(':6081')}:6081"}

    def agree() -> bool:
        with node.client() as client:
            tally = counted(client, near)
        found = measured(node)
        return bool(tally.received_packets) and all(
            found[f"podwire_attachment_{field}_total", tuple(sorted(who.items()))] == getattr(tally, field)
            for field in (
                "received_packets",
                "received_bytes",
                "tunnelled_packets",
                "sent_packets",
                "delivered_packets",
            )
        )

    ping(near, far.addresses[0], 20)
    ping(near, nowhere, 3)
    eventually(agree, what="metrics agree with counters")
    before = of("attachment_tunnelled_packets_total", **who)
    epoch = next(dict(labels)["epoch"] for name, labels in measured(node) if name == "podwire_router_info")
    assert before >= 20
    assert of("attachment_dropped_packets_total", reason="no_attachment", **who) == 3
    assert of("dropped_packets_total", reason="no_attachment") >= 3
    eventually(lambda: of("peer_round_trip_seconds_count", **peer) > 0, what="round trips are counted")
    assert of("engine_batch_frames_count") > 0

    node.restart()
    found = measured(node)
    assert next(dict(labels)["epoch"] for name, labels in found if name == "podwire_router_info") != epoch
    assert of("attachment_tunnelled_packets_total", **who) < before
    ping(near, far.addresses[0], 5)
    eventually(agree, what="metrics agree with counters after the restart")
    assert 5 <= of("attachment_tunnelled_packets_total", **who) < before
    assert of("dropped_packets_total", reason="no_attachment") == 0


def counted(client: Client, pod: LabPod) -> Tally:
    return next(each.tally for each in client.counters().attachments if each.key.sandbox_id == pod.sandbox_id)


@pytest.mark.netns
def test_a_real_router_serves_its_page_and_logs_for_machines(web_lab: Lab) -> None:
    near, far = web_lab.pods
    found = json.loads(asked(near.node, "/api/cluster.json"))
    assert found["node"]["name"] == near.node.name
    assert [peer["name"] for peer in found["peers"]] == [far.node.name]
    assert json.loads(asked(near.node, f"/api/pod.json?name={near.sandbox_id}"))["sandbox_id"] == near.sandbox_id
    records = [json.loads(line) for line in near.node.log_path.read_text().splitlines() if line.startswith("{")]
    assert any("page and metrics at http://127.0.0.1:9081" in record["body"] for record in records)
    assert {record["resource"]["service.instance.id"] for record in records} == {near.node.name}
