"""Maps that were computed once: kept, continued where a job stopped, made anew for other makers, and read as they were."""

import json

import numpy as np
import pytest

from mammoclip_jax.data.store.map_files import INDEX, MapFiles
from mammoclip_jax.errors import UserError

KEYS = [(0, 3), (0, 5), (1, 3), (1, 4)]
SHAPES = {"late": ((2, 1, 3), "float32"), "early": ((4, 2, 1), "float16")}


def map_of(stage, key):
    shape, dtype = SHAPES[stage]
    return np.random.default_rng([*key, len(stage)]).normal(size=shape).astype(dtype)


class Maker:
    """Two at a time; stops before the row `until`."""

    def __init__(self, until=99):
        self.until, self.asked = until, []

    def __call__(self, keys):
        for start in range(0, len(keys), 2):
            if KEYS.index(keys[start]) >= self.until:
                raise KeyboardInterrupt
            self.asked += keys[start : start + 2]
            yield {stage: np.stack([map_of(stage, key) for key in keys[start : start + 2]]) for stage in SHAPES}


def test_maps_are_those_that_were_computed(tmp_path):
    maps = MapFiles(tmp_path / "maps")
    assert maps.write("f", KEYS, SHAPES, Maker()) == 4
    for key in KEYS:
        found = maps.of(key)
        for stage, (_, dtype) in SHAPES.items():
            assert found[stage].dtype == dtype
            np.testing.assert_array_equal(found[stage], map_of(stage, key))
    assert maps.size() == 6 * 4 + 8 * 2
    with pytest.raises(UserError, match=r"no map of an image that was drawn \(data set 1, row 5\)"):
        maps.of((1, 5))


def test_a_job_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        MapFiles(tmp_path).write("f", KEYS, SHAPES, Maker(until=2))
    rest = Maker()
    assert MapFiles(tmp_path).write("f", KEYS, SHAPES, rest) == 2 and rest.asked == KEYS[2:]
    np.testing.assert_array_equal(MapFiles(tmp_path).of(KEYS[0])["late"], map_of("late", KEYS[0]))
    assert MapFiles(tmp_path).write("f", KEYS, SHAPES, Maker(until=0)) == 0


@pytest.mark.parametrize("change", ["fingerprint", "keys", "shapes", "file", "index"])
def test_what_is_not_the_same_is_made_anew(tmp_path, change):
    MapFiles(tmp_path).write("f", KEYS, SHAPES, Maker())
    made_by, keys, shapes = "f", KEYS, SHAPES
    if change == "fingerprint":
        made_by = "g"
    if change == "keys":
        keys = KEYS[:3]
    if change == "shapes":
        shapes = SHAPES | {"early": ((4, 2, 1), "float32")}
    if change == "file":
        path = tmp_path / "late.maps"
        path.write_bytes(path.read_bytes()[:-4])
    if change == "index":
        (tmp_path / INDEX).write_text(json.dumps({"done": 4})[:-1])
    assert MapFiles(tmp_path).write(made_by, keys, shapes, Maker()) == len(keys)
    np.testing.assert_array_equal(MapFiles(tmp_path).of(KEYS[2])["late"], map_of("late", KEYS[2]))
