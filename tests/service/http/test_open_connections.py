"""Which connection gives way to a new one."""

from service.http.open_connections import REST_AFTER, OpenConnections


class Connection:
    def __init__(self, peer: str = "a") -> None:
        self.peer = peer
        self.evicted: list[str] = []
        self.rested: list[float] = []

    def evict(self, reason: str) -> None:
        self.evicted.append(reason)

    def rest(self, seconds: float) -> None:
        self.rested.append(seconds)

    def close(self) -> None:
        self.evicted.append("closed")


def full(limit: int, *peers: str) -> tuple[OpenConnections, list[Connection]]:
    connections = OpenConnections(limit, make_room=lambda: False)
    each = [Connection(peer) for peer in peers]
    for connection in each:
        connections.add(connection)
    return connections, each


def evicted(each: list[Connection]) -> list[int]:
    return [number for number, connection in enumerate(each) if connection.evicted]


def test_the_longest_idle_connection_gives_way():
    connections, each = full(3, "a", "a", "a")
    connections.set_busy(each[0])
    connections.set_idle(each[0])  # so it is idle for the shortest time
    connections.add(Connection())
    assert evicted(each) == [1]
    assert each[1].evicted == ["connection_limit"]
    assert len(connections) == 3


def test_a_connection_with_a_request_in_progress_does_not_give_way():
    connections, each = full(2, "a", "a")
    connections.set_busy(each[0])
    connections.add(Connection())
    assert evicted(each) == [1]


def test_the_client_with_the_most_idle_connections_loses_one():
    connections, each = full(3, "a", "b", "b")
    connections.add(Connection("c"))
    assert evicted(each) == [1]


def test_a_new_connection_is_closed_only_if_no_other_can_be():
    connections, each = full(1, "a")
    connections.set_busy(each[0])
    new = Connection()
    connections.add(new)
    assert new.evicted == ["connection_limit"]
    connections.remove(new)
    assert len(connections) == 1


def test_requests_in_progress_may_be_asked_to_make_room():
    asked = []
    connections = OpenConnections(1, make_room=lambda: asked.append(True) or True)
    busy, new = Connection(), Connection()
    connections.add(busy)
    connections.set_busy(busy)
    connections.add(new)
    assert (asked, new.evicted) == ([True], [])


def test_a_closed_connection_is_forgotten():
    connections, each = full(2, "a", "a")
    for connection in each:
        connections.remove(connection)
        connections.set_idle(connection)  # its response ended only after it was closed
    assert len(connections) == 0
    for _ in range(2):
        connections.add(Connection())
    assert evicted(each) == []


def test_a_connection_rests_once_it_has_been_idle_for_a_while():
    now = [0.0]
    connections = OpenConnections(9, lambda: False, lambda: now[0])
    first, busy, later = Connection(), Connection(), Connection("b")
    for connection in (first, busy):
        connections.add(connection)
    connections.set_busy(busy)
    now[0] = 3
    connections.add(later)
    now[0] = 3 + REST_AFTER
    connections.check()
    assert (first.rested, busy.rested, later.rested) == ([3 + REST_AFTER], [], [REST_AFTER])


def test_at_the_end_all_connections_are_closed():
    connections, each = full(3, "a", "b")
    connections.set_busy(each[0])
    connections.close_all()
    assert [connection.evicted for connection in each] == [["closed"], ["closed"]]
