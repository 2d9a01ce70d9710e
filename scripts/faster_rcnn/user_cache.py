"""The folder in which results are kept between runs."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """The user's cache folder (XDG Base Directory Specification); None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faster-rcnn"
    except RuntimeError:
        return None
