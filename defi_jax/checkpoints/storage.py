"""Disk or bucket as a run sees them: a storage that fails is never taken for an empty one.

Neither may it be taken for a damaged step, which would be put aside.
"""

import os
import re

import fsspec.config
from etils import epath

from defi_jax import errors

# Other processes and tensorstore write too: a listing that is kept would not show it. Set here, as
# the library's view of buckets is made once, by whoever looks first.
for _protocol in ("gs", "gcs"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)

_LIBRARIES = ("aiohttp", "gcsfs", "google", "requests")
# Of tensorstore, whose errors are ValueErrors.
_STATUS = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|CANCELLED"
)


def absolute(path: str | os.PathLike) -> epath.Path:
    """Returns a path that the checkpoint library accepts: absolute, or in a bucket."""
    text = os.fspath(path)
    if "://" not in text:
        return epath.Path(os.path.abspath(text))
    return epath.Path(text)


def names(folder: epath.Path) -> list[str]:
    """Names of what is in a folder, sorted; none where it is missing.

    `is_dir` of buckets is also False where nothing answers; this raises.
    """
    try:
        found = sorted(child.name for child in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Tools that mount buckets leave an empty object for the folder itself.
    return [name for name in found if "://" not in str(folder) or name != folder.name]


def has_failed(error: BaseException) -> bool:
    """Whether an error says that storage can't be reached or refuses, not what lies there."""
    if isinstance(error, (PermissionError, TimeoutError)):
        return True
    if isinstance(error, ValueError):
        return bool(_STATUS.search(str(error)))
    library = type(error).__module__.partition(".")[0]
    return library in _LIBRARIES or (isinstance(error, OSError) and "Forbidden" in str(error))


def failure(path: epath.Path, error: BaseException, last_good: str = "") -> errors.StorageError:
    """Returns the error for a storage that fails."""
    text = " ".join((str(error) or repr(error)).split())[:200]
    return errors.StorageError(
        f"the storage fails ({text})" + (last_good and f"; {last_good}"),
        str(path),
        "when it answers again, the same command goes on from there",
    )
