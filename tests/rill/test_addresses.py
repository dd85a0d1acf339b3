"""Addresses as people type them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rill.addresses import checked_host, is_local, join, socket_path, split_addresses


@pytest.mark.parametrize(
    ("typed", "canonical", "local"),
    [
        ("127.0.0.1:7", "127.0.0.1:7", True),
        ("127.0.0.1", "127.0.0.1:50051", True),
        ("127.9.9.9:1", "127.9.9.9:1", True),
        ("localhost", "localhost:50051", True),
        ("LocalHost.:7", "localhost:7", True),
        (":7", "localhost:7", True),
        ("50051", "localhost:50051", True),
        ("0.0.0.0:7", "127.0.0.1:7", True),
        ("[::]:7", "[::1]:7", True),
        ("::1", "[::1]:50051", True),
        ("[::1]", "[::1]:50051", True),
        ("[::1]:7", "[::1]:7", True),
        ("[::ffff:127.0.0.1]:7", "[::ffff:127.0.0.1]:7", True),
        ("fe80::1%eth0", "[fe80::1%eth0]:50051", False),
        ("[fe80::1%eth0]:7", "[fe80::1%eth0]:7", False),
        ("text_server:7", "text_server:7", False),
        ("Text.Example.COM:7", "text.example.com:7", False),
        ("bücher.example:7", "xn--bcher-kva.example:7", False),
        ("http://127.0.0.1:7/", "127.0.0.1:7", True),
        ("HTTP://text.example.com", "text.example.com:80", False),
        ("https://text.example.com", "https://text.example.com:443", False),
        ("https://localhost:7", "https://localhost:7", True),
        ("grpc://text.example.com", "text.example.com:50051", False),
        ("grpcs://text.example.com", "https://text.example.com:50051", False),
        ("localhost:7/", "localhost:7", True),
        ("dns:///text.example.com", "dns:///text.example.com:50051", False),
        ("dns:///localhost:7", "dns:///localhost:7", True),
        ("dns://127.0.0.1/text.example.com:7", "dns://127.0.0.1/text.example.com:7", False),
        ("ipv4:127.0.0.1:7", "ipv4:127.0.0.1:7", True),
        ("ipv6:[::1]:7", "ipv6:[::1]:7", True),
        ("unix:/run/rill.sock", "unix:/run/rill.sock", True),
        ("unix:///run/rill.sock", "unix:/run/rill.sock", True),
        ("/run/my rill.sock", "unix:/run/my%20rill.sock", True),
        ("./rill.sock", "unix:./rill.sock", True),
        ("unix-abstract:rill", "unix-abstract:rill", True),
        ("localhost.example.com:7", "localhost.example.com:7", False),
        ("127.0.0.1.example.com:7", "127.0.0.1.example.com:7", False),
        ("[2001:db8::1]:7", "[2001:db8::1]:7", False),
    ],
)
def test_what_people_type(typed, canonical, local):
    assert split_addresses(f" {typed} ") == [canonical]
    assert is_local(canonical) is local
    assert split_addresses(canonical) == [canonical]
    assert split_addresses(f"{typed},a:1") == [canonical, "a:1"]


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("", "must be HOST:PORT or several separated by commas"),
        ("a:1,", "must be HOST:PORT or several separated by commas"),
        ("localhost:", "needs a port from 1 to 65535: there is none behind the colon"),
        ("localhost:http", "needs a port from 1 to 65535: 'http' is not a number"),
        ("localhost:٣", "is not a number"),
        ("localhost:65536", "has a port above 65535"),
        (f"localhost:{'9' * 5000}", "has a port above 65535"),
        ("localhost:0", "has port 0"),
        ("localhost:1:2", "must be HOST:PORT"),
        ("a b:1", "must be HOST:PORT"),
        ("*:1", "must be HOST:PORT"),
        ("::1:50051", r"needs brackets around its IPv6 address: \[::1\]:50051"),
        ("[localhost]:1", "'localhost' is not an IPv6 address"),
        ("[::1:1", "must be HOST:PORT"),
        ("[fe80::1%a b]:1", "is not an IPv6 address"),
        ("http://localhost:1/v1", "has a path, /v1"),
        ("localhost:1/v1", "has a path, /v1"),
        ("http://", "has no host"),
        ("https://:1", "has no host"),
        ("ftp://localhost:1", "has an unknown scheme, ftp"),
        ("http://user:secret@localhost:1", "without a user or a password"),
        ("unix:", "does not name a Unix socket"),
        ("unix:/run/", "does not name a Unix socket"),
        ("unix://run/x", "must be unix:PATH, or unix:///PATH"),
        (f"unix:/{'x' * 107}", "has a path of 108 bytes; Unix sockets have at most 107"),
        ("unix-abstract:", "must have a name"),
        (f"{'a.' * 40}{'ü' * 70}:1", "is not a valid host name"),
    ],
)
def test_what_is_not_an_address_is_one_sentence(typed, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        split_addresses(typed)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@example("¯")  # a space, when it is normalised
@example("a℀b")  # a slash
@given(st.text() | st.text("ab1:./[]%,-_ ux@h\\"))
def test_any_text_is_an_address_or_a_sentence(typed):
    try:
        addresses = split_addresses(typed)
    except ValueError:
        return
    assert addresses
    assert all(address.isascii() and address.isprintable() and " " not in address for address in addresses)
    assert split_addresses(",".join(addresses)) == addresses


@pytest.mark.parametrize(
    ("host", "bare"),
    [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("::", "::"), ("fe80::1%eth0", "fe80::1%eth0"), ("Vm_1", "vm_1")],
)
def test_hosts_to_listen_on(host, bare):
    assert checked_host(host) == bare


@pytest.mark.parametrize(
    ("host", "complaint"),
    [
        ("", "is not a host name or an IP address"),
        ("a b", "is not a host name or an IP address"),
        ("*", "use :: for all addresses of this machine, or 0.0.0.0 for those of IPv4"),
        ("0.0.0.0:50051", "must be a host without its port"),
        ("[::1]:50051", "must be a host without its port"),
        ("http://localhost", "without a scheme"),
        ("::zz", "is not an IPv6 address"),
    ],
)
def test_what_is_not_a_host_is_one_sentence(host, complaint):
    with pytest.raises(ValueError, match=complaint):
        checked_host(host)


def test_hosts_and_ports_are_joined():
    assert [join("::1", 7), join("[::1]", 7), join("a", 7)] == ["[::1]:7", "[::1]:7", "a:7"]


def test_paths_of_sockets():
    assert socket_path("unix:/a%20b") == socket_path("/a b") == "/a b"
    assert socket_path("localhost:1") is None
