"""What a Traffic Server's remap.config makes of a directory or a pattern. Pure.

regex_revalidate compares its rules with the URL as it is *after* remap.config, so a rule for
`http://www.example.com/news/` has to be one for `http://origin.example.com/news/`. Of the file, what is read
is what says so: lines with `map`. A line that maps in a way that cannot be followed makes the file useless
as a whole: a rule that finds nothing would be reported done.

Where several lines may be meant (a host and no host, a path and one below it), all are taken: a rule too
many has an object fetched once more, a rule too few leaves an old one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_URL = re.compile(r"(?:([A-Za-z]+)://)?(\[[0-9A-Fa-f:.]*\]|[^/:\[\]]*)(?::([0-9]*))?(?:/(.*))?").fullmatch
# What answers by itself, or is about answers: nothing of it is cached under another URL.
_NO_MAP = frozenset(
    {"redirect", "redirect_temporary", "regex_redirect", "regex_redirect_temporary", "reverse_map"}
)
_MAPS = frozenset({"map", "map_with_recv_port"})
_REWRITES = ("@plugin=regex_remap", "@plugin=tslua")
_FOREIGN = ("tunnel", "ftp")


class BadRemap(ValueError):
    """A remap.config that cannot be followed."""


class NotMapped(ValueError):
    """Nothing in it maps this, or not so that a rule could say it."""


class Site(msgspec.Struct, frozen=True):
    """Where URLs lead: a host, and a port if it has one of its own."""

    host: str
    port: str


class Map(msgspec.Struct, frozen=True):
    """One line. Paths are without the slash at their beginning; an empty `host` stands for all hosts."""

    host: str
    path: str
    site: Site
    to_path: str

    def lead(self, path: str) -> str:
        """Where a path below it leads, as Traffic Server 9 does it: it drops a slash of two at the start."""
        rest = path[len(self.path) :]
        gap = "/" if rest and not self.path and self.to_path and not self.to_path.endswith("/") else ""
        return (self.to_path + gap + rest).removeprefix("/")


class Remap:
    """A file that was read."""

    def __init__(self, maps: list[Map]) -> None:
        self._maps: dict[str, list[Map]] = {}
        for each in maps:
            self._maps.setdefault(each.host, []).append(each)

    @classmethod
    def parse(cls, text: str) -> Remap:
        """Raises: BadRemap, which names the line."""
        maps: list[Map] = []
        for number, line in _lines(text):
            try:
                maps += _parse_line(line)
            except BadRemap as error:
                raise BadRemap(f"line {number}: {error}") from None
        return cls(maps)

    def of_directory(self, host: str, path: str) -> list[tuple[Site, str]]:
        """Where all that begins with `path` leads. Raises: NotMapped."""
        path = path.removeprefix("/")
        found: list[tuple[Site, str]] = []
        for maps in self._of_host(host):
            above = [each for each in maps if path.startswith(each.path)]
            found += [(each.site, each.lead(path)) for each in above]
            found += [
                (each.site, each.to_path) for each in maps if each.path.startswith(path) and each not in above
            ]
            if above:
                break
        return self._some(host, found)

    def of_host(self, host: str) -> list[Site]:
        """Where a host leads, path by path the same. Raises: NotMapped, where a path becomes another."""
        found: list[tuple[Site, str]] = []
        for maps in self._of_host(host):
            for each in maps:
                if each.path.rstrip("/") != each.to_path.rstrip("/"):
                    raise NotMapped(
                        f"it maps /{each.path} of {host} to another path, and a pattern cannot follow"
                    )
                found.append((each.site, ""))
            if any(not each.path for each in maps):
                break
        return [site for site, _ in self._some(host, found)]

    def _of_host(self, host: str) -> Iterator[list[Map]]:
        """The lines of a host, then those of all hosts."""
        name = re.sub(r":[0-9]*$", "", host.lower())
        yield self._maps.get(name, [])
        yield self._maps.get("", [])

    def _some(self, host: str, found: list[tuple[Site, str]]) -> list[tuple[Site, str]]:
        if not found:
            raise NotMapped(f"it maps no {host}")
        return list(dict.fromkeys(found))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    whole = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.endswith("\\"):
            whole += line[:-1] + " "
            continue
        whole, line = "", whole + line
        if line and not line.startswith("#"):
            yield number, line


def _parse_line(line: str) -> list[Map]:
    word, *rest = line.split()
    word = word.lower()
    if word == ".include":
        raise BadRemap(".include is not followed; give the agent one file with all map lines (remap)")
    if word.startswith(".") or word in _NO_MAP:
        return []
    if word not in _MAPS:
        raise BadRemap(f"{word!r} cannot be followed; give the agent a file with map lines instead (remap)")
    if plugin := [each for each in rest if each.startswith(_REWRITES)]:
        raise BadRemap(
            f"what {plugin[0]!r} makes of a URL is not known; give the agent a file without it (remap)"
        )
    source, target = (_URL(each) for each in [*rest, "", ""][:2])
    if source is None or target is None or not target[2]:
        raise BadRemap(f"{line!r} is not map FROM TO")
    if (source[1] or "").lower() in _FOREIGN or (target[1] or "").lower() in _FOREIGN:
        return []
    site = Site(target[2].lower(), target[3] or "")
    return [Map(source[2].lower(), source[4] or "", site, target[4] or "")]
