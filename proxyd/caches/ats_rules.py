"""Rules for the plugin regex_revalidate of a Traffic Server. This blocks: it runs in threads.

A rule is a line: a regular expression, the time until which it holds, and MISS. An object that it fits is as
if it were not there, if its `Date` is not later than the rule's *epoch*: the time at which the plugin read
the rule first, in whole seconds. What is fetched later is served. So for all that waits:

    read remap.config ─► write the file of rules ─► traffic_ctl config reload ─► the plugin's state file
                                                                                 shows them: done

What the plugin does (9.2; read in its source, and seen), and what follows:

- It reads the file if that is *younger by a whole second* than when it was read last: so the time of the file
  is set by us, a second later than before at least.
- It gives a rule that it knows a new epoch only if its expiry is another one: so none is ever used again.
- It keeps what is in the file no more until it has expired: so a rule that is not needed any more is written
  once more, with an expiry that is near (`RETIRE_S`).
- It takes lines of up to 2,047 bytes, and the rest of a longer one for a line by itself: so none is longer.
- It drops what its PCRE does not compile, without a word: so each rule is looked for in its state. A line of
  ours that finds nothing (`MARK`) shows which version of the file that is of.
- It writes its state, and right after that goes over to it. So that is looked at twice, some ms apart.
- Epoch and `Date` are whole seconds of two clocks. An origin's may be ahead by `skew_s`: where it could be in
  the next second by that, the load waits for this second's end.
- It is compared with the URL after remap.config (`ats_remap.py`).
- At a start it reads both files, and rules have the epochs again that they had.

Nothing breaks out of a rule. Hosts and directories are quoted. A pattern is one by itself to RE2, without
white space, and stands in a group. PCRE is not as good-natured as RE2: it goes deeper with each repetition
of a group, until its stack is used up. So groups may not be repeated, and the steps are bounded: an object
whose URL takes more is not found.

What each fault means: nothing is reported done that the state file does not show. What was written stays in
the file, and holds from the next load on: a rule too many, which does no harm.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from proxyd.caches.ats_remap import BadRemap, NotMapped, Remap, Site
from proxyd.hands import TAKE_ALONG, Pulse, TakeAlong, Work

RULE_BELOW = b"RULE-BELOW"
RULE_MATCHING = b"RULE-MATCHING"
RULE_ALL = b"RULE-ALL"

HEAD = "# Written by proxyd at each refresh; nothing else may stand here. See docs/agent.md.\n"
MARK = "^refreshd:"
ALL = "^."
# With two times behind it, in the state file, it stays below the 2,047 bytes of a line.
RULE_MAX_CHARS = 1900
# Far more than an honest pattern takes at a URL: 5 ms.
_BOUNDS = "(*LIMIT_RECURSION=1000)(*LIMIT_MATCH=1000000)"
# Longer than a load takes; until then a rule that is not needed any more costs a comparison a hit.
RETIRE_S = 60
FILE_MAX_BYTES = 8 << 20

# Measured: 20 ms; a restart of Traffic Server takes 5 s.
RELOAD_MAX_S = 5.0
LOADED_MAX_S = 15.0
AGAIN_S = 0.5
POLL_S = 0.01
SETTLE_S = 0.02
OUTPUT_MAX_CHARS = 200

_LINE = re.compile(r"(\S+) ([0-9]{1,10}) MISS").fullmatch
_STATE_LINE = re.compile(r"(\S+) ([0-9]{1,10}) ([0-9]{1,10}) (?:MISS|STALE)").fullmatch
_ADVICE = 'see docs/agent.md, "Directories and patterns"'


class AtsRules(msgspec.Struct, frozen=True):
    """Where an agent and a Traffic Server's regex_revalidate meet."""

    path: str
    state: str
    remap: str
    reload: tuple[str, ...]
    max: int
    keep_s: int
    skew_s: float


class _Failed(Exception):
    """Nothing came of it; the text says what to do."""


