"""Recent uploads, kept for GET /proposals?image_id=."""

from __future__ import annotations

from cachetools import LRUCache


class UnknownImageError(Exception):
    """No recent upload has this id."""


class RecentUploads:
    """Uploads by the SHA-256 of their bytes, at most `max_bytes` in total.

    When the limit is reached, the least recently used uploads are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._uploads: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=len)

    @property
    def size(self) -> int:
        """Bytes in total."""
        return int(self._uploads.currsize)

    def add(self, image_id: str, data: bytes) -> None:
        if len(data) <= self._uploads.maxsize:  # LRUCache raises ValueError for a larger item
            self._uploads[image_id] = data

    def get(self, image_id: str) -> bytes:
        """The upload's bytes. Raises UnknownImageError."""
        data: bytes | None = self._uploads.get(image_id)
        if data is None:
            raise UnknownImageError
        return data
