"""The listening sockets, and the sentences about those that cannot be opened."""

import socket

import pytest

from service.settings import Settings
from service.sockets import ListenError, listen, open_sockets, public_addresses


def close(sockets):
    for each in sockets:
        each.close()


def opened(host):
    try:
        return listen(host, 0)
    except ListenError:
        pytest.skip(f"this machine has no {host}")


@pytest.mark.parametrize(("host", "families"), [("127.0.0.1", {socket.AF_INET}), ("::1", {socket.AF_INET6})])
def test_the_server_listens_on_the_address_of_the_host(host, families):
    sockets = opened(host)
    assert {each.family for each in sockets} == families
    with socket.create_connection(sockets[0].getsockname()[:2]):
        pass
    close(sockets)


def test_all_addresses_of_a_host_get_the_same_port():
    sockets = listen("localhost", 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    close(sockets)


@pytest.mark.contract("7.1")
@pytest.mark.parametrize("host", ["x86_64-conda-linux-gnu", "no such host", "..", "a" * 70, "[::1]", "127.0.0.1:8000"])
def test_a_host_without_an_address_is_named_with_the_remedy(host):
    with pytest.raises(ListenError) as caught:
        listen(host, 0)
    assert str(caught.value).startswith(f"HOST={host!r}: no address has this name")
    assert "127.0.0.1 for this machine only" in str(caught.value)
    assert ("conda" in str(caught.value)) == ("conda" in host)


def test_an_address_of_another_machine_is_named():
    with pytest.raises(ListenError, match=r"HOST='192.0.2.1': this machine does not have this address"):
        listen("192.0.2.1", 0)  # RFC 5737: no machine has it


@pytest.mark.contract("7.1")
@pytest.mark.parametrize("setting", ["PORT", "METRICS_PORT"])
def test_a_port_in_use_is_named_with_its_setting(setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            listen("127.0.0.1", port, setting)
    assert str(caught.value).startswith(f"{setting}={port}: address already in use: another program listens on")


def test_a_port_for_which_the_process_has_no_rights_is_named(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ListenError, match="PORT=80: this port needs the rights of root; choose one from 1024"):
        listen("127.0.0.1", 80)


def test_the_metrics_get_a_port_of_their_own_only_if_it_is_set():
    one, two = (open_sockets(Settings(port=0, metrics_port=port)) for port in (None, 0))
    assert (len(one.metrics), len(two.metrics)) == (0, 1)
    assert two.metrics[0].getsockname()[1] != two.service[0].getsockname()[1]
    close([*one.service, *two.service, *two.metrics])


@pytest.mark.parametrize(
    ("host", "public"), [("127.0.0.1", False), ("127.0.0.2", False), ("::1", False), ("0.0.0.0", True)]
)
def test_only_addresses_outside_the_loopback_are_public(host, public):
    sockets = opened(host)
    assert bool(public_addresses(sockets)) == public
    close(sockets)
