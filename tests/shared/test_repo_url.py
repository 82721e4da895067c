"""Which repository addresses git may be given, and what a person is told otherwise."""

import pytest

from shared.repo_url import BadRepoUrl, check_repo_url, is_local_path

GOOD = [
    ("https://github.com/owner/name", "https://github.com/owner/name"),
    ("https://github.com/owner/name.git/", "https://github.com/owner/name.git"),
    ("  HTTPS://GitHub.com/Owner/Name.git\n", "https://github.com/Owner/Name.git"),
    ("https://gitlab.com/group/sub/name.git", "https://gitlab.com/group/sub/name.git"),
    ("https://gitlab.com/group/sub/tree", "https://gitlab.com/group/sub/tree"),
    ("https://git.example.com:8443/tree/name", "https://git.example.com:8443/tree/name"),
    ("https://git.example.com./a/b", "https://git.example.com./a/b"),
    ("https://8.8.8.8/a/b.git", "https://8.8.8.8/a/b.git"),
    ("https://[2606:4700::1]/a/b.git", "https://[2606:4700::1]/a/b.git"),
    ("ssh://git@github.com/owner/name.git", "ssh://git@github.com/owner/name.git"),
    ("ssh://git@git.example.com:2222/~me/name", "ssh://git@git.example.com:2222/~me/name"),
    ("git@github.com:owner/name.git", "git@github.com:owner/name.git"),
    ("git.example.com:owner/name", "git.example.com:owner/name"),
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
]
ODD_NUMBERS = ["127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01", "1.2.3.4.5", "300.1.1.1"]


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
