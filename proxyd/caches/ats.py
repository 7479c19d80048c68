"""Apache Traffic Server 9, refreshed in two ways. The settings that it needs stand in `ats/`.

    url ──► PURGE, a request
    dir, regex, drop ──► a rule of its plugin regex_revalidate, where `rules` is set (`ats_rules.py`)

A rule finds objects by their `Date`, which says when their origin made the answer. So it finds also what
Traffic Server was just fetching, and stores only when the rule holds already. But it is only as good as the
origins' clocks: what comes from one that is ahead by more than `rules_skew_s` may not be found, and what
comes with an older `Date` than the rule (from another cache, which kept it) is fetched anew at each visit.
"""

from __future__ import annotations

from proxyd.caches.ats_rules import RULE_ALL, RULE_BELOW, RULE_MATCHING, pattern_fault
from proxyd.caches.base import LOOK_ONLY_IF_CACHED, NOT_YET, PREFETCH, CacheKind, Deed, LocalDeed
from proxyd.errors import BadTarget
from proxyd.targets import split_directory, split_pattern

_HINTS = {
    403: "allow PURGE for this agent's address in ip_allow.yaml",
    405: "allow PURGE for this agent's address in ip_allow.yaml",
}
# 404: it was not in the cache, which is what was asked for.
_PURGE = Deed(method=b"PURGE", good=frozenset({200, 404}), hints=_HINTS)
_ONE_BY_ONE = "without a file of rules (rules) this agent can ask Traffic Server for single URLs only"


class PatternRule(LocalDeed, frozen=True):
    """A rule that stands in a target."""

    def render(self, host: bytes, path: bytes) -> bytes:
        """Refuses what must not come to PCRE. Raises: BadTarget."""
        if fault := pattern_fault(path.decode("ascii")):
            raise BadTarget(fault)
        return super().render(host, path)


ATS = CacheKind(
    name="ats",
    deeds={"url": _PURGE, "prefetch": PREFETCH},
    refused={"dir": _ONE_BY_ONE, "regex": _ONE_BY_ONE, "tag": NOT_YET.format("tag")},
    look=LOOK_ONLY_IF_CACHED,
    no_drop="without a file of rules (rules) nothing tells Traffic Server to drop all it holds",
)

ATS_RULES = CacheKind(
    name="ats",
    deeds={
        "url": _PURGE,
        "dir": LocalDeed(
            method=RULE_BELOW,
            good=frozenset(),
            sweeps=True,
            split=split_directory,
            exact=False,
            certain=True,
            note="a rule of `regex_revalidate`; one load for all that wait",
        ),
        "regex": PatternRule(
            method=RULE_MATCHING,
            good=frozenset(),
            sweeps=True,
            split=split_pattern,
            exact=False,
            certain=True,
            note="a rule; no group may be repeated",
        ),
        "prefetch": PREFETCH,
    },
    refused={"tag": NOT_YET.format("tag")},
    drop=LocalDeed(
        method=RULE_ALL, good=frozenset(), sweeps=True, exact=False, note="a rule that finds everything"
    ),
    look=LOOK_ONLY_IF_CACHED,
)


def ats_kind(*, rules: bool) -> CacheKind:
    """The kind of a Traffic Server with these settings."""
    return ATS_RULES if rules else ATS
