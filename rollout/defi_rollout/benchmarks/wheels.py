"""Files of installed packages, compared with the digests that their wheels came with."""

import base64
import hashlib
import importlib.metadata
import pathlib

from defi_rollout import errors


def check_files(distribution: str) -> str:
    """Compares all files of an installed package with its record; returns "N files".

    Raises:
        CheckFailed: files are missing or changed; names the first ones.
        UserError: it is not installed, or its record is absent.
    """
    fix = f"pip install --force-reinstall {distribution}"
    with errors.UserError.instead_of(
        importlib.metadata.PackageNotFoundError, "not installed", distribution, fix
    ):
        listed = importlib.metadata.files(distribution)
    if not listed:
        raise errors.UserError("its list of files is absent", distribution, fix)
    recorded = [file for file in listed if file.hash is not None]
    bad = [str(file) for file in recorded if not _is_whole(file)]
    if bad:
        raise errors.CheckFailed(
            f"{len(bad)} files are missing or changed ({errors.listed(bad, 3)})", distribution, fix
        )
    return f"{len(recorded)} files"


def _is_whole(file: importlib.metadata.PackagePath) -> bool:
    path, wanted = pathlib.Path(str(file.locate())), file.hash
    if wanted is None or not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.new(wanted.mode, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == wanted.value
