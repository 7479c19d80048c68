"""Where things stand in a TOML text, whatever stands around them."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.toml_lines import TomlLines

NASTY = '''\
# [[key]] in a comment
top = 1
[engine]   # "quoted
id = "a # [no.table]"
'listen' = 'x'
"http" = """
[store]
id = 1 \\""" ""\\"""" # done
data = \'\'\'
[redis]\'\'\'
list = [
  "a]", # ]
  [1, {b = "}"}],
]
inline = { c = "[x]", d = [1] }
sub.e = 1
sub . "f" = 2
[store.deep]
g = 1

[[proxy]]
name = "a"
[proxy.more]
h = 1
[[proxy.list]]
i = 1
[[ proxy ]]
name = "b"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("engine",), 3),
        (("engine", "id"), 4),
        (("engine", "listen"), 5),
        (("engine", "http"), 6),
        (("engine", "data"), 9),
        (("engine", "list"), 11),
        (("engine", "list", 1, 1, "b"), 11),
        (("engine", "inline", "c"), 15),
        (("engine", "sub", "e"), 16),
        (("engine", "sub", "f"), 17),
        (("engine", "missing"), 3),
        (("store", "deep", "g"), 19),
        (("proxy",), 21),
        (("proxy", 0, "name"), 22),
        (("proxy", 0, "more", "h"), 24),
        (("proxy", 0, "list", 0, "i"), 26),
        (("proxy", 1), 27),
        (("proxy", 1, "name"), 28),
        (("nowhere",), 1),
    ],
)
def test_lines_of_a_nasty_text(path: tuple[str | int, ...], line: int) -> None:
    tomllib.loads(NASTY)
    assert TomlLines(NASTY).of(*path) == line


def test_line_ends_of_other_systems() -> None:
    assert TomlLines("[a]\r\nb = 1\r\n\r\nc = 2\r\n").of("a", "c") == 4


VALUES = st.sampled_from(
    [
        "1",
        '"x"',
        "'#'",
        '"\\""',
        '"""\n\n"""',
        "'''\n[x]\n'''",
        "[\n1,\n2 # ]\n]",
        "{a = ']'}",
        "true # = 1",
        '""',
    ]
)
GAPS = st.sampled_from(["", "\n", "# [c]\n", "\n  # d = 1\n\n", "\t"])


@given(st.lists(st.tuples(st.booleans(), st.lists(st.tuples(GAPS, VALUES), max_size=4)), max_size=6))
def test_lines_of_any_text(tables: list[tuple[bool, list[tuple[str, str]]]]) -> None:
    text, expected, in_array = "", {}, 0
    for number, (is_array, pairs) in enumerate(tables):
        path: tuple[str | int, ...] = ("many", in_array) if is_array else (f"t{number}",)
        in_array += is_array
        expected[path] = text.count("\n") + 1
        text += "[[many]]\n" if is_array else f"[t{number}]\n"
        for index, (gap, value) in enumerate(pairs):
            text += gap
            expected[*path, f"k{index}"] = text.count("\n") + 1
            text += f"k{index} = {value}\n"
    tomllib.loads(text)
    lines = TomlLines(text)
    assert {path: lines.of(*path) for path in expected} == expected
