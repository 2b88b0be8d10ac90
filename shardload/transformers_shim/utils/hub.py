"""`transformers.utils.hub`, in part: files beside a model, on this disk only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shardload.transformers_shim._missing import later

if TYPE_CHECKING:
    import os


def cached_file(path_or_repo_id: str | os.PathLike[str], filename: str, **_options: Any) -> str:
    """Return the path of a file in a local folder; raises OSError where it is not there. Nothing is fetched."""
    path = Path(path_or_repo_id) / _options.get("subfolder", "") / filename
    if not path.is_file():
        raise OSError(f"there is no file {filename} in {path_or_repo_id}")
    return str(path)


def try_to_load_from_cache(repo_id: str, filename: str, **options: Any) -> Any:
    """Return the path of a file in the Hub's cache on this disk, by huggingface_hub; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache as ask

    return ask(repo_id, filename, **options)


def is_remote_url(url_or_filename: str) -> bool:
    """Return whether a text is a web address."""
    return url_or_filename.startswith(("http://", "https://"))


class PushToHubMixin:
    """What can be uploaded, in transformers; here only the name."""

    def push_to_hub(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse: shardload uploads nothing."""
        later(f"{type(self).__name__}.push_to_hub", "save it and upload the folder with huggingface_hub")
