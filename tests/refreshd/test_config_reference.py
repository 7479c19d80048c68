"""What is written about the settings is made from their table."""

from pathlib import Path

from refreshd import settings
from refreshd.config import parse

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == settings.reference(), (
        "run: python -m refreshd.settings > docs/configuration.md"
    )


def test_every_setting_is_in_the_reference_with_its_range() -> None:
    reference = settings.reference()
    for row in settings.SETTINGS:
        assert f"| `{row.key}` | {row.kind.wanted} | " in reference
        assert row.doc in reference


def test_the_example_says_the_defaults() -> None:
    text = (ROOT / "docs/refreshd.example.toml").read_text()
    assert parse(text) == parse("")


def test_all_of_the_example_is_valid() -> None:
    lines = (ROOT / "docs/refreshd.example.toml").read_text().splitlines()
    text = "\n".join(line.removeprefix("#: ") for line in lines)
    config = parse(text, {"CREDENTIALS_DIRECTORY": "/run/c"})
    assert len(config.keys) == 1
    assert len(config.proxies) == 2
