"""What the process imports that reading processes are forked from (`stream.Batches`).

Grain takes jax's profiler where it finds one, and with it half of the imports' time; no process that reads needs it.
"""

import logging
import sys

_absent = "jax" not in sys.modules
if _absent:
    sys.modules["jax"] = None  # type: ignore[assignment]  # cannot be imported
logging.disable(logging.WARNING)  # Grain says that there is no profiler
try:
    from grain._src.python.dataset.transformations import process_prefetch as process_prefetch

    from mammoclip_jax.data.batches import image_text as image_text
finally:
    logging.disable(logging.NOTSET)
    if _absent:
        del sys.modules["jax"]  # a function of a user's own may import it
