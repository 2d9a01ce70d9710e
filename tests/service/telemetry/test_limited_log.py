import logging

from service.telemetry.limited_log import PERIOD, LimitedLog


def test_lines_of_a_kind_are_limited_and_the_number_left_out_is_stated(caplog):
    now = [0.0]
    limited = LimitedLog(logging.getLogger("test"), lambda: now[0])
    for _ in range(5):
        limited.warning("slow", "a client is slow")
    limited.warning("fast", "a client is fast")
    now[0] = PERIOD
    limited.warning("slow", "a client is slow")
    now[0] = 2 * PERIOD
    limited.warning("slow", "a client is slow")
    assert [record.getMessage() for record in caplog.records] == [
        "a client is slow",
        "a client is fast",
        "a client is slow (4 more since the last such line)",
        "a client is slow",
    ]
