"""The web page of real routers in headless Chromium: as a person uses it, and as somebody hostile would like to."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, eventually
from tests.conformance.browser import Browser

DOCS = Path(__file__).resolve().parents[2] / "docs"
PORT = 9081
HOME = f"http://127.0.0.1:{PORT}"
Picture = Callable[[str, int], None]
"""Takes one, of that name and height in pixels."""
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def web_lab() -> Iterator[Lab]:
    arguments = ("--web-listen", f"127.0.0.1:{PORT}")
    with Lab(nodes=4, pods=2, name=f"shop-{secrets.token_hex(2)}", router_args=arguments) as made:
        yield made
        assert_balanced(made)


@pytest.fixture(scope="module")
def traffic(web_lab: Lab) -> Iterator[None]:
    """Something to see: pings of several sizes from the first node's Pods."""
    first, second, *others = web_lab.pods
    pings = [
        source.popen(["ping", "-n", "-q", f"-i{every}", f"-s{size}", str(address)], stdout=subprocess.DEVNULL)
        for source, every, size, address in (
            (first, 0.02, 1200, others[0].addresses[0]),
            (first, 0.1, 200, others[2].addresses[1]),
            (second, 0.2, 56, others[4].addresses[0]),
        )
    ]
    yield
    for ping in pings:
        ping.terminate()
        ping.wait(10)


