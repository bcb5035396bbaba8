"""Do the cells of the map add up to what the region holds, in pools of any size?"""

from __future__ import annotations

from pegashm.arena import Arena
from pegashm.cache import Cache
from pegashm.exporter.page.occupancy import CELLS_MAX, occupancy
from pegashm.exporter.reading import Reader
from pegashm.units import KIB

from tests.arenas import Shape, temporary_arena
from tests.page.scene import ROOMY, keys, publish


def test_cells_of_a_small_pool(scene: tuple[Arena, Cache]) -> None:
    arena, _ = scene
    reading = Reader(arena.name).read()
    assert reading.survey is not None
    found = occupancy(reading.survey, reading.header, reading.namespaces)
    assert (12, 1, 12) == (found["segment_count"], found["segments_per_cell"], len(found["cells"]))
    assert "absent" == found["cells"][-1][0], "not populated yet"
    ready = {0: 0, 1: 0}
    for _, _, _, _, _, held in found["cells"]:
        for place, nbytes in held:
            ready[place] += nbytes
    assert {0: 20 * 4 * KIB, 1: 5 * 16 * KIB} == ready
    assert 2 * 4 * KIB == sum(cell[3] for cell in found["cells"])
    for row in found["by_stride"]:
        assert row["blocks"] == sum(row[name] for name in ("ready", "claimed", "evicting", "free"))
    by_stride = {row["stride_bytes"]: row for row in found["by_stride"]}
    assert (20, 2) == (by_stride[4 * KIB]["ready"], by_stride[4 * KIB]["claimed"])
    assert 5 == by_stride[16 * KIB]["ready"]


def test_many_segments_share_cells() -> None:
    shape = Shape(segments_per_arena=(CELLS_MAX + 1,))
    with temporary_arena(shape) as arena, Cache.attach(arena.name, namespace=ROOMY) as cache:
        publish(cache, keys(1, 100), 4 * KIB)
        publish(cache, keys(201, 9), 64 * KIB)
        reading = Reader(arena.name).read()
        assert reading.survey is not None
        found = occupancy(reading.survey, reading.header, reading.namespaces)
    assert 2 == found["segments_per_cell"]
    assert CELLS_MAX / 2 + 1 == len(found["cells"])
    held = sum(nbytes for cell in found["cells"] for _, nbytes in cell[5])
    assert (100 * 4 + 9 * 64) * KIB == held
    for _, _, capacity, claimed, evicting, ready in found["cells"]:
        assert claimed + evicting + sum(nbytes for _, nbytes in ready) <= max(capacity, 0)
