"""On which line of a TOML text each table and key stands.

`tomllib` gives values without places, and an error without a place sends the
reader searching. This walks a text that `tomllib` has accepted, so it may be
simple: it only has to tell keys from what stands in strings, comments and brackets.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
# The pieces of a value in which a bracket or a line's end means nothing, or what it always means.
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'[^'\n]*'|"
    r"#[^\n]*|[\[\]{}]|\n|[^\"'#\[\]{}\n]+",
    re.DOTALL,
)


class _Walk:
    """One pass over the text. `prefix` is the table that keys belong to at this point."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.prefix: Path = ()
        self._tables: dict[Path, int] = {}
        self._counted_to = 0
        self._line = 1

    def run(self) -> None:
        while self._skip(_BLANK) < len(self.text):
            if self.text[self.at] == "[":
                self._header()
            else:
                self._pair()

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line

    def _key(self) -> list[str]:
        parts = []
        while match := _PART.match(self.text, self._skip(_SPACE)):
            self.at = match.end()
            part = match[0]
            parts.append(part[1:-1] if part[0] in "\"'" else part)
            if self.text[self._skip(_SPACE) : self.at + 1] != ".":
                break
            self.at += 1
        return parts

    def _header(self) -> None:
        line = self._line_here()
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        parts = self._key()
        self.at += brackets
        path = self._inside_newest(parts[:-1]) + tuple(parts[-1:])
        if brackets == 2:
            self._tables[path] = self._tables.get(path, -1) + 1
            self.lines.setdefault(path, line)
        self.prefix = self._newest(path)
        self.lines.setdefault(self.prefix, line)

    def _newest(self, path: Path) -> Path:
        return (*path, self._tables[path]) if path in self._tables else path

    def _inside_newest(self, parts: list[str]) -> Path:
        """TOML: a table under an array of tables belongs to the array's newest one."""
        path: Path = ()
        for part in parts:
            path = self._newest((*path, part))
        return path

    def _pair(self) -> None:
        line = self._line_here()
        path = self.prefix
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1
        self._value()

    def _value(self) -> None:
        depth = 0
        while match := _PIECE.match(self.text, self.at):
            piece = match[0]
            if piece == "\n" and depth == 0:
                return
            self.at = match.end()
            depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        # Nothing fits at the end of the text, or in one that tomllib would have refused.
        self.at = len(self.text)


class TomlLines:
    """Where things stand in `text`, which `tomllib` accepts."""

    def __init__(self, text: str) -> None:
        walk = _Walk(text)
        walk.run()
        self._lines = walk.lines

    def of(self, *path: str | int) -> int:
        """The line, from 1, of a key or table, or of the nearest one it stands in."""
        for length in range(len(path), 0, -1):
            if (line := self._lines.get(path[:length])) is not None:
                return line
        return 1
