"""Wheels that travel in pieces: they come together as they were, or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import wheels
from benchmarks.gpu.plan import CampaignError
from benchmarks.gpu.wheels import join, place, receive, split


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Two wheels in pieces of 1,000 bytes; the larger one is of several."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name, size in (("one", 100), ("two", 4000)):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}.py", f"value = {size}\n".ljust(size))
            archive.writestr(
                f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    manifest = split(sorted(folder.glob("*.whl")), tmp_path / "store", piece_bytes=1000)
    assert len(manifest["pieces"]) > 5
    assert all(each["bytes"] <= 1000 for each in manifest["pieces"].values())
    return tmp_path / "store"


def test_pieces_travel_one_by_one(packed: Path, tmp_path: Path) -> None:
    count = len(wheels.read_manifest(packed)["pieces"])
    here, there, site = tmp_path / "tree", tmp_path / "there", tmp_path / "site"
    for number in range(1, count + 1):
        place(packed, number, here)
        assert len(list(here.iterdir())) == 2
        said = receive(here, there, site)
        assert said.startswith("installed" if number == count else f"{number} of {count} pieces are here")
        assert not list(here.glob("piece-*"))  # one travels at a time
    assert (site / "two.py").read_text().strip() == "value = 4000"
    for path in (tmp_path / "made").glob("*.whl"):
        assert (there / "wheels" / path.name).read_bytes() == path.read_bytes()


def test_damage_is_told(packed: Path, tmp_path: Path) -> None:
    piece = packed / "piece-02"
    intact = piece.read_bytes()
    piece.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(CampaignError, match=r"piece-02 is damaged: .*; send it again"):
        join(packed, tmp_path / "wheels")
    with pytest.raises(CampaignError, match="piece-02 is damaged"):
        receive(place(packed, 2, tmp_path / "tree").parent, tmp_path / "there", tmp_path / "site")
    piece.unlink()
    with pytest.raises(CampaignError, match="piece-02 is absent"):
        join(packed, tmp_path / "wheels")
    with pytest.raises(CampaignError, match="has pieces 1 to"):
        place(packed, 99, tmp_path / "tree")
    with pytest.raises(CampaignError, match="wheels split"):
        receive(tmp_path / "nowhere", tmp_path / "there", tmp_path / "site")


def test_pieces_of_other_wheels_are_dropped(packed: Path, tmp_path: Path) -> None:
    here, there, site = tmp_path / "tree", tmp_path / "there", tmp_path / "site"
    receive(place(packed, 1, here).parent, there, site)
    split([next((tmp_path / "made").glob("one*"))], packed, piece_bytes=4000)
    said = receive(place(packed, 2, here).parent, there, site)
    assert said.startswith("1 of ") and said.endswith("next piece-01")
