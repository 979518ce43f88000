"""`podwire install` as people run it, on trees that stand for a node: what it writes, refuses, takes back and undoes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shim import launchers
from shim.install import containerd, manifest
from shim.install.root import Root

ROOT = Path(__file__).resolve().parent.parent
CONFLIST = "/etc/cni/net.d/10-podwire.conflist"
HOOKS = "/usr/share/containers/oci/hooks.d"
DEBIAN_CONFIG = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
"""
CONFIG_3 = """\
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
"""


class Tree:
    """A directory that stands for a node, and the command run on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def at(self, path: str) -> Path:
        return self.directory / path.lstrip("/")

    def put(self, path: str, content: str, mode: int = 0o644) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(content)
        self.at(path).chmod(mode)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "router", "install", "--root", str(self.directory), *arguments]

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json").stdout)
        return found

    def changes(self, *arguments: str) -> dict[str, str]:
        return {each["path"]: each["change"] for each in self.json(*arguments)["changes"]}

    def picture(self) -> dict[str, tuple[int, bytes]]:
        """Return all there is: mode and content of files, modes of directories."""
        found = {}
        for path in sorted(self.directory.rglob("*")):
            content = path.read_bytes() if path.is_file() else b"/"
            found[str(path.relative_to(self.directory))] = (stat.S_IMODE(path.lstat().st_mode), content)
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A node with Debian's containerd and podman."""
    made = Tree(tmp_path / "node")
    for program in ("containerd", "containerd-shim-runc-v2", "podman"):
        made.put(f"/usr/bin/{program}", "", 0o755)
    made.put("/etc/containerd/config.toml", DEBIAN_CONFIG)
    made.at("/usr/lib/cni").mkdir(parents=True)
    return made


# What it writes.


def test_a_dry_run_shows_all_and_changes_nothing(tree: Tree) -> None:
    before = tree.picture()
    shown = tree.run("--dry-run").stdout
    assert f"new       {CONFLIST}" in shown
    assert "nothing has changed" in shown
    assert tree.picture() == before


def test_it_writes_what_the_runtimes_need(tree: Tree) -> None:
    assert tree.changes("--yes") == {
        "/usr/lib/cni/podwire-cni": "new",
        "/usr/local/bin/containerd-shim-podwire-v2": "new",
        CONFLIST: "new",
        "/usr/local/bin/podwire-oci-hook": "new",
        f"{HOOKS}/podwire-createruntime.json": "new",
        f"{HOOKS}/podwire-poststop.json": "new",
    }
    assert json.loads(tree.at(CONFLIST).read_text()) == {
        "cniVersion": "1.0.0",
        "name": "podwire",
        "plugins": [
            {
                "type": "podwire-cni",
                "socket": "/run/podwire/router.sock",
                "capabilities": {"portMappings": True, "bandwidth": True, "ips": True, "mac": True, "dns": True},
            }
        ],
    }
    for stage in ("createRuntime", "poststop"):
        assert json.loads(tree.at(f"{HOOKS}/podwire-{stage.lower()}.json").read_text()) == {
            "version": "1.0.0",
            "hook": {"path": "/usr/local/bin/podwire-oci-hook", "args": ["podwire-oci-hook", stage]},
            "when": {"annotations": {"^io\\.podwire\\.attach$": "^true$"}},
            "stages": [stage],
        }
    modes = {path: mode for path, (mode, _) in tree.picture().items()}
    assert modes["usr/lib/cni/podwire-cni"] == 0o755
    assert modes[CONFLIST.lstrip("/")] == 0o644
    assert modes[manifest.PATH.lstrip("/")] == 0o600


