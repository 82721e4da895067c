"""Which repository addresses git may be given, and what a person is told otherwise."""

import pytest

from shared.repo_url import BadRepoUrl, check_repo_url, is_local_path

GOOD = [
    ("https://github.com/owner/name", "https://github.com/owner/name"),
    ("https://github.com/owner/name.git/", "https://github.com/owner/name.git"),
    ("  HTTPS://GitHub.com/Owner/Name.git\n", "https://github.com/Owner/Name.git"),
    ("https://gitlab.com/group/sub/name.git", "https://gitlab.com/group/sub/name.git"),
    ("https://gitlab.com/group/sub/tree", "https://gitlab.com/group/sub/tree"),
    ("https://gitlab.example.com/g/s/tags/repo.git", "https://gitlab.example.com/g/s/tags/repo.git"),
    ("https://gitlab.example.com/org/team/wiki/repo.git", "https://gitlab.example.com/org/team/wiki/repo.git"),
    ("https://gitlab.example.com/g/s/tree/raw/repo.git/", "https://gitlab.example.com/g/s/tree/raw/repo.git"),
    ("https://internal.example.com/a/b", "https://internal.example.com/a/b"),
    ("https://svc.example.dev/a/b", "https://svc.example.dev/a/b"),
    ("https://git.xn--p1ai/a/b", "https://git.xn--p1ai/a/b"),
    ("https://[64:ff9b::808:808]/a/b", "https://[64:ff9b::808:808]/a/b"),
    ("https://git.example.com:8443/tree/name", "https://git.example.com:8443/tree/name"),
    ("https://git.example.com./a/b", "https://git.example.com./a/b"),
    ("https://8.8.8.8/a/b.git", "https://8.8.8.8/a/b.git"),
    ("https://[2606:4700::1]/a/b.git", "https://[2606:4700::1]/a/b.git"),
    ("ssh://git@github.com/owner/name.git", "ssh://git@github.com/owner/name.git"),
    ("ssh://git@git.example.com:2222/~me/name", "ssh://git@git.example.com:2222/~me/name"),
    ("git@github.com:owner/name.git", "git@github.com:owner/name.git"),
    ("git.example.com:owner/name", "git.example.com:owner/name"),
    ("git@gitlab.com:group/sub/deeper/name.git", "git@gitlab.com:group/sub/deeper/name.git"),
    ("git@git.example.com:/srv/git/name.git", "git@git.example.com:/srv/git/name.git"),
    ("git@github.com:owner/name.git/", "git@github.com:owner/name.git"),
    ("git@[2606:4700::1]:owner/name.git", "git@[2606:4700::1]:owner/name.git"),
    ("ssh://git@gitlab.com/group/sub/deeper/name.git", "ssh://git@gitlab.com/group/sub/deeper/name.git"),
    ("ssh://github.com/owner/name.git", "ssh://github.com/owner/name.git"),
    ("https://gitlab.com/group/sub/deeper/name", "https://gitlab.com/group/sub/deeper/name"),
    ("https://github.com:443/owner/name", "https://github.com:443/owner/name"),
    ("https://dev.example.com/My%20Group/_git/n%C3%A4me", "https://dev.example.com/My%20Group/_git/n%C3%A4me"),
    ("https://xn--exmple-cua.com/a/b", "https://xn--exmple-cua.com/a/b"),
    ("https://github.com/owner/my-tree.git", "https://github.com/owner/my-tree.git"),
    ("https://github.com/owner/-name", "https://github.com/owner/-name"),
    ("https://8.8.8.8./a/b.git", "https://8.8.8.8./a/b.git"),
    ("https://[2001:4860:4860::8888]:8443/a/b", "https://[2001:4860:4860::8888]:8443/a/b"),
]


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_clone_urls_pass(text: str, address: str) -> None:
    assert check_repo_url(text, allow_local=False) == address
    assert not is_local_path(address)


