"""The package gives the numbers of ../shared/fixtures; and the check finds what is wrong, missing or not there."""

import check_fixtures
import numpy as np
import pytest
from fixture_checks import FILES, Fixture, compare, mama

from mammoclip_jax.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_array_in_both_precisions_on_1_and_8_devices(name, fixtures):
    found = check_fixtures.check(fixtures / name)
    least = 1 if name == "ladder_planted.npz" else 30  # of the former one array alone is a result
    assert len(found) > least and not [str(one) for one in found if one.beyond]


def test_differences_are_found_and_defective_forms_must_differ(tmp_path):
    np.savez(
        tmp_path / "mama.npz", L_vt=1.0, L_vv=2.0, sla_a_loss=3.0, L_vt_local4=4.0, L_vv_local4=5.0, pool_released=6.0
    )
    found = compare(
        mama,
        Fixture(tmp_path / "mama.npz", np.float64),
        {
            "L_vt": 1 + 1e-11,
            "L_vv": 2.1,
            "sla_a_loss": np.nan,
            "L_vt_local4": 4.5,
            "L_vv_local4": 5.0,
            "pool_released": np.nan,
        },
    )
    assert [one.array for one in found if one.beyond] == ["L_vv", "sla_a_loss", "L_vv_local4", "pool_released"]
    assert str(found[0]) == "L_vt fp64: 1.0e-11 (at most 1e-10)"


def test_an_array_that_is_missing_is_an_error_and_a_file_is_not(tmp_path, capsys):
    assert check_fixtures.main(tmp_path) == 1
    assert capsys.readouterr().out == "0 compared, 0 beyond tolerance\n"
    np.savez(tmp_path / "mama.npz", v=np.ones((2, 2)))
    with pytest.raises(UserError, match="mama.npz has no array 'head_0_weight'"):
        check_fixtures.main(tmp_path)
