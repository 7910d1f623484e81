"""Reads a bundle directory: every byte is checked before any parser of it runs.

    bundle.json            schema version, specs, and the size and sha256 of each other file
    params.safetensors     parameters by flat path "a/b/c"
    policy.stablehlo       the jax.export artefact for cpu, cuda and tpu
    example.safetensors    an observation, its noise and the expected actions
    <tokenizer files>      named by bundle.json

The directory holds these files and nothing else: no link, no folder, no unlisted file.
bundle.json carries a digest of its own content, so that damage to it is found as well.

A bundle in a bucket is copied into the user's cache first, the manifest before the files that it
lists, into a directory named by the manifest's digest; the copy is checked like any other bundle.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from typing import Any

from defi_rollout import errors, remote, spec
from defi_rollout import files as files_lib

MANIFEST = "bundle.json"
PARAMS = "params.safetensors"
STABLEHLO = "policy.stablehlo"
EXAMPLE = "example.safetensors"
REQUIRED = (PARAMS, STABLEHLO, EXAMPLE)

REBUILD = "python launch/export.py --from_bundle={old} --output=NEW"

_MAX_MANIFEST_BYTES = 16 << 20
_MAX_FILE_BYTES = {PARAMS: 64 << 30, STABLEHLO: 2 << 30}
_MAX_OTHER_BYTES = 256 << 20
_MAX_FILES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COPY_AGAIN = "copy the bundle again or export it again with launch/export.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle.

    Attributes:
        directory: where it lies.
        spec: content of bundle.json.
        digest: sha256 of bundle.json, which covers every other file.
    """

    directory: pathlib.Path
    spec: spec.BundleSpec
    digest: str

    def path(self, name: str) -> pathlib.Path:
        """Path of one of its files."""
        return self.directory / name

    def read(self, name: str) -> bytes:
        """Content of one of its files, checked once more: the directory may have changed."""
        content = _open_regular(self.path(name)).read()
        if hashlib.sha256(content).hexdigest() != self.spec.files[name].sha256:
            raise errors.BundleError("file changed while it was read", self.path(name), _COPY_AGAIN)
        return content


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Verifies the bundle at `path`, a directory or the URL of one, such as "gs://bucket/bundle".

    Raises:
        UserError: there is no such directory, or it cannot be reached (exit 2).
        BundleError: a file is missing, unknown, damaged or refused (exit 65).
    """
    if remote.is_remote(path):
        return _fetch(remote.RemoteDirectory(os.fspath(path)))
    directory = pathlib.Path(path)
    if not directory.is_dir():
        raise errors.UserError(
            "no bundle", directory, "give the directory that launch/export.py --output wrote"
        )
    manifest = directory / MANIFEST
    if not manifest.exists():
        raise errors.BundleError("missing file", manifest, _COPY_AGAIN)
    content = _open_regular(manifest).read(_MAX_MANIFEST_BYTES + 1)
    bundle_spec = _parse_manifest(content, str(manifest))
    _check_names(str(directory), bundle_spec.files, {entry.name for entry in os.scandir(directory)})
    for name, entry in bundle_spec.files.items():
        _check_file(directory / name, entry)
    digest = hashlib.sha256(content).hexdigest()
    return Bundle(directory=directory, spec=bundle_spec, digest=digest)


def render_manifest(document: Mapping[str, Any]) -> bytes:
    """Bytes of bundle.json for a document without its own digest."""
    return _render({**document, "digest": hashlib.sha256(_render(document)).hexdigest()})


def hash_file(path: pathlib.Path) -> spec.FileEntry:
    """Size and sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with _open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return spec.FileEntry(bytes=size, sha256=digest.hexdigest())


def _fetch(source: remote.RemoteDirectory) -> Bundle:
    """Returns the local copy of a bundle in a bucket."""
    content = source.read(MANIFEST, _MAX_MANIFEST_BYTES + 1)
    files = _parse_manifest(content, f"{source.url}/{MANIFEST}").files
    _check_names(source.url, files, source.names())
    for name, entry in files.items():
        _check_size(f"{source.url}/{name}", source.size(name), entry)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = pathlib.Path(home) / "defi_rollout" / "bundles"
    target = cache / hashlib.sha256(content).hexdigest()
    if target.exists():
        try:
            return read_bundle(target)
        except errors.BundleError as error:
            logging.warning("copying it again, the copy is spoilt: %s", error)
            shutil.rmtree(target)
    try:
        with files_lib.new_directory(target) as partial:
            (partial / MANIFEST).write_bytes(content)
            for name in files:
                source.copy(name, partial / name)
            copied = read_bundle(partial)
    except errors.UserError:
        if not target.exists():
            raise
        return read_bundle(target)  # another process was first
    return dataclasses.replace(copied, directory=target)


def _render(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


def _parse_manifest(content: bytes, where: str) -> spec.BundleSpec:
    """Strict JSON: no NaN, and exactly the bytes that the exporter wrote."""
    if len(content) > _MAX_MANIFEST_BYTES:
        raise errors.BundleError("too large", where, _COPY_AGAIN)
    with errors.BundleError.instead_of((ValueError, RecursionError), "damaged", where, _COPY_AGAIN):
        document = json.loads(content.decode())
        if not isinstance(document, dict):
            raise ValueError("not an object")
        body = {key: value for key, value in document.items() if key != "digest"}
        if render_manifest(body) != content:
            raise ValueError("its digest does not match")
    return spec.BundleSpec.from_json(body)


def _check_names(where: str, files: Mapping[str, spec.FileEntry], present: Collection[str]) -> None:
    """Checks the names that a manifest lists, and that these and no others are present."""
    if len(files) > _MAX_FILES:
        raise errors.BundleError(f"lists {len(files)} files", f"{where}/{MANIFEST}", _COPY_AGAIN)
    for name in files:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise errors.BundleError(f"refused file name {name!r}", where, _COPY_AGAIN)
    for name in REQUIRED:
        if name not in files:
            raise errors.BundleError(f"does not list {name}", f"{where}/{MANIFEST}", _COPY_AGAIN)
    if unknown := sorted({*present} - {MANIFEST} - files.keys()):
        raise errors.BundleError(
            "unknown file", f"{where}/{unknown[0]}", "remove it: a bundle holds only listed files"
        )
    if missing := sorted(files.keys() - {*present}):
        raise errors.BundleError("missing file", f"{where}/{missing[0]}", _COPY_AGAIN)


def _check_file(path: pathlib.Path, entry: spec.FileEntry) -> None:
    with _open_regular(path) as file:
        _check_size(str(path), os.fstat(file.fileno()).st_size, entry)
    if hash_file(path) != entry:
        raise errors.BundleError("damaged (sha256 does not match)", path, _COPY_AGAIN)


def _check_size(path: str, size: int, entry: spec.FileEntry) -> None:
    name = path.rsplit("/", 1)[-1]
    if size > _MAX_FILE_BYTES.get(name, _MAX_OTHER_BYTES):
        raise errors.BundleError(f"too large ({size} bytes)", path, _COPY_AGAIN)
    if size != entry.bytes:
        raise errors.BundleError(
            f"damaged ({size} bytes instead of {entry.bytes})", path, _COPY_AGAIN
        )


def _open_regular(path: pathlib.Path):
    """Opens a plain file for reading; links, folders and devices are refused."""
    with errors.BundleError.instead_of(OSError, "cannot read", path, _COPY_AGAIN):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise errors.BundleError("not a plain file", path, _COPY_AGAIN)
    return os.fdopen(descriptor, "rb")