BAD = [
    ("", "no repository was named"),
    ("https://github.com/owner/name/tree/main", "write https://github.com/owner/name.git"),
    ("https://github.com/owner/name/blob/main/README.md", "write https://github.com/owner/name.git"),
    ("https://github.com/owner/name/pull/12", "write https://github.com/owner/name.git"),
    ("https://github.com/owner/name/issues", "write https://github.com/owner/name.git"),
    ("https://gitlab.com/group/sub/name/-/tree/main", "write https://gitlab.com/group/sub/name.git"),
    ("https://git.example.com/owner/name/src/branch/main", "write https://git.example.com/owner/name.git"),
    ("https://github.com./owner/name/tree/main", "is a web page"),
    ("https://gitlab.example.com/g/s/tags/repo", "or g/s/tags/repo.git if that is the repository"),
    ("https://www.github.com/owner/name/pull/1", "write https://www.github.com/owner/name.git"),
    ("https://github.com/a/b/pull/1/files", "write https://github.com/a/b.git"),
    ("https://gitlab.com/group/sub/name/-/merge_requests/7", "write https://gitlab.com/group/sub/name.git"),
    ("https://gitlab.com/group/name/-/issues", "write https://gitlab.com/group/name.git"),
    ("https://bitbucket.org/owner/name/src/main/", "write https://bitbucket.org/owner/name.git"),
    ("https://codeberg.org/owner/name/src/branch/main", "write https://codeberg.org/owner/name.git"),
    ("https://github.com/owner", "names no repository"),
    ("https://github.com/", "names no repository"),
    ("https://github.com", "names no repository"),
    ("https://github.com/owner//name", "names no repository"),
    ("https://token@github.com/owner/name", "write https://github.com/owner/name"),
    ("https://user:s3cret@github.com/owner/name", "carries a user or a token"),
    ("https://@github.com/owner/name", "carries a user or a token"),
    ("ssh://git:s3cret@github.com/owner/name", "carries a password"),
    ("ssh://-oProxyCommand=x@github.com/owner/name", "user name"),
    ("ssh://-oProxyCommand=x/owner/name", "valid host name"),
    ("-oProxyCommand=x@github.com:owner/name", "starts with a dash"),
    ("--upload-pack=x", "starts with a dash"),
    ("git@-oProxyCommand=x:owner/name", "valid host name"),
    ("git@github.com:-owner/name", "starts with a dash"),
    ("git@github.com:/-owner/name", "starts with a dash"),
    ("ssh://git@github.com/-owner/name", "starts with a dash"),
    ("https://github.com/-owner/name", "starts with a dash"),
    ("https://-github.com/owner/name", "valid host name"),
    ("-github.com:owner/name", "starts with a dash"),
    ("git@host-:owner/name", "valid host name"),
    ("git@github.com:", "names no repository"),
    ("user:s3cret@github.com:owner/name", "carries a password"),
    ("ext::sh -c touch% /tmp/x", "remote helper"),
    ("foo::https://github.com/owner/name", "remote helper"),
    ("fd::17", "remote helper"),
    ("::https://github.com/owner/name", "remote helper"),
    ("http://github.com/owner/name", "write an https://"),
    ("git://github.com/owner/name", "write an https://"),
    ("ftp://github.com/owner/name", "write an https://"),
    ("file:///srv/name.git", "file URL"),
    ("https://github.com/owner/name?tab=readme", "write https://github.com/owner/name"),
    ("https://github.com/owner/name#readme", "write https://github.com/owner/name"),
    ("git@github.com:owner/name#main", "query or a fragment"),
    ("https://github.com/owner/../name", ".. in its path"),
    ("https://github.com/owner/na%0ame", "control character"),
    ("https://github.com/owner/na%00me", "behind %00"),
    ("https://github.com/owner/na%7fme", "behind %7f"),
    ("https://github.com/owner/%2e%2e/name", "behind %2e"),
    ("https://github.com/owner%2Fname/x", "behind %2F"),
    ("https://github.com/owner/na%5cme", "behind %5c"),
    ("https://github.com/owner/na%252fme", "behind %25"),
    ("https://github.com/%2downer/name", "behind %2d"),
    ("https://github.com/owner/na%zzme", "behind %"),
    ("https://github.com/owner/name%", "behind %"),
    ("git@github.com:owner/%2e%2e/name", "behind %2e"),
    ("https://github.com/owner/./name", ".. in its path"),
    ("git@github.com:../name", ".. in its path"),
    ("git@github.com:~/../name", ".. in its path"),
    ("https://github.com/owner/na me", "blank"),
    ("https://github.com/owner/na\\me", "backslash"),
    ("https://github.com/owner/na\x1b[31mme", "control characters"),
    ("https://github.com/owner/na\u202eme", "control characters"),
    ("https://github.com:0/owner/name", "port 0"),
    ("https://github.com:99999/owner/name", "no URL"),
    ("https://github.com:x/owner/name", "no URL"),
    ("https://[::1/owner/name", "no URL"),
    ("https://exa%6dple.com/owner/name", "valid host name"),
    ("https://exämple.com/owner/name", "valid host name"),
    ("https://gіthub.com/owner/name", "valid host name"),  # a Cyrillic i
    ("git@gіthub.com:owner/name", "valid host name"),
    ("https://github。com/owner/name", "valid host name"),  # an ideographic full stop
    ("https://github.com／owner/name", "no URL"),  # a full-width slash
    ("https://127.0.0.1%2f.example.com/a/b", "valid host name"),
    ("https://example.com%00.internal/a/b", "valid host name"),
    ("https://git.example.com../a/b", "valid host name"),
    ("https://.example.com/a/b", "valid host name"),
    ("https://exa_mple..com/a/b", "valid host name"),
    ("https://[::1%25eth0/a/b", "no URL"),
    ("https://[nonsense]/a/b", "IPv6"),
    ("https:///owner/name", "valid host name"),
    ("https:github.com/owner/name", "private host"),
    ("https://github.com\\@evil.example/owner/name", "carries a user or a token"),
    ("https://github.com:443@evil.example/owner/name", "carries a user or a token"),
    ("ssh://git@github.com:-1/owner/name", "no URL"),
    ("ssh://git@github.com:2 2/owner/name", "no URL"),
    ("https://github.com\t/owner/name", "control characters"),
    ("https://github.com/owner\n/name", "control characters"),
    ("https://github.com/owner/name\x00", "control characters"),
    ("https://１２７.0.0.1/owner/name", "valid host name"),  # full-width digits
    ("https://" + "a" * 3000 + ".com/a/b", "2048"),
    ("/srv/name.git", "local paths are not allowed"),
    ("../name", "local paths are not allowed"),
    ("name", "local paths are not allowed"),
]


