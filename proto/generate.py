"""Make the stubs in router/rpc/v1, shim/lean/fields.py and docs/reference/api.md from proto/podwire/v1/*.proto.

proto/etcd/v3/*.proto, a part of etcd's own API, gives stubs in router/rpc/etcd and nothing else.

`python proto/generate.py` writes them; `--check` writes nothing and exits 1 when they are stale.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = ROOT / "proto"
STUBS = Path("router/rpc/v1")
REFERENCE = Path("docs/reference/api.md")
LEAN = Path("shim/lean/fields.py")
LEAN_SERVICE = "Router"
LEAN_METHODS = ("Attach", "Detach", "Sync", "Check", "ListAttachments", "GetStatus")
"""What processes call that cannot wait for grpcio and protobuf to be imported."""
PACKAGE = "podwire.v1"
ETCD_STUBS = Path("router/rpc/etcd")
HOMES = {"podwire.v1": "router.rpc.v1", "etcd.v3": "router.rpc.etcd"}
"""A folder of proto/, and the Python package of its stubs."""
PACKAGE_INIT = '"""Generated from proto/ by proto/generate.py; do not edit."""\n'


def main() -> int:
    """Write what is generated, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is stale")
    check: bool = parser.parse_args().check
    wanted = generate()
    stale = [path for path in sorted({*wanted, *_present()}) if _text(ROOT / path) != wanted.get(path)]
    for path in stale:
        before, after = _text(ROOT / path), wanted.get(path)
        print(f"{'stale' if check else 'wrote' if after is not None else 'removed'}: {path} {_summary(before, after)}")
        if check:
            continue
        if after is None:
            (ROOT / path).unlink()
            continue
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(after)
    if check and stale:
        print("run: python proto/generate.py, and commit what it writes", file=sys.stderr)
    return 1 if check and stale else 0


def generate() -> dict[Path, str]:
    """Return every generated file by its path from the root of the repository."""
    wanted, described = _compile("podwire/v1", STUBS)
    for file in described.file:
        if file.service:
            wanted[STUBS / f"{Path(file.name).stem}_pb2_grpc.pyi"] = _grpc_types(file)
    stubs, etcd = _compile("etcd/v3", ETCD_STUBS)
    wanted |= stubs
    for file in etcd.file:
        if file.service:
            wanted[ETCD_STUBS / f"{Path(file.name).stem}_pb2_grpc.pyi"] = _aio_types(file)
    wanted[ETCD_STUBS / "__init__.py"] = PACKAGE_INIT
    wanted |= {STUBS.parent / "__init__.py": PACKAGE_INIT, STUBS / "__init__.py": PACKAGE_INIT}
    wanted[LEAN] = "\n".join(_lean(described)) + "\n"
    wanted[REFERENCE] = "\n".join(_reference(described)).rstrip() + "\n"
    return wanted


