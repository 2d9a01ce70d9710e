"""Recent uploads, kept for GET /proposals?image_id=."""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

# Bytes of memory, so that many tiny uploads cannot take far more than the limit.
UPLOAD_OVERHEAD = 1000
OWNER_OVERHEAD = 200
MOST_OWNERS = 1000  # of one upload; a further one takes the place of the first


class UnknownImageError(Exception):
    """The client has sent no recent upload with this id."""


class _Upload(NamedTuple):
    """The bytes of a file, and the clients that sent it."""

    data: bytes
    owners: dict[str, None]  # in the order in which they first sent it


class RecentUploads:
    """Uploads by the SHA-256 of their bytes, with their owners, in at most `max_bytes` of memory.

    An owner is a client that sent the upload: only its owners get it back, so that nobody can find out what others have
    sent. An upload of several owners is stored once. When the limit is reached, the least recently used are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._uploads: LRUCache[str, _Upload] = LRUCache(max_bytes, getsizeof=_memory)

    @property
    def size(self) -> int:
        """Bytes of memory in total."""
        return int(self._uploads.currsize)

    def add(self, image_id: str, data: bytes, owner: str) -> None:
        upload = self._uploads.get(image_id) or _Upload(data, {})
        if owner in upload.owners or _memory(upload) + OWNER_OVERHEAD > self._uploads.maxsize:
            return
        if len(upload.owners) == MOST_OWNERS:
            del upload.owners[next(iter(upload.owners))]
        upload.owners[owner] = None
        self._uploads[image_id] = upload  # even if it is there already, so that its memory is counted again

    def get(self, image_id: str, owner: str) -> bytes:
        """The upload's bytes. Raises UnknownImageError, also for the upload of another owner."""
        upload = self._uploads.get(image_id)
        if upload is None or owner not in upload.owners:
            raise UnknownImageError
        return upload.data


def _memory(upload: _Upload) -> int:
    return len(upload.data) + UPLOAD_OVERHEAD + OWNER_OVERHEAD * len(upload.owners)
