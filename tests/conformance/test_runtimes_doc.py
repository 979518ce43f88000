"""docs/runtimes.md says what works: its commands are run, on a node with the real containerd and podman."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance import images, private_node

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/runtimes.md").read_text()
IMAGE = "registry.example/busybox:latest"


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What it said when all of it was run, with the lines for containerd's configuration pasted."""
    files = {"bin/busybox": images.busybox()}
    image = images.image_tar(IMAGE, files, ("sh", "sleep", "ip", "httpd"))
    (lines,) = blocks("toml")
    paste = f"podwire install --json\ncat >>/etc/containerd/config.toml <<'EOF'\n{lines}EOF\n"
    script = "".join(
        f"echo '=== {number}'\n{paste if 'systemctl' in block else ''}{block}"
        for number, block in enumerate(blocks("sh"))
    )
    # There is no second machine here, and the doctor would say so.
    script = re.sub(r"(?m)^podwire subnets set beta .*\n", "", script)
    done = private_node.run(script, tmp_path_factory.mktemp("node"), image)
    assert done.returncode == 0, done.stderr
    return done


def said(ran: subprocess.CompletedProcess[str], words: str) -> str:
    """Return what the block with these words in it said."""
    (number,) = (number for number, block in enumerate(blocks("sh")) if words in block)
    _, _, after = ran.stdout.partition(f"=== {number}\n")
    return after.partition("=== ")[0]


@pytest.mark.netns
def test_each_command_succeeds(ran: subprocess.CompletedProcess[str]) -> None:
    assert len(blocks("sh")) == ran.stdout.count("=== ")


@pytest.mark.netns
@pytest.mark.parametrize("words", ["ctr run", "podman run -d", "podman-default-network", "io.podwire.attach=true"])
def test_the_container_has_addresses_of_the_node(ran: subprocess.CompletedProcess[str], words: str) -> None:
    found = said(ran, words)
    assert re.search(r"inet 10\.32\.1\.\d+/32", found), (found, ran.stderr)
    assert re.search(r"inet6 fd00:32:0:1::[0-9a-f]+/128", found), found


@pytest.mark.netns
def test_the_router_knows_whose_they_are(ran: subprocess.CompletedProcess[str]) -> None:
    assert "containerd:default" in said(ran, "ctr run")
    assert "cni:podwire" in said(ran, "podman run -d")
    assert "8080→80/tcp" in said(ran, "podman run -d")


@pytest.mark.netns
def test_the_doctor_finds_nothing_broken(ran: subprocess.CompletedProcess[str]) -> None:
    assert "0 broken" in said(ran, "podwire doctor")


@pytest.mark.netns
def test_the_lines_for_containerd_are_those_that_install_shows(ran: subprocess.CompletedProcess[str]) -> None:
    before, _, after = said(ran, "ctr run").partition("\n}\n")
    assert after
    (paste,) = json.loads(before + "}")["pastes"]
    assert [paste["text"].strip()] == [block.strip() for block in blocks("toml")]
