"""What all connections that the project opens to a lake share."""

from __future__ import annotations

from pathlib import Path

from loaders.settings import Settings
from market_data import lake


def test_no_connection_plans_an_asof_join_as_a_loop(tmp_path: Path) -> None:
    """Nor does a cursor, as dbt uses them."""
    settings = Settings(raw=str(tmp_path / "raw"), lake=str(tmp_path / "lake.sqlite"), lake_data=str(tmp_path / "lake"))
    asked = "select current_setting('asof_loop_join_threshold')"
    with lake.open_for_writing(settings) as head:
        assert head.cursor().execute(asked).fetchone() == (0,)
    with lake.open_version(settings, None) as reader:
        assert reader.execute(asked).fetchone() == (0,)