@pytest.fixture(scope="module")
def browser(web_lab: Lab, traffic: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(web_lab.nodes[0], tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def picture(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Picture:
    """Take a picture for docs/web.md; into the docs only when asked to."""

    def take(name: str, height: int) -> None:
        browser.resize(1280, height)
        folder = DOCS / "pictures" if request.config.getoption("--write-screenshots") else tmp_path
        folder.mkdir(exist_ok=True)
        browser.screenshot(folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 10_000

    return take


def ask(node: LabNode, port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.sock = netns.open_socket(node.netns_path, socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(20)
        connection.sock.connect(("127.0.0.1", port))
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def link_class(browser: Browser, peer: str) -> str:
    return str(
        browser.run(
            "const g = document.querySelector(`#map [data-peer='${arguments[0]}']`); return g && g.getAttribute('class')",
            peer,
        )
    )


def test_the_cluster_is_live(web_lab: Lab, browser: Browser, picture: Picture) -> None:
    node, dying = web_lab.nodes[0], web_lab.nodes[3]
    web_lab.pods[1].run(["ping", "-n", "-c3", "-i0.1", "-W1", str(web_lab.pods[0].addresses[0] + 200)], timeout=20)
    browser.open(HOME)
    browser.until("return document.querySelectorAll('#map .peer').length === 3", "the map has every peer")
    browser.until("return document.getElementById('live').className === 'on'", "the page is live")
    shown = browser.until(
        "return [...document.querySelectorAll('#map .rate')].some((t) => /→ [1-9][0-9.]* .bit/.test(t.textContent))",
        "rates on links",
    )
    assert shown
    for peer in web_lab.nodes[1:]:
        assert link_class(browser, peer.name) == "up"
    text = browser.text()
    for word in (node.name, "no attachment", *(pod.name for pod in web_lab.pods[:2])):
        assert word in text
    assert web_lab.pods[2].name not in text, "Pods of other nodes are not this one's"
    dying.kill9()
    try:
        browser.until(
            f"return document.querySelector(`#map [data-peer='{dying.name}']`).getAttribute('class') === 'down'",
            "a dead peer is seen",
        )
        assert "it has not answered for" in browser.text()
        browser.dark(False)
        browser.until(
            "return [...document.querySelectorAll('#map .rate')].filter((t) => /→ [1-9]/.test(t.textContent)).length >= 2",
            "rates",
        )
        picture("web-cluster", 1000)
        light = browser.run("return getComputedStyle(document.body).backgroundColor")
        browser.dark(True)
        assert browser.run("return getComputedStyle(document.body).backgroundColor") != light
        picture("web-cluster-dark", 1000)
        browser.dark(False)
    finally:
        dying.start()
    browser.until(
        f"return document.querySelector(`#map [data-peer='{dying.name}']`).getAttribute('class') === 'up'",
        "it is seen again",
    )


def test_a_pod_has_a_page_with_its_flows(web_lab: Lab, browser: Browser, picture: Picture) -> None:
    pod = web_lab.pods[0]
    browser.open(HOME)
    browser.until("return document.querySelector('td.name a')", "a Pod to click")
    browser.run(
        "[...document.querySelectorAll('td.name a')].find((a) => a.textContent.endsWith(arguments[0])).click()",
        pod.name,
    )
    browser.until("return location.pathname.startsWith('/pod/') && document.querySelector('h1')", "the Pod's page")
    target = str(web_lab.pods[2].addresses[0])
    browser.until("return document.body.innerText.includes(arguments[0])", "a flow", f"→ {target} type 8")
    text = browser.text()
    for word in (str(pod.addresses[0]), pod.sandbox_id, "tunnel", "sent to other nodes"):
        assert word in text
    picture("web-pod", 820)
    browser.open(f"{HOME}/pod/nobody")
    browser.until("return document.body.innerText.includes('no Pod')", "a word for who is not there")


def trace(browser: Browser, src: str, dst: str) -> str:
    browser.open(f"{HOME}/trace?src={src}")
    browser.until("return document.querySelector('form')", "the form")
    browser.run(
        "const f = document.querySelector('form'); f.elements.dst.value = arguments[0]; f.requestSubmit();", dst
    )
    return str(browser.until("return document.querySelector('#conclusion')?.innerText", "a conclusion"))


def test_a_trace_is_asked_and_told_step_by_step(web_lab: Lab, browser: Browser, picture: Picture) -> None:
    near, far = web_lab.pods[0], web_lab.pods[2]
    assert trace(browser, near.name, str(far.addresses[0]))
    assert "good" in browser.run("return document.querySelector('#conclusion').className")
    text = browser.text()
    assert "What routers decide" in text
    assert far.node.name in text
    picture("web-trace", 760)
    trace(browser, near.name, str(near.addresses[0] + 200))
    assert "good" not in browser.run("return document.querySelector('#conclusion').className")
    browser.open(f"{HOME}/trace?src=nobody")
    browser.until("return document.querySelector('form')", "the form")
    browser.run("const f = document.querySelector('form'); f.elements.dst.value = '10.0.0.1'; f.requestSubmit();")
    browser.until("return document.querySelector('.notice')", "a refusal in words")


def test_names_and_labels_are_only_ever_text(web_lab: Lab, browser: Browser) -> None:
    node = web_lab.nodes[0]
    name = f"evil-{secrets.token_hex(2)}"
    netns.create(name)
    try:
        with node.client() as client:
            client.attach(name, "eth0", str(netns.path_of(name)), labels={"name": EVIL, "zone": EVIL})
        browser.complaints()
        browser.open(HOME)
        browser.until("return document.body.innerText.includes(arguments[0])", "the name as it is", EVIL)
        browser.run("[...document.querySelectorAll('td.name a')].find((a) => a.textContent.includes('<img')).click()")
        browser.until(
            "return document.querySelector('dl')?.innerText.includes(arguments[0])", "the label as it is", EVIL
        )
        assert browser.run("return document.images.length") == 1, "the page's own"
        assert "taken" not in browser.run("return document.title").replace(EVIL, "")
        assert browser.complaints() == []
    finally:
        with node.client() as client:
            client.detach(name, "eth0")
        netns.delete(name)


def test_nothing_comes_from_elsewhere_and_a_script_of_others_does_not_run(web_lab: Lab, browser: Browser) -> None:
    browser.open(HOME)
    browser.until("return document.querySelector('#map')", "the map")
    loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(each.startswith(f"{HOME}/") for each in loaded)
    assert browser.complaints() == []
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
    )
    assert browser.run("return window.ran === undefined")
    assert any("Content Security Policy" in each for each in browser.complaints())


def test_another_page_cannot_ask_for_a_trace(web_lab: Lab, browser: Browser, tmp_path: Path) -> None:
    """A page of another origin, in the same browser: as when a person who runs it is lured to one."""
    node = web_lab.nodes[0]
    other = node.popen(["/usr/bin/python3", "-m", "http.server", "8099", "--bind", "127.0.0.1"], cwd=tmp_path, stderr=subprocess.DEVNULL)  # fmt: skip
    (tmp_path / "index.html").write_text("<title>lure</title>")
    try:
        eventually(lambda: serves(node), what="the other page is there")
        browser.open("http://127.0.0.1:8099/")
        script = """
            const [url, type] = arguments;
            return fetch(url, {method: 'POST', mode: type === 'text/plain' ? 'no-cors' : 'cors', headers: {'Content-Type': type},
                body: JSON.stringify({src: 'node', dst: '10.42.1.2', dry_run: true})}).then((a) => a.type + a.status, (e) => 'refused');"""
        assert browser.run(script, f"{HOME}/api/trace", "application/json") == "refused"
        assert browser.run(script, f"{HOME}/api/trace", "text/plain") == "refused"
        assert (
            browser.run("return fetch(arguments[0]).then(() => 'read', () => 'refused')", f"{HOME}/api/cluster.json")
            == "refused"
        )
    finally:
        other.terminate()
        other.wait(10)


def serves(node: LabNode) -> bool:
    try:
        return b"lure" in ask(node, 8099, "/")
    except OSError:
        return False


def test_of_many_peers_the_down_and_the_busiest_are_shown(web_lab: Lab, browser: Browser) -> None:
    """Two hundred more rows in the table of one node: nobody is behind them."""
    node = web_lab.nodes[0]
    before = node.subnets_path.read_text()
    rows = "".join(
        f'\n[[node]]\nname = "more-{i}"\nendpoint = "192.168.64.{i + 50}"\nsubnets = ["10.42.{i + 50}.0/24"]\n'
        for i in range(200)
    )
    try:
        node.subnets_path.write_text(before + rows)
        eventually(lambda: json.loads(ask(node, PORT, "/api/cluster.json"))["peers_total"] == 203, 20, "the table")
        browser.open(HOME)
        browser.until("return document.querySelectorAll('#map .peer').length === 60", "sixty are drawn")
        assert "60 that are busiest or down" in browser.text()
        for peer in web_lab.nodes[1:]:  # the busiest are not crowded out
            assert link_class(browser, peer.name) == "up"
        assert len(ask(node, PORT, "/api/cluster.json")) < 100_000
    finally:
        node.subnets_path.write_text(before)
        eventually(
            lambda: json.loads(ask(node, PORT, "/api/cluster.json"))["peers_total"] == 3, 20, "the table as it was"
        )


def test_it_says_when_the_router_is_gone(web_lab: Lab, browser: Browser) -> None:
    browser.open(HOME)
    browser.until("return document.getElementById('live').className === 'on'", "the page is live")
    web_lab.nodes[0].stop()
    try:
        browser.until("return document.getElementById('live').textContent === 'no answer'", "no answer")
        assert browser.run("return document.querySelectorAll('#map .peer').length") == 3, "what was last seen stays"
    finally:
        web_lab.nodes[0].start()
    browser.until("return document.getElementById('live').className === 'on'", "it goes on by itself")
