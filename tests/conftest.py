"""Eight simulated CPU devices, quick compilation and a cache of it for all tests; the paths of real data, where it is."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile thousands of programs and run each a few times. Without LLVM's optimisations and with the simpler
# emitter of fusions, which jax 0.12 has no more, a program compiles five times faster; what XLA makes of it before
# (partitioning, fusion, layout) stays as users have it. Set before jax is imported, for the processes that tests start too.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jax").startswith("0.10.") else []),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

import jax
import pytest
from budget import Budget
from hypothesis import settings
from live import declare_operators

declare_operators()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", os.path.join(tempfile.gettempdir(), "mammoclip_jax_test_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# The same examples in every run, however slow the machine: what passed on main passes again.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

ROOT = Path(__file__).parent.parent
MAPS = 8_000  # memory maps of a process from which on its compiled programs are let go


def pytest_addoption(parser):
    parser.addoption("--write-seconds", action="store_true", help="write what each file took into tests/seconds.csv")
    parser.addoption("--thorough", action="store_true", help="fuzz and simulate as often as the README says")


def pytest_configure(config):
    config.pluginmanager.register(Budget(config))


@pytest.fixture(scope="session")
def thorough(pytestconfig) -> bool:
    """Whether to fuzz and simulate at length; otherwise as often as the faults seeded for it need to be found."""
    return pytestconfig.option.thorough


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real mammograms and tables beside the checkout; tests that need it skip without."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data is not at {path}")
    return path


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of numbers of other implementations beside the checkout; tests that need it skip without."""
    path = ROOT.parent / "shared" / "fixtures"
    if not path.is_dir():
        pytest.skip(f"the fixtures are not at {path}")
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """After a file, when there are many: all together would take more memory maps than a Linux process may have (65,530).

    What files have in common, as the small programs of single operations, is otherwise compiled once.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()
