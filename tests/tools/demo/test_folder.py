"""The demo's folder: the same each time, empty, never shared."""

from pathlib import Path

from tools.demo.folder import claim


def test_the_folder_is_the_same_and_empty_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        with claim(tmp_path / "run", "demo") as folder:
            assert folder == tmp_path / "run" / "demo"
            assert list(folder.iterdir()) == []
            (folder / "left").touch()


def test_two_at_once_do_not_share(tmp_path: Path) -> None:
    with claim(tmp_path, "demo") as first, claim(tmp_path, "demo") as second, claim(tmp_path, "run") as third:
        assert len({first, second, third}) == 3
        (first / "kept").touch()
        assert second.name.startswith("demo-")
    assert (first / "kept").exists()
