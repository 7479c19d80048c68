"""What a verb is given: its arguments, a way to the engine, and where to print."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from wire.client import Client

# Of one request, with retries; waiting for a task has a deadline of its own.
REQUEST_TIMEOUT_S = 30.0


class Context:
    """One run of refreshctl."""

    def __init__(self, args: argparse.Namespace, socket: str) -> None:
        self.args = args
        self.socket = socket

    def client(self) -> Client:
        """A new connection. The master keeps it only for verbs of its own, so these have one for them."""
        return Client(f"unix:{self.socket}", timeout_s=REQUEST_TIMEOUT_S, patient=False)

    @property
    def json(self) -> bool:
        """Whether a program reads the output."""
        return bool(self.args.json)

    def show(self, document: Any, text: str) -> None:
        """Prints the document under --json, else the text."""
        if self.json:
            # Loaded only here; the stdlib's is always there, and one document needs no speed.
            import json

            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        sys.stdout.write(text)

    def complain(self, message: str) -> None:
        """One line on stderr, about something that does not end the command."""
        print(f"refreshctl: {' '.join(message.split())}", file=sys.stderr)
