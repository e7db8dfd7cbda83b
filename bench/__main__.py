"""`python -m bench [NAME ...] [options of one NAME]`: the figures the README quotes, checked before they are timed."""

from __future__ import annotations

import importlib
import signal
import sys

NAMES = ("complete", "profiles", "first-frame", "keyframes", "carry", "detector", "answer")
OTHERS = ("classes", "service", "gpu")


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        print(f"\nnames: {', '.join(NAMES)} (all of these without a name), {', '.join(OTHERS)}")
        return 0
    if arguments and arguments[0] in (*NAMES, *OTHERS):
        return _run(arguments[0], arguments[1:])
    if arguments:
        print(f"no bench is called {arguments[0]}: {', '.join((*NAMES, *OTHERS))}", file=sys.stderr)
        return 2
    return max(_run(name, []) for name in NAMES)


def _run(name: str, arguments: list[str]) -> int:
    found: int = importlib.import_module(f"bench.{name.replace('-', '_')}").main(arguments)
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ends of a bench are ended, as by Ctrl-C
    sys.exit(main(sys.argv[1:]))
