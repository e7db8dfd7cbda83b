"""firsttouch answers a remote football clip before it could have been downloaded."""

__version__ = "0.1.0"
