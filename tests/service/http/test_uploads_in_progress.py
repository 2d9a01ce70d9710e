"""Which upload gives way: arithmetic with a clock that the test sets. A rate is bytes divided by seconds."""

import asyncio

import pytest

from service.http.uploads_in_progress import GRACE, PATIENCE, UploadsInProgress, client_of
from service.queue.memory import HELD_SHARE, MemoryBudget

SOON = 20  # seconds; limits how long a test waits


class Scene:
    """Uploads with sizes and times that the test sets."""

    def __init__(self, places: int = 2, per_client: int = 2, max_bytes: int = 10_000, min_rate: float = 100.0) -> None:
        self.now = 0.0
        self.ended: list[str] = []
        self.sizes: dict[str, int] = {}
        self.outcomes: dict[str, str] = {}
        memory = MemoryBudget(HELD_SHARE * max_bytes)
        self.uploads = UploadsInProgress(places, per_client, memory, min_rate, self.ended.append, lambda: self.now)

    async def begins(self, name: str, size: int, client: str = "a", *, wants_place: bool = True) -> asyncio.Task[None]:
        """Begins an upload of which `size` bytes have arrived. Returns once it has a place or waits for one."""
        self.sizes[name] = size

        async def run() -> None:
            try:
                async with asyncio.timeout(SOON) as timer:
                    with self.uploads.one(client, lambda: self.sizes[name], timer) as upload:
                        try:
                            if wants_place:
                                await self.uploads.take_place(upload)
                                self.outcomes[name] = "placed"
                            await asyncio.Event().wait()
                        finally:
                            self.outcomes[name] = upload.ended or "complete"
            except TimeoutError:
                pass

        task = asyncio.create_task(run())
        await self.settle()
        return task

    async def settle(self) -> None:
        for _ in range(10):  # no step of an upload takes more turns of the event loop
            await asyncio.sleep(0)

    async def complete(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.settle()


def run(scenario, **limits):
    async def inside() -> None:
        scene = Scene(**limits)
        await scenario(scene)

    asyncio.run(inside())


def test_a_free_place_is_taken_at_once():
    async def scenario(scene: Scene) -> None:
        await scene.begins("first", 0)
        await scene.begins("second", 0)
        assert scene.outcomes == {"first": "placed", "second": "placed"}
        assert len(scene.uploads) == 2

    run(scenario)


def test_a_faster_upload_displaces_the_slowest_one_that_has_had_its_time():
    async def scenario(scene: Scene) -> None:
        await scene.begins("slow", 10)
        await scene.begins("slower", 5)
        scene.now = PATIENCE  # their rates are now 5 and 2.5 bytes per second
        await scene.begins("fast", 5000)
        assert scene.outcomes == {"slow": "placed", "slower": "evicted_upload", "fast": "placed"}
        assert scene.ended == ["evicted_upload"]

    run(scenario)


def test_an_upload_waits_if_the_others_have_not_had_their_time():
    async def scenario(scene: Scene) -> None:
        first = await scene.begins("first", 1)
        await scene.begins("second", 1)
        await scene.begins("third", 5000)
        assert "third" not in scene.outcomes
        await scene.complete(first)
        assert scene.outcomes == {"first": "complete", "second": "placed", "third": "placed"}

    run(scenario)


def test_a_waiting_upload_displaces_another_once_that_one_has_had_its_time():
    async def scenario(scene: Scene) -> None:
        await scene.begins("first", 1)
        await scene.begins("second", 2)
        await scene.begins("third", 5000)
        scene.now = PATIENCE
        scene.uploads.check()
        await scene.settle()
        assert scene.outcomes == {"first": "evicted_upload", "second": "placed", "third": "placed"}

    run(scenario)


def test_a_waiting_upload_counts_as_fast_as_it_was_before_it_waited():
    """The first two go on to 300 bytes per second. The third, which is not read meanwhile, would have 250."""

    async def scenario(scene: Scene) -> None:
        await scene.begins("first", 500)
        await scene.begins("second", 500)
        third = await scene.begins("third", 500)  # within no time at all
        scene.sizes |= {"first": 599, "second": 600}
        scene.now = PATIENCE
        scene.uploads.check()
        await scene.settle()
        assert scene.outcomes == {"first": "evicted_upload", "second": "placed", "third": "placed"}
        await scene.complete(third)

    run(scenario)


def test_a_slower_upload_displaces_nobody():
    async def scenario(scene: Scene) -> None:
        await scene.begins("first", 5000)
        await scene.begins("second", 5000)
        scene.now = PATIENCE
        await scene.begins("third", 0)
        assert "third" not in scene.outcomes
        assert scene.ended == []

    run(scenario)


def test_a_client_at_its_own_limit_displaces_only_its_own_uploads():
    async def scenario(scene: Scene) -> None:
        await scene.begins("other", 1, client="b")
        await scene.begins("own", 2)
        scene.now = PATIENCE
        await scene.begins("next", 5000)
        assert scene.outcomes == {"other": "placed", "own": "evicted_upload", "next": "placed"}

    run(scenario, places=9, per_client=1)


def test_an_upload_below_the_minimum_rate_is_ended_after_the_grace_even_without_a_place():
    async def scenario(scene: Scene) -> None:
        await scene.begins("slow", 1000, wants_place=False)  # 99.9 bytes per second after 10.01 s
        await scene.begins("fast enough", 1100)
        scene.now = GRACE
        scene.uploads.check()
        assert scene.ended == []
        scene.now = GRACE + 0.01
        scene.uploads.check()
        await scene.settle()
        assert scene.outcomes == {"slow": "slow_upload", "fast enough": "placed"}

    run(scenario)


def test_the_slowest_uploads_are_ended_if_all_together_have_too_many_bytes():
    async def scenario(scene: Scene) -> None:
        for name, size in (("slowest", 2000), ("slow", 4000), ("fast", 5000)):
            scene.now += 1
            await scene.begins(name, size, wants_place=False)
            scene.uploads.count_bytes(size)
            await scene.settle()
        # 11,000 of 10,000 bytes, but at 3 s only the first has had 2 s
        assert scene.outcomes == {"slowest": "upload_memory"}

    run(scenario)


def test_the_largest_upload_is_ended_if_none_has_had_its_time():
    async def scenario(scene: Scene) -> None:
        for name, size in (("small", 4000), ("large", 7000)):
            await scene.begins(name, size, wants_place=False)
            scene.uploads.count_bytes(size)
        await scene.settle()
        assert scene.outcomes == {"large": "upload_memory"}

    run(scenario)


def test_connections_hold_uploads_back_while_all_places_are_taken():
    async def scenario(scene: Scene) -> None:
        first = await scene.begins("first", 0, wants_place=False)
        assert not scene.uploads.crowded
        await scene.begins("second", 0, wants_place=False)
        assert scene.uploads.crowded
        started: list[str] = []
        holds = [lambda: started.append("third"), lambda: started.append("fourth")]
        for start in holds:
            scene.uploads.hold(start)
        assert len(scene.uploads) == 4
        await scene.complete(first)
        assert started == ["third"]
        for start in holds:
            scene.uploads.stop_holding(start)
        assert len(scene.uploads) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),  # the same /64
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("unix", "unix", True),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(one, other, same):
    assert (client_of(one) == client_of(other)) == same
