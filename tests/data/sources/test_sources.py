"""The table of adapters."""

import pytest

from mammoclip_jax.data import sources
from mammoclip_jax.errors import UserError


def test_every_name_in_the_table_has_a_reader():
    assert all(callable(sources.reader(name)) for name in sources.SOURCES)
    with pytest.raises(UserError, match="Did you mean 'mias'"):
        sources.reader("miaz")
