"""`python -m train COMMAND`: from labels to the shipped weights."""

from __future__ import annotations

import argparse
import importlib

COMMANDS = {
    "judge": "figures of a checkpoint or ONNX file on val",
    "average": "the mean of checkpoints that were trained on from one another",
    "prune": "take channels away from a trained network",
    "propose": "pseudo-labels for frames nobody labelled",
    "collect": "gather broadcast frames and rendered stills",
    "fit": "train the joint network",
    "export": "write the fp32 ONNX graph of a checkpoint",
    "quantise": "write the int8 graph of an fp32 one",
    "half": "write the fp16 graph of an fp32 one",
    "roles": "fit what parts roles by the whole picture",
    "cameras": "where the cameras of the training pictures stand: what the runtime expects of others",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        module = importlib.import_module(f"train.{name}")
        sub = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(run=module.main)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
