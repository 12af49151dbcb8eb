"""One set of phantoms for all of the folder; tests must not change it."""

import pytest
from small_phantoms import prepared


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Eight images, each with a mass and a cluster of calcifications."""
    return prepared(tmp_path_factory.mktemp("regions"), mass_prevalence=1.0, calcification_prevalence=1.0)