@pytest.mark.parametrize("client", ["python", "native"])
def test_what_it_wrote_runs_and_is_the_plugin_asked_for(tree: Tree, client: str) -> None:
    if client == "native":
        need_native()
    answer = tree.json("containerd", "--yes", "--cni-client", client)
    assert answer["cni_client"] == client
    assert tree.at("/usr/lib/cni/podwire-cni").read_bytes().startswith({"python": b"#!", "native": b"\x7fELF"}[client])
    environment = {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(
        [tree.at("/usr/lib/cni/podwire-cni")], input='{"cniVersion": "1.0.0"}', env=environment, text=True,
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    assert "1.0.0" in json.loads(done.stdout)["supportedVersions"]


def need_native() -> None:
    if launchers.built_client() is None:
        pytest.skip("the compiled podwire-cni is not built: scripts/build-native.sh --require")


def test_the_compiled_plugin_is_taken_where_it_is_built_and_named(tree: Tree) -> None:
    need_native()
    answer = tree.json("--dry-run")
    assert answer["cni_client"] == "native"
    (note,) = (each["note"] for each in answer["changes"] if each["path"].endswith("/podwire-cni"))
    assert note == "the CNI plugin, for containerd: compiled"


def test_another_plugin_replaces_the_first_and_goes_with_it(tree: Tree) -> None:
    need_native()
    before = tree.picture()
    tree.run("--yes", "--cni-client", "python")
    shown = tree.run("--yes", "--cni-client", "native").stdout
    assert re.search(
        r"changed +/usr/lib/cni/podwire-cni .*: compiled\)\n +a script of \d+ bytes.* → a program of", shown
    )
    assert all(line.isprintable() for line in shown.splitlines())
    tree.run("--yes", "--remove")
    assert tree.picture() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is not built: there is no"), (b"\x7fELF", "does not start"), (b"#!/bin/sh\nexit 3\n", "exit status 3")],
)
def test_a_compiled_plugin_that_cannot_be_is_refused(
    copied: Path, tmp_path: Path, content: bytes | None, why: str
) -> None:
    """In a package without it, auto says so and takes the one in Python; a broken one is never passed over."""
    built = copied / "shim/cni/native/podwire-cni"
    built.unlink(missing_ok=True)
    if content is not None:
        built.write_bytes(content)
        built.chmod(0o755)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n"
        "from shim import launchers; print(launchers.choose_client(sys.argv[2]))"
    )

    def choose(client: str) -> str:
        command = [sys.executable, "-I", "-c", code, str(copied), client]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert choose("python") == "python"
    assert why in choose("native")
    assert "scripts/build-native.sh" in choose("native")
    assert choose("auto") == "python" if content is None else why in choose("auto")


def test_done_again_it_changes_nothing(tree: Tree) -> None:
    tree.run("--yes")
    before = {path: path.stat().st_mtime_ns for path in tree.directory.rglob("*")}
    answer = tree.json("--yes")
    assert {each["change"] for each in answer["changes"]} == {"same"}
    assert answer["done"] is False
    assert {path: path.stat().st_mtime_ns for path in tree.directory.rglob("*")} == before
    assert "Nothing to do" in tree.run().stdout  # and asks nothing


def test_wishes_are_in_what_it_writes(tree: Tree) -> None:
    tree.run(
        "--yes", "--network-name", "pods", "--socket", "/run/other/r.sock", "--mtu", "1400", "--podman-default-network"
    )
    document = json.loads(tree.at(CONFLIST).read_text())
    assert document["name"] == "pods"
    assert document["plugins"][0] | {"socket": "/run/other/r.sock", "mtu": 1400} == document["plugins"][0]
    hook = json.loads(tree.at(f"{HOOKS}/podwire-poststop.json").read_text())["hook"]
    assert hook["env"] == ["PODWIRE_SOCKET=/run/other/r.sock"]
    assert 'default_network = "pods"' in tree.at("/etc/containers/containers.conf.d/podwire.conf").read_text()


def test_another_wish_changes_only_what_it_is_about_and_shows_how(tree: Tree) -> None:
    tree.run("--yes")
    shown = tree.run("--yes", "--mtu", "1300").stdout
    assert f"changed   {CONFLIST}" in shown
    assert '+      "mtu": 1300,' in shown
    assert set(tree.changes("--yes", "--mtu", "1300").values()) == {"same"}
    tree.run("--yes", "--remove")
    assert not tree.at(CONFLIST).exists()


def test_configured_directories_are_used(tree: Tree) -> None:
    tree.put(
        "/etc/containerd/config.toml", DEBIAN_CONFIG.replace("/usr/lib/cni", "/x/bin").replace("/etc/cni", "/x/cni")
    )
    tree.put(
        "/etc/containers/containers.conf", '[engine]\nhooks_dir = ["/x/hooks"]\n[network]\ncni_plugin_dirs = ["/y"]\n'
    )
    assert {
        "/x/bin/podwire-cni",
        "/x/cni/net.d/10-podwire.conflist",
        "/x/hooks/podwire-poststop.json",
        "/y/podwire-cni",
    } <= tree.changes("--dry-run").keys()


def test_only_what_is_named_or_found(tree: Tree) -> None:
    assert not any("hook" in path for path in tree.changes("--dry-run", "containerd"))
    tree.at("/usr/bin/containerd").unlink()
    tree.at("/etc/containerd/config.toml").unlink()
    assert not any("containerd" in path for path in tree.changes("--dry-run"))
    assert any("containerd" in path for path in tree.changes("--dry-run", "containerd"))


def test_a_network_that_is_read_first_is_told(tree: Tree) -> None:
    tree.put("/etc/cni/net.d/05-bridge.conf", "{}")
    (warning,) = (each for each in tree.json("--dry-run")["warnings"] if "05-bridge" in each)
    assert "is read before 10-podwire.conflist" in warning


# containerd's configuration, which is not ours.


