"""The uploads in progress: their number, their clients, their bytes and their speed, and which of them gives way.

An upload occupies no place in the service's queue. Until FREE_BYTES of it have arrived it needs no place here either,
because it costs no more than its connection: any number of clients that send a byte per second do not keep out a client
that sends its image at once. A longer upload takes one of a limited number of places. If there is none, it displaces
the slowest upload, or waits if none is slower.

If as many uploads are in progress as there are places, a connection also holds a new one back from the application,
where it would occupy four times the memory, until FREE_BYTES of it or all of it have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from service.queue.memory import MemoryBudget

FREE_BYTES = 2**18  # what a connection buffers of a body before it wakes the reader
GRACE = 10.0  # seconds before the minimum rate applies
PATIENCE = 2.0  # seconds for which an upload cannot be displaced


@dataclass(eq=False)
class Upload:
    """One upload.

    client  the address that it counts for
    size    returns the bytes of the body that have arrived
    timer   the timeout around its reader, which ends with it
    ended   why the upload was ended before its time: slow_upload, evicted_upload or upload_memory; else empty
    """

    client: str
    size: Callable[[], int]
    timer: asyncio.Timeout
    began: float
    has_place: bool = False
    ended: str = ""
    waiting: asyncio.Future[None] | None = field(default=None, repr=False)

    def rate(self, now: float) -> float:
        """Bytes per second since it began."""
        return self.size() / max(now - self.began, 1e-3)


class UploadsInProgress:
    """Only the event loop uses it, so it needs no lock."""

    def __init__(
        self,
        places: int,
        places_per_client: int,
        memory: MemoryBudget,
        min_rate: float,
        ended: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sets the limits.

        memory     holds the bytes that have arrived
        min_rate   bytes per second that an upload must reach on average, after GRACE
        ended      called with the reason for each upload that is ended before its time
        """
        self.places = places
        self.places_per_client = places_per_client
        self.min_rate = min_rate
        self._memory = memory
        self._ended = ended
        self._clock = clock
        self._uploads: set[Upload] = set()
        self._held: dict[Callable[[], None], None] = {}
        self._bytes = 0  # counted by the connections as they arrive
        self._next_check = 0

    def __len__(self) -> int:
        return len(self._uploads) + len(self._held)

    @property
    def crowded(self) -> bool:
        """Whether further uploads should be held back from the application."""
        return len(self._uploads) >= self.places

    def hold(self, start: Callable[[], None]) -> None:
        """Counts an upload that is held back. `start` is called once the application can take it."""
        self._held[start] = None

    def stop_holding(self, start: Callable[[], None]) -> None:
        self._held.pop(start, None)

    @property
    def bytes(self) -> int:
        return self._bytes

    @contextlib.contextmanager
    def one(self, client: str, size: Callable[[], int], timer: asyncio.Timeout) -> Iterator[Upload]:
        """Counts an upload until the context ends."""
        upload = Upload(client, size, timer, self._clock())
        self._uploads.add(upload)
        try:
            yield upload
        finally:
            self._uploads.discard(upload)
            if upload.has_place:
                self._wake_waiting()
            if self._held and not self.crowded:
                next(iter(self._held))()

    async def take_place(self, upload: Upload) -> None:
        """Returns once the upload has a place. Its reader's timeout bounds the wait."""
        rate = upload.rate(self._clock())  # until now, because while it waits, no more of it is read
        while not upload.has_place:
            rivals = self._rivals(upload)
            if not rivals:
                upload.has_place = True
            elif victim := self._slowest(rivals, below=rate):
                self._end(victim, "evicted_upload")
            else:
                upload.waiting = asyncio.get_running_loop().create_future()
                try:
                    await upload.waiting
                finally:
                    upload.waiting = None

    def count_bytes(self, size: int) -> None:
        """Adds `size` bytes that have arrived, or subtracts those of a body that is complete or was dropped."""
        self._bytes += size
        if size < 0:
            self._memory.let_go(-size)
        elif size:
            self._memory.hold_anyway(size)
            if self._memory.held > max(self._next_check, self._memory.held_limit):
                self._make_room_for_bytes()

    def end_slowest(self) -> bool:
        """Ends the slowest upload that may be displaced. Returns whether there was one."""
        victim = self._slowest(self._uploads)
        if victim is None:
            return False
        self._end(victim, "evicted_upload")
        return True

    def check(self) -> None:
        """Ends the uploads that are too slow. Must be called about every second."""
        now = self._clock()
        for upload in [*self._uploads]:
            if not upload.ended and now - upload.began > GRACE and upload.rate(now) < self.min_rate:
                self._end(upload, "slow_upload")
        self._next_check = 0
        self._wake_waiting()  # other uploads may have become slow enough to be displaced

    def _rivals(self, upload: Upload) -> list[Upload]:
        """The uploads of which one must give way before this one can have a place. Empty if there is a free place."""
        placed = [other for other in self._uploads if other.has_place]
        own = [other for other in placed if other.client == upload.client]
        if len(own) >= self.places_per_client:
            return own
        return placed if len(placed) >= self.places else []

    def _slowest(self, uploads: Iterable[Upload], below: float = math.inf) -> Upload | None:
        """The slowest of `uploads` that has had its time, if its rate is below this one."""
        now = self._clock()
        old = [each for each in uploads if not each.ended and now - each.began >= PATIENCE]
        slowest = min(old, key=lambda each: each.rate(now), default=None)
        return slowest if slowest and slowest.rate(now) < below else None

    def _make_room_for_bytes(self) -> None:
        """Ends the slowest uploads until the others fit, and if none has had its time, the largest ones."""
        limit, left = self._memory.held_limit, self._memory.held
        candidates = {upload for upload in self._uploads if not upload.ended}
        while left > limit and candidates:
            victim = self._slowest(candidates) or max(candidates, key=lambda each: each.size())
            candidates.discard(victim)
            left -= victim.size()
            self._end(victim, "upload_memory")
        # The bytes of an ended upload are let go only when its connection drops them, and new ones arrive meanwhile.
        self._next_check = self._memory.held + limit // 8

    def _end(self, upload: Upload, reason: str) -> None:
        """Ends the upload: its reader's timeout expires now. Its place is free at once."""
        upload.ended = reason
        upload.has_place = False
        if not upload.timer.expired():
            upload.timer.reschedule(asyncio.get_running_loop().time())
        self._ended(reason)

    def _wake_waiting(self) -> None:
        for upload in self._uploads:
            if upload.waiting and not upload.waiting.done():
                upload.waiting.set_result(None)


@lru_cache(4096)
def client_of(address: str) -> str:
    """The part of an IP address that stands for one client: an IPv4 address, or the first 64 bits of an IPv6 address.

    Providers give a customer at least a whole /64 network (RFC 6177). Any other text stands for itself.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
