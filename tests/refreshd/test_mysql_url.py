"""mysql: URLs, good and bad; what is wrong is said without the password."""

import pytest

from refreshd.mysql_url import MysqlUrl, read_mysql_url


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "mysql://user:secret@db.example:3307/refreshd",
            MysqlUrl(host="db.example", port=3307, user="user", password="secret", database="refreshd"),
        ),
        (
            "mysql://u@10.0.0.1/d",
            MysqlUrl(host="10.0.0.1", port=3306, user="u", password="", database="d"),
        ),
        (
            "mysql://u%40x:p%40%2F%3A%23%25%C3%A9@[::1]:1/d",
            MysqlUrl(host="::1", port=1, user="u@x", password="p@/:#%é", database="d"),
        ),
        (
            "mysql://u:p@/d?socket=/run/my%20sql.sock",
            MysqlUrl(host="", port=3306, user="u", password="p", database="d", socket="/run/my sql.sock"),
        ),
        (
            "mysql://u:p@h/d?ssl_ca=/a/ca.pem&ssl_cert=/a/c.pem&ssl_key=/a/k.pem&ssl_verify=ca",
            MysqlUrl(
                host="h", port=3306, user="u", password="p", database="d",
                ssl_ca="/a/ca.pem", ssl_cert="/a/c.pem", ssl_key="/a/k.pem", ssl_verify="ca",
            ),
        ),
    ],
)  # fmt: skip
def test_a_url_is_read(text: str, wanted: MysqlUrl) -> None:
    assert read_mysql_url(text) == wanted


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no mysql: URL"),
        ("postgres://u:hush@h/d", "no mysql: URL"),
        ("mysql://u:hush@h", "no database is named"),
        ("mysql://u:hush@h/", "no database is named"),
        ("mysql://u:hush@h/a/b", "no database is named"),
        ("mysql://u:hush@h/d;x", "no database is named"),
        ("mysql://h/d", "no user is named"),
        ("mysql://:hush@h/d", "no user is named"),
        ("mysql://u:hush@h:99999/d", "host and port cannot be read"),
        ("mysql://u:hu/sh@h/d", "host and port cannot be read"),
        ("mysql://u:hu#sh@h/d", "cannot be read"),
        ("mysql://u:1#hush@h/d", "a # or port 0 stands in it"),
        ("mysql://u:1?hush@h/d", "an option is not known"),
        ("mysql://u:hush@h:0/d", "port 0"),
        ("mysql://u:hush@[::1/d", "host and port cannot be read"),
        ("mysql://u:hush@/d", "either a host or"),
        ("mysql://u:hush@h/d?socket=/s", "either a host or"),
        ("mysql://u:hush@/d?socket=/s&ssl_ca=/a", "socket= stands alone"),
        ("mysql://u:hush@h/d?sslca=/a", "an option is not known; there are socket, ssl_ca"),
        ("mysql://u:hush@h/d?ssl_ca=/a&ssl_ca=/b", "twice"),
        ("mysql://u:hush@h/d?ssl_ca=", "no value"),
        ("mysql://u:hush@h/d?ssl_cert=/a", "TLS wants ssl_ca"),
        ("mysql://u:hush@h/d?ssl_ca=/a&ssl_key=/a", "ssl_key wants ssl_cert"),
        ("mysql://u:hush@h/d?ssl_ca=/a&ssl_verify=no", "neither host nor ca"),
    ],
)
def test_a_bad_url_is_refused_without_quoting_the_password(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        read_mysql_url(text)
    assert "hu" not in str(caught.value)


def test_neither_place_nor_repr_tell_the_password() -> None:
    url = read_mysql_url("mysql://u:hush@h:1/d")
    assert url.place == "h:1/d"
    assert "hush" not in repr(url)
    assert read_mysql_url("mysql://u:hush@/d?socket=/s").place == "/s/d"
