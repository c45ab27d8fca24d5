"""``qkernels demo``: a real model, compressed by every recipe, beside float32 and bfloat16 torch.

One folder per model: ``model.py``, the network; ``data.py``, what it reads; ``demo.py``, what is measured and shown.
What all share is beside them: ``run`` from start to end, ``variants``, ``measure``, ``report`` and ``picture``.
"""

import os

# Before torch is loaded: its profiler, which reads the time of compiled graphs, else prints lines of its own.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
