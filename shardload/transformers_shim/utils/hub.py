"""`transformers.utils.hub`, in part: files of a model's repo, on this disk only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shardload.transformers_shim._missing import later

if TYPE_CHECKING:
    import os


def cached_file(path_or_repo_id: str | os.PathLike[str], filename: str, **_options: Any) -> str:
    """Return the path of a file in a local folder; raises OSError for a missing file. Nothing is fetched."""
    path = Path(path_or_repo_id) / _options.get("subfolder", "") / filename
    if not path.is_file():
        raise OSError(f"there is no file {filename} in {path_or_repo_id}")
    return str(path)


def try_to_load_from_cache(repo_id: str, filename: str, **options: Any) -> Any:
    """Return the path of a file in huggingface_hub's cache on this disk; None where it is not cached."""
    from huggingface_hub import try_to_load_from_cache as ask

    return ask(repo_id, filename, **options)


def is_remote_url(url_or_filename: str) -> bool:
    """Return whether a text is a web address."""
    return url_or_filename.startswith(("http://", "https://"))


class PushToHubMixin:
    """The base class of what transformers can upload; here it uploads nothing."""

    def push_to_hub(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise: shardload uploads nothing."""
        later(f"{type(self).__name__}.push_to_hub", "save it and upload the folder with huggingface_hub")
