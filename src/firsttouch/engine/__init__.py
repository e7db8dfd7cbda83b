"""The pipeline in a cage: a warm, memory-capped child process that can be killed at any moment.

`wire` is what parent and child say to each other, `child` the process that reads media, `parent` the pool that
starts, feeds, watches and replaces children. Nothing from the media comes back but numbers, and text of ours.
"""

from firsttouch.engine.parent import Engine, EngineStats, Job

__all__ = ["Engine", "EngineStats", "Job"]