def _compile(folder: str, home: Path) -> tuple[dict[Path, str], FileDescriptorSet]:
    """Return the stubs of a folder of proto/ by their paths, and what protoc understood."""
    sources = sorted(str(path.relative_to(PROTO_DIR)) for path in PROTO_DIR.glob(f"{folder}/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        arguments = ["protoc", f"-I{PROTO_DIR}", f"-I{files('grpc_tools') / '_proto'}"]
        arguments += [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        arguments += [f"--descriptor_set_out={out / 'set'}", "--include_source_info"]
        if protoc.main([*arguments, *sources]):
            raise SystemExit("protoc failed; its messages are above")
        described = FileDescriptorSet.FromString((out / "set").read_bytes())
        generated = {path.name: path.read_text() for path in (out / folder).iterdir()}
    return {home / name: _at_home(text) for name, text in generated.items() if not _is_empty(name, text)}, described


_LEAN_KINDS = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_UINT32: "uint",
    FieldDescriptorProto.TYPE_UINT64: "uint",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_DOUBLE: "double",
}


def _lean(described: FileDescriptorSet) -> Iterator[str]:
    """Yield the lines of the field tables: the methods of LEAN_METHODS, and every message they can hold."""
    messages = {message.name: message for file in described.file for message in file.message_type}
    service = next(each for file in described.file for each in file.service if each.name == LEAN_SERVICE)
    methods = {
        method.name: (method.input_type.rpartition(".")[2], method.output_type.rpartition(".")[2])
        for method in service.method
        if method.name in LEAN_METHODS
    }
    yield '"""Generated from proto/ by proto/generate.py; do not edit. What shim/lean/codec.py knows of the contract."""'
    yield ""
    yield "METHODS: dict[str, tuple[str, str, str]] = {"
    for name, (asked, answered) in methods.items():
        yield f'    "{name}": ("{asked}", "{answered}", "/{PACKAGE}.{service.name}/{name}"),'
    yield "}"
    yield '"""Method to request, answer and path."""'
    yield ""
    yield "MESSAGES: dict[str, dict[int, tuple[str, str, bool]]] = {"
    waiting = [name for pair in methods.values() for name in pair]
    done: set[str] = set()
    while waiting:
        name = waiting.pop(0)
        if name in done:
            continue
        done.add(name)
        yield f'    "{name}": {{'
        entries = {nested.name for nested in messages[name].nested_type if nested.options.map_entry}
        for field in messages[name].field:
            kind = _LEAN_KINDS.get(field.type) or field.type_name.rpartition(".")[2]
            repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
            if kind in entries:
                kind, repeated = "map", False
            elif field.type == FieldDescriptorProto.TYPE_MESSAGE:
                waiting.append(kind)
            yield f'        {field.number}: ("{field.name}", "{kind}", {repeated}),'
        yield "    },"
    yield "}"
    yield '"""Message to field number to name, kind (a scalar, "map" of text to text, or a message) and whether it repeats."""'


def _present() -> Iterator[Path]:
    for folder in (STUBS, ETCD_STUBS):
        for pattern in ("*.py", "*.pyi"):
            yield from (path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern))


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _summary(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return "(new)" if before is None else "(no longer generated)"
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    return f"(+{sum(line[0] == '+' for line in lines)} -{sum(line[0] == '-' for line in lines)} lines)"


def _at_home(text: str) -> str:
    """Import the other stubs from where they are: protoc takes the proto package for a Python package."""
    for package, home in HOMES.items():
        text = re.sub(rf"\b(from|import) {re.escape(package)}\b", rf"\1 {home}", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _is_empty(name: str, text: str) -> bool:
    return name.endswith("_pb2_grpc.py") and "Servicer" not in text


def _grpc_types(file: FileDescriptorProto) -> str:
    """Return a .pyi for the service stubs, which protoc does not make."""
    modules = sorted({_module(t) for s in file.service for m in s.method for t in (m.input_type, m.output_type)})
    lines = ["from collections.abc import Iterator", "", "import grpc", ""]
    lines += [f"from router.rpc.v1 import {module}" for module in modules]
    for service in file.service:
        stub, servicer = [f"class {service.name}Stub:"], [f"class {service.name}Servicer:"]
        stub.append("    def __init__(self, channel: grpc.Channel) -> None: ...")
        for method in service.method:
            request, answer = (f"{_module(t)}.{_short(t)}" for t in (method.input_type, method.output_type))
            shape = "UnaryStream" if method.server_streaming else "UnaryUnary"
            returned = f"Iterator[{answer}]" if method.server_streaming else answer
            stub.append(f"    {method.name}: grpc.{shape}MultiCallable[{request}, {answer}]")
            servicer.append(
                f"    def {method.name}(self, request: {request}, context: grpc.ServicerContext) -> {returned}: ..."
            )
        adder = f"def add_{service.name}Servicer_to_server"
        add = f"{adder}(servicer: {service.name}Servicer, server: grpc.Server) -> None: ..."
        lines += ["", *stub, "", *servicer, "", add]
    return "\n".join(lines) + "\n"


def _aio_types(file: FileDescriptorProto) -> str:
    """Return a .pyi for stubs that are called from asyncio; there is no server of them here."""
    lines = ["import grpc.aio", "", f"from {HOMES['etcd.v3']} import {Path(file.name).stem}_pb2"]
    for service in file.service:
        lines += ["", f"class {service.name}Stub:", "    def __init__(self, channel: grpc.aio.Channel) -> None: ..."]
        for method in service.method:
            shape = "StreamStream" if method.server_streaming else "UnaryUnary"
            types = ", ".join(
                f"{Path(file.name).stem}_pb2.{_short(t)}" for t in (method.input_type, method.output_type)
            )
            lines.append(f"    {method.name}: grpc.aio.{shape}MultiCallable[{types}]")
    return "\n".join(lines) + "\n"


_MODULES: dict[str, str] = {}
"""Full message name to the stub module it is in; filled when the sources are described."""


def _module(type_name: str) -> str:
    if not _MODULES:
        for path in PROTO_DIR.glob("podwire/v1/*.proto"):
            for name in re.findall(r"^(?:message|enum) (\w+)", path.read_text(), re.MULTILINE):
                _MODULES[f".{PACKAGE}.{name}"] = f"{path.stem}_pb2"
    return _MODULES[type_name]


def _short(type_name: str) -> str:
    return type_name.rsplit(".", 1)[1]


def _reference(described: FileDescriptorSet) -> Iterator[str]:
    """Yield the lines of the reference page: the service first, then every message and enum by file."""
    yield from ("# gRPC reference", "")
    yield from ("Made from the comments in `proto/podwire/v1/` by `proto/generate.py`; change them there.", "")
    ordered = sorted(described.file, key=lambda file: (not file.service, file.name))
    for file in ordered:
        comments = _comments(file)
        yield from (f"## {file.name}", "", *_paragraphs(comments.get((12,), "")))
        for index, service in enumerate(file.service):
            yield from _service(service, comments, (6, index))
        for index, message in enumerate(file.message_type):
            yield from _message(message, comments, (4, index))
        for index, enum in enumerate(file.enum_type):
            yield from _enum(enum, comments, (5, index))


_Path = tuple[int, ...]
"""Where in a file a comment stands: field numbers and indices of descriptor.proto, as SourceCodeInfo has them."""


class _Comments(dict[_Path, str]):
    """The comments of one file; what has none is an error, since the comments are the documentation."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name

    def __missing__(self, path: _Path) -> str:
        raise SystemExit(f"proto/{self.file_name}: something has no comment above it (descriptor path {path})")


def _comments(file: FileDescriptorProto) -> _Comments:
    found = _Comments(file.name)
    for place in file.source_code_info.location:
        if text := place.leading_comments or "".join(place.leading_detached_comments):
            found[tuple(place.path)] = "\n".join(line.strip() for line in text.strip().splitlines())
    return found


def _paragraphs(text: str) -> Iterator[str]:
    if text:
        yield from (text, "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _service(service: ServiceDescriptorProto, comments: _Comments, path: _Path) -> Iterator[str]:
    yield from (f"### service {service.name}", "", *_paragraphs(comments[path]))
    yield from ("| call | asked | answered | |", "|---|---|---|---|")
    for index, method in enumerate(service.method):
        stream = "stream of " if method.server_streaming else ""
        yield (
            f"| `{method.name}` | {_link(method.input_type)} | {stream}{_link(method.output_type)} "
            f"| {_cell(comments[*path, 2, index])} |"
        )
    yield ""


def _message(message: DescriptorProto, comments: _Comments, path: _Path) -> Iterator[str]:
    yield from (f"### {message.name}", "", *_paragraphs(comments[path]))
    if not message.field:
        return
    yield from ("| field | type | |", "|---|---|---|")
    entries = {nested.name: nested for nested in message.nested_type}
    for index, field in enumerate(message.field):
        yield f"| `{field.name}` = {field.number} | {_type(field, entries)} | {_cell(comments[*path, 2, index])} |"
    yield ""


def _enum(enum: EnumDescriptorProto, comments: _Comments, path: _Path) -> Iterator[str]:
    yield from (f"### {enum.name}", "", *_paragraphs(comments[path]), "| value | |", "|---|---|")
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` = {value.number} | {_cell(comments[*path, 2, index])} |"
    yield ""


def _type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(_short(field.type_name)) if field.type_name else None
    if entry is not None:
        return f"map of {_type(entry.field[0], {})} to {_type(entry.field[1], {})}"
    word = _link(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {word}"
    return f"optional {word}" if field.proto3_optional else word


def _link(type_name: str) -> str:
    return f"[{_short(type_name)}](#{_short(type_name).lower()})"


if __name__ == "__main__":
    sys.exit(main())
