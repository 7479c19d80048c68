"""What a DASH manifest (MPD, ISO/IEC 23009-1) names: the segments of every representation. Pure.

    MPD ─► Period ─► AdaptationSet ─► Representation      BaseURL is resolved on the way down,
                                                          SegmentTemplate, -List and -Base are inherited

Of several BaseURLs the first counts; the others are the same elsewhere. Not expanded, and said so:
`xlink:href`, `$SubNumber$`, and a live manifest with neither SegmentTimeline nor SegmentList, which lists
nothing: players compute from the clock what is there.

XML is read by expat; a DOCTYPE is refused, and with it every entity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from proxyd.prefetch.errors import BadPlaylist

# Real manifests are 8 deep.
DEPTH_MAX = 32

_DURATION = re.compile(
    r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d*)?)S)?)?"
).fullmatch
_DURATION_S = (365 * 86_400, 30 * 86_400, 86_400, 3600, 60, 1)
_IDENTIFIER = re.compile(r"\$(?:(RepresentationID|Number|Time|Bandwidth|SubNumber)(?:%0(\d{1,2})d)?)?\$")
_DIGITS = re.compile(r"\d{1,18}").fullmatch
SEGMENT_ELEMENTS = ("SegmentTemplate", "SegmentList", "SegmentBase")

Reference = tuple[tuple[str, ...], str]
"""BaseURLs from the outermost to the innermost, and a reference to be resolved against them."""


def list_references(text: bytes) -> Iterator[Reference]:
    """The references, in order. Raises: BadPlaylist, maybe after some."""
    mpd = _read_xml(text)
    if mpd.tag != "MPD":
        raise BadPlaylist(f"its outermost element is {mpd.tag[:40]!r}, wanted MPD")
    bases = _add_base((), mpd)
    periods = mpd.findall("Period")
    for number, period in enumerate(periods):
        _refuse_links(period)
        later = periods[number + 1] if number + 1 < len(periods) else None
        duration_s = _period_s(mpd, period, later)
        live = mpd.get("type") == "dynamic"
        for adaptation in period.findall("AdaptationSet"):
            _refuse_links(adaptation)
            for representation in adaptation.findall("Representation"):
                scope = _Scope([period, adaptation, representation], bases, duration_s, live=live)
                yield from scope.list_references()


class _Scope:
    """One representation, and what it inherits."""

    def __init__(
        self, elements: list[Element], bases: tuple[str, ...], duration_s: float | None, *, live: bool
    ) -> None:
        for element in elements:
            bases = _add_base(bases, element)
        self._bases = bases
        self._elements = elements
        self._duration_s = duration_s
        self._live = live
        self._id = elements[-1].get("id", "")
        self._bandwidth = elements[-1].get("bandwidth", "")

    def list_references(self) -> Iterator[Reference]:
        for name in SEGMENT_ELEMENTS:
            # The innermost goes first: what it does not say, those around it do.
            found = [part for element in reversed(self._elements) for part in element.findall(name)[:1]]
            if found:
                for reference in self._list(name, found):
                    yield self._bases, reference
                return
        if self._elements[-1].find("BaseURL") is not None:
            yield self._bases, ""

    def _list(self, name: str, found: list[Element]) -> Iterator[str]:
        if name == "SegmentTemplate":
            yield from self._list_template(found)
            return
        for part in ("Initialization", "RepresentationIndex"):
            if (element := _first(found, part)) is not None and element.get("sourceURL"):
                yield element.get("sourceURL", "")
        if name == "SegmentBase":
            yield ""
            return
        listed = next(
            (element.findall("SegmentURL") for element in found if element.findall("SegmentURL")), []
        )
        for segment in listed:
            # Without a media of its own it is a part of the file that BaseURL names.
            yield segment.get("media", "")

    def _list_template(self, found: list[Element]) -> Iterator[str]:
        initialization = _attribute(found, "initialization")
        if initialization is not None:
            yield self._fill(initialization)
        elif (element := _first(found, "Initialization")) is not None and element.get("sourceURL"):
            yield element.get("sourceURL", "")
        media = _attribute(found, "media")
        if media is None:
            return
        first = _number(_attribute(found, "startNumber"), 1)
        last = _attribute(found, "endNumber")
        for number, time in enumerate(self._times(found), first):
            if last is not None and number > _number(last, 0):
                return
            yield self._fill(media, number, time)

    def _times(self, found: list[Element]) -> Iterator[int]:
        """When each segment begins, in units of the timescale."""
        timescale = max(1, _number(_attribute(found, "timescale"), 1))
        offset = _number(_attribute(found, "presentationTimeOffset"), 0)
        end = None if self._duration_s is None else offset + self._duration_s * timescale
        timeline = _first(found, "SegmentTimeline")
        if timeline is not None:
            yield from _walk_timeline(timeline.findall("S"), end)
            return
        duration = _number(_attribute(found, "duration"), 0)
        if not duration:
            # One segment, and it is the whole.
            yield offset
            return
        if self._live or end is None:
            raise BadPlaylist(
                "it is live, or tells no duration, and has no SegmentTimeline: it lists nothing"
            )
        for number in range(math.ceil((end - offset) / duration)):
            yield offset + number * duration

    def _fill(self, template: str, number: int | None = None, time: int | None = None) -> str:
        values = {"RepresentationID": self._id, "Bandwidth": self._bandwidth, "Number": number, "Time": time}

        def value(match: re.Match[str]) -> str:
            name, width = match.groups()
            if name is None:
                return "$"
            if (got := values.get(name)) is None:
                raise BadPlaylist(f"${name}$ stands where it has no value")
            return str(got).rjust(int(width), "0") if width and name != "RepresentationID" else str(got)

        return _IDENTIFIER.sub(value, template)


def _walk_timeline(steps: list[Element], end: float | None) -> Iterator[int]:
    time = 0
    for number, step in enumerate(steps):
        time = _number(step.get("t"), time)
        length = _number(step.get("d"), 0)
        if not length:
            raise BadPlaylist("a segment in its SegmentTimeline has no duration")
        repeats = step.get("r", "0")
        if repeats.startswith("-"):
            later = steps[number + 1].get("t") if number + 1 < len(steps) else None
            until = end if later is None else float(_number(later, 0))
            if until is None:
                raise BadPlaylist("its SegmentTimeline repeats to an end that it does not tell")
            count = max(0, math.ceil((until - time) / length))
        else:
            count = _number(repeats, 0) + 1
        for _ in range(count):
            yield time
            time += length


def _first(found: list[Element], name: str) -> Element | None:
    return next((part for element in found for part in element.findall(name)[:1]), None)


def _attribute(found: list[Element], name: str) -> str | None:
    return next((value for element in found if (value := element.get(name)) is not None), None)


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not _DIGITS(text.strip()):
        raise BadPlaylist(f"got {text[:40]!r}, wanted a number")
    return int(text)


def _add_base(bases: tuple[str, ...], element: Element) -> tuple[str, ...]:
    base = element.find("BaseURL")
    text = "" if base is None or base.text is None else base.text.strip()
    return (*bases, text) if text else bases


def _refuse_links(element: Element) -> None:
    if element.get("href") is not None:
        raise BadPlaylist(f"a part of it ({element.tag}) lies elsewhere (xlink:href), which is not expanded")


def _period_s(mpd: Element, period: Element, later: Element | None) -> float | None:
    """How long a period is; None where nothing says it."""
    own = _seconds(period.get("duration"))
    if own is not None:
        return own
    start = _seconds(period.get("start")) or 0.0
    end = _seconds(mpd.get("mediaPresentationDuration") if later is None else later.get("start"))
    return None if end is None else max(0.0, end - start)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = _DURATION(text.strip()[:80])
    if match is None:
        raise BadPlaylist(f"got {text[:40]!r}, wanted a duration as PT1H2M3.4S")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), _DURATION_S, strict=True))


def _read_xml(text: bytes) -> Element:
    """The document, names without their namespaces."""
    parser = expat.ParserCreate(namespace_separator=" ")
    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH_MAX:
            raise BadPlaylist(f"its elements are more than {DEPTH_MAX} deep")
        builder.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def refuse(*_: object) -> None:
        raise BadPlaylist("it has a DOCTYPE, which no manifest needs")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise BadPlaylist(f"not XML: {error}") from None
    return builder.close()


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