def test_the_handler_is_shown_for_version_2_and_the_file_left(tree: Tree) -> None:
    before = tree.at("/etc/containerd/config.toml").read_text()
    (paste,) = tree.json("--yes")["pastes"]
    assert paste["path"] == "/etc/containerd/config.toml"
    assert tree.at("/etc/containerd/config.toml").read_text() == before
    tree.put("/etc/containerd/config.toml", before + paste["text"])
    assert tree.json("--yes")["pastes"] == []


def test_the_real_containerd_takes_the_lines_and_keeps_its_own(tree: Tree, tmp_path: Path) -> None:
    """1.6 forgets its built-in runc as soon as any runtime is configured."""
    program = shutil.which("containerd")
    if program is None:
        pytest.skip("no containerd here: scripts/setup.sh installs it")
    (paste,) = tree.json("--dry-run")["pastes"]
    config = tmp_path / "config.toml"
    config.write_text(DEBIAN_CONFIG + paste["text"])
    dump = subprocess.run(
        [program, "--config", config, "config", "dump"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    config.write_text(dump)
    found = containerd.find(Root(), str(config))
    assert found is not None
    assert found.bin_dirs == ("/usr/lib/cni",)
    assert found.handlers == {"runc": "io.containerd.runc.v2", "podwire": "io.containerd.podwire.v2"}


def test_version_3_gets_a_file_where_it_imports_them(tree: Tree) -> None:
    tree.put("/etc/containerd/config.toml", CONFIG_3)
    answer = tree.json("--yes")
    assert answer["pastes"] == []
    drop_in = tree.at("/etc/containerd/conf.d/podwire.toml").read_text()
    assert "version = 3\n" in drop_in
    assert '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.podwire]' in drop_in
    found = containerd.find(Root(tree.directory))
    assert found is not None
    assert found.handlers == {"podwire": "io.containerd.podwire.v2"}
    assert found.bin_dirs == ("/opt/cni/bin",)


def test_a_file_that_a_version_2_imports_replaces_its_settings(tree: Tree) -> None:
    """As containerd 1.x has it (its issue 5837): so ours is no file there."""
    tree.put("/etc/containerd/config.toml", f'imports = ["conf.d/*.toml"]\n{DEBIAN_CONFIG}')
    tree.put("/etc/containerd/conf.d/a.toml", '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/x"\n')
    found = containerd.find(Root(tree.directory))
    assert found is not None
    assert found.bin_dirs == ("/opt/cni/bin",)
    assert found.drop_in == ""


# What it refuses, with nothing changed.


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--network-name", "a b"), "'a b' is no network name"),
        (("--socket", "run/x"), "is no absolute path"),
        (("--mtu", "100"), "an MTU of 100 bytes cannot be"),
        (("containerd", "--podman-default-network"), "is for podman"),
        ((), "nobody can be asked here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tree: Tree, arguments: tuple[str, ...], why: str) -> None:
    before = tree.picture()
    done = tree.run(*arguments, status=1)
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert tree.picture() == before


def test_a_node_without_a_runtime_is_refused(tmp_path: Path) -> None:
    assert "neither containerd nor podman" in Tree(tmp_path).run("--yes", status=1).stderr


def test_a_configuration_that_is_no_toml_is_refused(tree: Tree) -> None:
    tree.put("/etc/containerd/config.toml", "version = \n")
    assert "/etc/containerd/config.toml is not TOML" in tree.run("--yes", status=1).stderr


@pytest.mark.parametrize(("answer", "status", "there"), [("n", 130, False), ("y", 0, True)])
def test_it_asks(tree: Tree, answer: str, status: int, there: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            tree.command(), cwd=ROOT, stdin=theirs, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == status, done.stderr
    assert "Install this?" in done.stderr
    assert tree.at(CONFLIST).exists() is there


def test_somebody_elses_file_is_named_and_nothing_is_installed(tree: Tree) -> None:
    tree.put(CONFLIST, "{}")
    before = tree.picture()
    assert f"{CONFLIST}: Podwire did not write it" in tree.run("--yes", status=1).stderr
    assert tree.picture() == before
    tree.at(CONFLIST).unlink()
    tree.at(CONFLIST).symlink_to("/etc/passwd")
    assert "there is a link of that name" in tree.run("--yes", "--overwrite", status=1).stderr


def test_a_failure_in_the_middle_takes_all_back(tree: Tree) -> None:
    tree.put("/usr/share/containers", "a file where a directory should be")
    before = tree.picture()
    done = tree.run("--yes", status=1)
    assert "/usr/share/containers" in done.stderr
    assert "nothing was changed" in done.stderr
    assert tree.picture() == before


# How it is undone.


def test_remove_leaves_the_tree_as_it_was(tree: Tree) -> None:
    before = tree.picture()
    tree.run("--yes", "--podman-default-network")
    assert set(tree.changes("--remove", "--dry-run").values()) == {"removed"}
    assert "Removed." in tree.run("--remove", "--yes").stdout
    assert tree.picture() == before
    assert "nothing is installed" in tree.run("--remove").stdout


def test_remove_restores_what_was_overwritten(tree: Tree) -> None:
    tree.put(CONFLIST, "{}", 0o640)
    before = tree.picture()
    tree.run("--yes", "--overwrite")
    tree.run("--yes", "--mtu", "1300")  # ours by now
    assert tree.changes("--remove", "--yes")[CONFLIST] == "restored"
    assert tree.picture() == before


def test_what_somebody_changed_since_is_left_and_named(tree: Tree) -> None:
    tree.run("--yes")
    text = tree.at(CONFLIST).read_text().replace("1.0.0", "0.4.0")
    tree.put(CONFLIST, text)
    assert "somebody has changed it since" in tree.run("--yes", status=1).stderr
    assert "left" in tree.run("--remove", "--yes").stdout
    assert tree.at(CONFLIST).read_text() == text
    assert not tree.at("/usr/lib/cni/podwire-cni").exists()
    assert not tree.at(manifest.PATH).exists()


def test_what_stands_beside_ours_stays(tree: Tree) -> None:
    tree.run("--yes")
    tree.put("/etc/cni/net.d/99-other.conflist", "{}")
    tree.put("/var/lib/podwire/router.db", "journal")
    tree.run("--remove", "--yes")
    assert tree.at("/etc/cni/net.d/99-other.conflist").exists()
    assert tree.at("/var/lib/podwire/router.db").exists()


def test_an_installation_that_was_killed_is_undone(tree: Tree) -> None:
    before = {path for path, (_, content) in tree.picture().items() if content != b"/"}
    code = (
        "import os, sys\nfrom shim import wholefile\nfrom router.__main__ import main\n"
        "write, left = wholefile.write, [4]\n"
        "def dying(*arguments):\n    left[0] -= 1\n    if not left[0]: os._exit(9)\n    write(*arguments)\n"
        "wholefile.write = dying\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, *tree.command("--yes")[3:]]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 9
    half = {path for path, (_, content) in tree.picture().items() if content != b"/"} - before
    assert len(half) == 3, half
    assert set(tree.changes("--remove", "--yes").values()) == {"removed", "gone"}
    assert {path for path, (_, content) in tree.picture().items() if content != b"/"} == before


def test_a_lost_manifest_is_found_again(tree: Tree) -> None:
    before = tree.picture()
    tree.run("--yes")
    tree.at(manifest.PATH).unlink()
    assert set(tree.changes("--yes").values()) == {"same"}
    tree.run("--remove", "--yes")
    assert {path for path in tree.picture() if path not in before and tree.at(path).is_file()} == set()


def test_a_damaged_manifest_is_named(tree: Tree) -> None:
    tree.put(manifest.PATH, '{"version": 1, "files": 3}')
    assert f"{manifest.PATH} is damaged" in tree.run("--remove", status=1).stderr


# The launchers.


def test_a_launcher_names_the_interpreter_itself(tmp_path: Path) -> None:
    (made,) = launchers.write(tmp_path / "bin", ["podwire-cni"], client="python")
    first = made.read_text().splitlines()[0]
    assert first == f"#!{os.path.realpath(sys.executable)} -IS"
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("python3", "absolute path"),
        ("/opt/my python", "without blanks"),
        ("/" + "x" * 250, "255"),
        ("/nowhere/python3", "cannot read"),
        ("/dev/null", "not executable"),
    ],
)
def test_an_interpreter_that_cannot_be_is_refused(tmp_path: Path, python: str, why: str) -> None:
    with pytest.raises(launchers.LauncherError, match=why):
        launchers.write(tmp_path, ["podwire-cni"], python, client="python")
    assert list(tmp_path.iterdir()) == []


def test_a_version_managers_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\nexec true\n")
    script.chmod(0o755)
    with pytest.raises(launchers.LauncherError, match="name the interpreter itself"):
        launchers.text("podwire-cni", str(script))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package in another place, without anything compiled."""
    shutil.copytree(ROOT / "shim", tmp_path / "site/shim", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def test_it_compiles_what_launchers_import_or_says_where_it_cannot(copied: Path) -> None:
    (copied / "shim/cni/__pycache__").write_text("in the way")
    code = "from shim import launchers; print(launchers.uncompiled()); print(launchers.precompile(), launchers.uncompiled())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(copied)!r}); sys.dont_write_bytecode = True; {code}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    before, after = done.stdout.splitlines()
    blocked = f"['{copied}/shim/cni']"
    assert after == f"{blocked} {blocked}"
    assert f"{copied}/shim/lean" in before
