"""``qkernels demo``: a real sentence model, compressed by every recipe, beside float32 and bfloat16 torch."""

import os

# Before torch is loaded: its profiler, which reads the time of compiled graphs, else prints lines of its own.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
