"""Read by every Python that starts with this folder in PYTHONPATH: a quarter of the time of `import vllm` is a search for rubbish."""

import gc

gc.disable()
