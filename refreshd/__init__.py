"""The engine: accepts tasks, keeps their global state, pushes them to the proxies, collects reports."""

__version__ = "0.1.0"