@pytest.mark.parametrize(("text", "part"), BAD)
def test_anything_else_is_refused_with_what_to_write(text: str, part: str) -> None:
    with pytest.raises(BadRepoUrl) as refusal:
        check_repo_url(text, allow_local=False)
    assert part in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert "s3cret" not in str(refusal.value)


PRIVATE_HOSTS = [
    "localhost",
    "localhost.",
    "LOCALHOST",
    "git.localhost",
    "gitlab",
    "git.local",
    "metadata.google.internal",
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.0.0.0",  # noqa: S104 - an address to refuse, nothing listens on it
    "224.0.0.1",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fd00:ec2::254]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[::ffff:10.0.0.1]",
    "[0:0:0:0:0:ffff:7f00:1]",
    "[::7f00:1]",
    "[2002:a9fe:a9fe::]",
    "[64:ff9b::a9fe:a9fe]",
    "[ff02::1]",
    "[fec0::1]",
    "[64:ff9b:1::7f00:1]",
    "[2001:db8::1]",
    "192.0.0.192",
    "100.100.100.200",
    "168.63.129.16",
    "198.18.0.1",
    "203.0.113.7",
    "255.255.255.255",
    "127.0.0.1.",
    "169.254.169.254.",
    "metadata",
    "metadata.google.internal.",
    "METADATA.GOOGLE.INTERNAL",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "instance-data.ec2.internal",
    "kubernetes.default.svc.cluster.local",
    "localhost.localdomain",
    "foo.localhost.",
    "router.lan",
    "nas.home.arpa",
    "home.arpa",
    "fritz.box",
    "nats.treadle_bus",
    "my_gitlab.example.com",
    "nats.treadle-bus",
    "nats.net0",
    "gitlab.default.svc",
    "gitlab.default.svc.cluster.local",
    "gitlab.default.cluster.local.",
    "vault.service.consul",
    "git.intra",
    "git.INTRANET",
    "git.private",
    "git.corp",
    "git.home",
    "git.fritz.box",
    "git.test",
    "git.localdomain",
    "[::ffff:0:127.0.0.1]",
    "[::ffff:0:7f00:1]",
    "[::ffff:0:a9fe:a9fe]",
]
ODD_NUMBERS = [
    "127.1",
    "127.0.1",
    "2130706433",
    "2852039166",
    "0x7f000001",
    "0X7F000001",
    "0x7f.0.0.1",
    "0x7f.0x0.0x0.0x1",
    "0xA9FEA9FE",
    "0177.0.0.1",
    "017700000001",
    "0251.0376.0251.0376",
    "127.0.0.01",
    "08.8.8.8",
    "1.2.3.4.5",
    "300.1.1.1",
    "127.1.",
    "0x7f000001.",
    "0",
    "0x",
    "example.0x7f",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
@pytest.mark.parametrize(
    "form", ["https://{}/a/b.git", "https://{}:8443/a/b", "ssh://git@{}/a/b.git", "git@{}:a/b.git"]
)
def test_private_hosts_pass_only_when_allowed(host: str, form: str) -> None:
    text = form.format(host)
    with pytest.raises(BadRepoUrl, match="private host"):
        check_repo_url(text, allow_local=True)
    assert check_repo_url(text, allow_local=False, allow_private_hosts=True)


@pytest.mark.parametrize("host", ODD_NUMBERS)
@pytest.mark.parametrize("form", ["https://{}/a/b.git", "ssh://git@{}/a/b.git", "git@{}:a/b.git"])
def test_odd_spellings_of_numeric_hosts_never_pass(host: str, form: str) -> None:
    with pytest.raises(BadRepoUrl, match="unusual number"):
        check_repo_url(form.format(host), allow_local=True, allow_private_hosts=True)


@pytest.mark.parametrize("path", ["/srv/name.git", ".", "..", "./name", "../a b/name", "name", "a/b:c", "/srv/a#b?c"])
def test_local_paths_pass_when_allowed(path: str) -> None:
    assert check_repo_url(path, allow_local=True) == path
    assert is_local_path(path)


def test_a_file_url_is_answered_with_its_path() -> None:
    with pytest.raises(BadRepoUrl, match=r"write the path itself, /srv/name\.git"):
        check_repo_url("file:///srv/name.git", allow_local=True)
