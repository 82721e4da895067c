"""Hosts as people write them: what is meant, and what is refused."""

import pytest

from shared.host_pattern import BadHostPattern, HostPattern, parse_host_pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("example.com", HostPattern("example.com")),
        ("Example.COM.", HostPattern("example.com")),
        ("localhost:8080", HostPattern("localhost", port=8080)),
        ("*.example.com", HostPattern("example.com", below=True)),
        ("*.example.com:443", HostPattern("example.com", below=True, port=443)),
        ("192.0.2.7:5432", HostPattern("192.0.2.7", port=5432)),
        ("[2001:DB8:0:0::1]", HostPattern("2001:db8::1")),
        ("[::1]:80", HostPattern("::1", port=80)),
        ("xn--bcher-kva.example", HostPattern("xn--bcher-kva.example")),
    ],
)
def test_a_pattern_has_one_spelling(text: str, pattern: HostPattern) -> None:
    assert parse_host_pattern(text) == pattern
    assert parse_host_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no name of a host"),
        ("*", '"*" alone'),
        ("*:443", '"*" alone'),
        ("*.", "no name of a host"),
        ("*.com", "too much"),
        ("*example.com", "only stand in front"),
        ("a.*.com", "only stand in front"),
        ("*.*.com", "only stand in front"),
        ("https://example.com", "scheme"),
        ("example.com/path", "path"),
        ("example.com?x", "path"),
        ("me:secret@example.com", "credentials"),
        ("example.com:", "port"),
        ("example.com:0", "port"),
        ("example.com:65536", "port"),
        ("example.com:٣", "port"),
        ("2001:db8::1", "brackets"),
        ("[2001:db8::1", "brackets"),
        ("[2001:db8::1]443", "brackets"),
        ("[fe80::1%eth0]", "no IPv6 address"),
        ("[example.com]", "no IPv6 address"),
        ("127.1", "neither"),
        ("0x7f.1", "neither"),
        ("0x7f000001", "neither"),
        ("2130706433", "neither"),
        ("1.2.3.04", "neither"),
        ("*.192.0.2.7", "below an address"),
        ("bücher.example", "ASCII"),
        ("-a.example", "no name of a host"),
        ("a..example", "no name of a host"),
        ("a b", "no name of a host"),
        ("a\nb.example", "no name of a host"),
        ("example.com\n", "no name of a host"),
        ("x" * 64 + ".example", "no name of a host"),
        ("a." * 130 + "example", "no name of a host"),
    ],
)
def test_what_names_no_hosts_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadHostPattern, match=why.replace("*", r"\*")):
        parse_host_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "fits"),
    [
        ("example.com", "EXAMPLE.com.", 443, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "example.com", 22, False),
        ("example.com", "a.example.com", 443, False),
        ("example.com", "notexample.com", 443, False),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "notexample.com", 443, False),
        ("example.com:22", "example.com", 22, True),
        ("example.com:22", "example.com", 443, False),
        ("[2001:db8::1]", "2001:db8::1", 443, True),
    ],
)
def test_a_pattern_fits_its_hosts_alone(pattern: str, host: str, port: int, fits: bool) -> None:
    assert parse_host_pattern(pattern).fits(host, port) is fits