class RuleFile:
    """The hands of a `LocalClient` that has rules written and loaded."""

    def __init__(self, rules: AtsRules) -> None:
        self._rules = rules

    def act(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | TakeAlong | None]:
        """All that waits goes into one load."""
        return [TAKE_ALONG] * len(works)

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        """Writes the rules of all these, has them loaded, and sees that they are."""
        try:
            remap = self._read_remap()
            wanted = [self._rules_of(work, remap) for work in works]
            book = Book.parse(self._read(self._rules.path, missing=""), int(time.time()))
            refused = book.add(
                [rule for rules in wanted if not isinstance(rules, str) for rule in rules],
                self._rules.keep_s,
                self._rules.max,
            )
            loaded: frozenset[str] = frozenset()
            if book.fresh:
                began = self._wait_for_clocks(pulse)
                self._write(book)
                end = time.monotonic() + LOADED_MAX_S
                self._reload(end, pulse)
                loaded = self._wait_loaded(book, began, end, pulse)
        except _Failed as error:
            return [str(error)] * len(works)
        except OSError as error:
            return [self._explain(error)] * len(works)
        return [self._result(rules, book, refused, loaded) for rules in wanted]

    def _result(
        self, rules: list[str] | str, book: Book, refused: frozenset[str], loaded: frozenset[str]
    ) -> str | None:
        if isinstance(rules, str):
            return rules
        if not refused.isdisjoint(rules):
            return (
                f"{self._rules.path} holds {self._rules.max} rules (rules_max); refresh a directory above, "
                "whose rule takes the place of all below it"
            )
        if any(book.stands_for(rule) not in loaded for rule in rules):
            return "Traffic Server did not take the rule: its PCRE does not know all of it"
        return None

    def _wait_for_clocks(self, pulse: Pulse) -> int:
        """Waits until no origin is in a later second than it was when this began; which that is, Unix time.

        Origins' clocks may be ahead by `skew_s`. If that is little, there is seldom anything to wait for.
        """
        latest = int(time.time() + self._rules.skew_s)
        while (left_s := latest - time.time()) > 0 and not pulse.stop.is_set():
            pulse.beats += 1
            pulse.stop.wait(min(left_s, 0.1))
        return latest

    # ── what is wanted ────────────────────────────────────────────────────────────────────

    def _read_remap(self) -> Remap:
        try:
            return Remap.parse(self._read(self._rules.remap))
        except BadRemap as error:
            raise _Failed(f"{self._rules.remap}: {error}") from None

    def _rules_of(self, work: Work, remap: Remap) -> list[str] | str:
        """The rules for a work, or why there are none."""
        host, path = work.host.decode("ascii"), work.path.decode("ascii")
        try:
            if work.verb == RULE_ALL:
                return [ALL]
            if work.verb == RULE_BELOW:
                rules = [_rule(site, f"/{_quote(to)}") for site, to in remap.of_directory(host, path)]
            else:
                rules = [_BOUNDS + _rule(site, f"(?:{path})$") for site in remap.of_host(host)]
        except NotMapped as error:
            return f"{self._rules.remap}: {error}"
        if any(len(rule) > RULE_MAX_CHARS for rule in rules):
            return f"its rule would have more than {RULE_MAX_CHARS} characters; refresh a directory above"
        return rules

    # ── files ─────────────────────────────────────────────────────────────────────────────

    def _read(self, path: str, *, missing: str | None = None) -> str:
        """Raises: OSError, _Failed."""
        try:
            with open(path, "rb") as file:
                raw = file.read(FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            if missing is None:
                raise
            return missing
        if len(raw) > FILE_MAX_BYTES:
            raise _Failed(f"{path}: larger than {FILE_MAX_BYTES} bytes; is this the right file?")
        return raw.decode("utf-8", "replace")

    def _write(self, book: Book) -> None:
        """Whoever reads it has it whole, and never takes it for one that was read before. Raises: OSError."""
        path = self._rules.path
        now = int(time.time())
        try:
            now = max(now, int(os.stat(path).st_mtime) + 1)
        except FileNotFoundError:
            pass
        fresh = f"{path}.{os.getpid()}.new"
        try:
            with open(fresh, "w") as file:
                file.write(book.text())
                file.flush()
                # Traffic Server reads it as its own user.
                os.fchmod(file.fileno(), 0o644)
                os.utime(file.fileno(), (now, now))
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(fresh).unlink(missing_ok=True)
            raise

    def _explain(self, error: OSError) -> str:
        hint = ""
        if isinstance(error, PermissionError):
            hint = f" (the agent's user may not; {_ADVICE})"
        elif isinstance(error, FileNotFoundError):
            hint = f" ({_ADVICE})"
        return f"{error.filename or self._rules.path}: {error.strerror or error}{hint}"

    # ── Traffic Server ────────────────────────────────────────────────────────────────────

    def _reload(self, end: float, pulse: Pulse) -> None:
        """Has it read its files; one that restarts is asked again. Raises: _Failed."""
        while error := self._ask_to_reload(pulse):
            if time.monotonic() + AGAIN_S > end or pulse.stop.is_set():
                raise _Failed(error)
            pulse.beats += 1
            pulse.stop.wait(AGAIN_S)

    def _ask_to_reload(self, pulse: Pulse) -> str | None:
        """What was wrong, if that may pass. Raises: _Failed."""
        command = self._rules.reload
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise _Failed(f"reload: {command[0]}: {error.strerror}") from None
        end = time.monotonic() + RELOAD_MAX_S
        with process:
            while True:
                pulse.beats += 1
                try:
                    raw, _ = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if pulse.stop.is_set() or time.monotonic() > end:
                        process.kill()
                        process.communicate()
                        text = f"reload: {command[0]} has not ended within {RELOAD_MAX_S:g} s"
                        raise _Failed(text) from None
        if process.returncode:
            lines = [line for line in raw.decode(errors="replace").split("\n") if line.strip()]
            said = lines[-1][-OUTPUT_MAX_CHARS:] if lines else "it said nothing"
            return (
                f"reload: {command[0]} ended with {process.returncode} (does traffic_manager run, and may "
                f"the agent's user ask it?): {said}"
            )
        return None

    def _wait_loaded(self, book: Book, began: int, end: float, pulse: Pulse) -> frozenset[str]:
        """The rules of ours that the plugin has; all that it will take. Raises: _Failed, OSError."""
        before: str | None = None
        while True:
            pulse.beats += 1
            text = self._read(self._rules.state, missing="")
            if text == before:
                loaded = _parse_state(text)
                mark = loaded.get(MARK, (0, 0))
                if mark[0] >= began and mark[1] == book.expiries[MARK]:
                    return frozenset(
                        rule
                        for rule in book.fresh
                        if rule in loaded
                        and loaded[rule][0] >= began
                        and loaded[rule][1] == book.expiries[rule]
                    )
            before = text
            if time.monotonic() > end or pulse.stop.is_set():
                raise _Failed(
                    f"{self._rules.state} does not show the rules {LOADED_MAX_S:g} s after a reload: is it "
                    f"the --state-file of regex_revalidate, and may Traffic Server write it? ({_ADVICE})"
                )
            pulse.stop.wait(SETTLE_S if MARK in text else POLL_S)


class Book:
    """The rules that stand in the file, and those that are to. Pure: `now` is Unix time, s."""

    def __init__(self, expiries: dict[str, int], now: int) -> None:
        self._now = now
        self.expiries = expiries
        """By rule, until when it holds, Unix time."""
        self.fresh: set[str] = set()
        """Those that are to be loaded anew."""
        self._stands_for: dict[str, str] = {}

    @classmethod
    def parse(cls, text: str, now: int) -> Book:
        """Reads a file of ours. Raises: _Failed for one that is not."""
        expiries: dict[str, int] = {}
        for line in text.splitlines():
            if match := _LINE(line):
                expiries[match[1]] = int(match[2])
            elif line.strip() and line != HEAD.strip():
                raise _Failed("the file of rules has lines that are not this agent's; give it one of its own")
        # What has expired the plugin has forgotten, or will at this load.
        return cls({rule: expiry for rule, expiry in expiries.items() if expiry > now}, now)

    def add(self, rules: Iterable[str], keep_s: int, at_most: int) -> frozenset[str]:
        """Adds rules, which take the places of what they include; those for which there is no room."""
        self._stands_for = _widen(rules)
        live = {rule for rule, expiry in self.expiries.items() if expiry > self._now + RETIRE_S} - {MARK}
        before = sorted(live)
        # One that was never written before: the plugin may have any of those, and would keep its epoch.
        expiry = max(self._now + max(keep_s, RETIRE_S + 1), self.expiries.get(MARK, 0) + 1)
        refused: set[str] = set()
        for rule in dict.fromkeys(self._stands_for.values()):
            below = _included(rule, before)
            if len(live) - len(below) >= at_most:
                refused.add(rule)
                continue
            live.difference_update(below)
            for each in below:
                self.expiries[each] = self._now + RETIRE_S
            live.add(rule)
            self.expiries[rule] = expiry
            self.fresh.add(rule)
        if self.fresh:
            self.expiries[MARK] = expiry
        return frozenset(rule for rule, by in self._stands_for.items() if by in refused)

    def stands_for(self, rule: str) -> str:
        """The rule that does what this would have done."""
        return self._stands_for.get(rule, rule)

    def text(self) -> str:
        """The file."""
        return HEAD + "".join(f"{rule} {expiry} MISS\n" for rule, expiry in self.expiries.items())


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern that RE2 takes, here."""
    if _GROUP_REPEATED(_ATOMS.sub("x", pattern)):
        return (
            "a pattern that repeats a group, (…)* say, could have Traffic Server's PCRE use up its stack; "
            "[…]* and .* may be repeated"
        )
    return None


_ATOMS = re.compile(r"\\.|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\]")
_GROUP_REPEATED = re.compile(r"\)[*+{]").search


def _includes(rule: str, other: str) -> bool:
    """Whether a rule finds all that another finds, as can be told at a glance."""
    return rule in (ALL, other) or (not rule.startswith(_BOUNDS) and other.startswith(rule))


def _widen(rules: Iterable[str]) -> dict[str, str]:
    """For each the one among them that includes it, and that no other does."""
    wanted = sorted(set(rules))
    if ALL in wanted:
        return dict.fromkeys(wanted, ALL)
    found: dict[str, str] = {}
    widest = ""
    # A directory comes right before what lies below it.
    for rule in wanted:
        if not widest or not _includes(widest, rule):
            widest = rule
        found[rule] = widest
    return found


def _included(rule: str, ordered: list[str]) -> list[str]:
    """Those that a rule includes, of some that are sorted."""
    first = 0 if rule == ALL else bisect.bisect_left(ordered, rule)
    return list(itertools.takewhile(lambda each: _includes(rule, each), ordered[first:]))


def _rule(site: Site, path: str) -> str:
    port = f":{site.port}" if site.port not in ("", "80", "443") else "(?::80|:443)?"
    return f"^(?i:https?://{_quote(site.host)}){port}{path}"


def _quote(text: str) -> str:
    """So that PCRE takes each character for itself."""
    return re.sub(r"[^A-Za-z0-9_/]", r"\\\g<0>", text)


def _parse_state(text: str) -> dict[str, tuple[int, int]]:
    """By rule: its epoch and its expiry."""
    matches = (_STATE_LINE(line) for line in text.splitlines())
    return {match[1]: (int(match[2]), int(match[3])) for match in matches if match}
