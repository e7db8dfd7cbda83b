"""Fits the joint network on the CPU or a GPU, with checkpoints, resume and an averaged copy of the weights (EMA)."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from firsttouch.orphan import die_with_parent
from train import data, losses, measure, propose
from train.augment import CROP, FULL, augmented_view
from train.data import Frame
from train.decode import Shipped
from train.network import Network, Widths, normalised
from train.reopen import reopen
from train.targets import Targets, encode

FULL_BATCH, CROP_BATCH = 4, 12  # of one process
RATE, DECAY, WARM_STEPS = 2e-3, 0.02, 100
REOPEN_BATCHES = 24  # whole pictures by four: enough for the statistics of every channel


class Batches(IterableDataset[tuple[Tensor, Targets]]):
    """Endless batches: whole pictures (boxes and key points) and, in turn, crops around the rare objects."""

    def __init__(
        self, frames: list[Frame], shares: dict[str, float], crop_share: float, seed: int, rank: int = 0
    ) -> None:
        self.frames, self.crop_share, self.seed, self.rank = frames, crop_share, seed, rank
        of = {s: [i for i, f in enumerate(frames) if f.source == s] for s in shares}
        shares = {s: w for s, w in shares.items() if of[s]}
        self.weights = np.zeros(len(frames))
        for s, w in shares.items():
            self.weights[of[s]] = w / sum(shares.values()) / len(of[s])
        boxed = np.array([f.boxes is not None and len(f.boxes) > 0 for f in frames])
        self.crop_weights = self.weights * boxed
        self.crop_weights /= self.crop_weights.sum()

    def __iter__(self) -> Iterator[tuple[Tensor, Targets]]:
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        info = get_worker_info()
        rng = np.random.default_rng((self.seed, self.rank, info.id if info else 0))
        kinds = np.random.default_rng(self.seed)  # the same in every process: they wait for one another
        while True:
            crop = kinds.random() < self.crop_share
            weights, size, count = (self.crop_weights, CROP, CROP_BATCH) if crop else (self.weights, FULL, FULL_BATCH)
            chosen = rng.choice(len(self.frames), count, p=weights)
            yield encode([augmented_view(self.frames[i], size, rng) for i in chosen])


class Average:
    """Exponential moving average of weights and batch statistics."""

    def __init__(self, network: nn.Module, decay: float = 0.9985) -> None:
        self.network, self.decay, self.steps = copy.deepcopy(network).eval(), decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.steps += 1
        keep = self.decay * (1 - math.exp(-self.steps / 150))
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.mul_(keep).add_(theirs.detach(), alpha=1 - keep)
            else:
                mine.copy_(theirs)


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weight decay on convolution kernels alone."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]


def rate_at(progress: float, step: int) -> float:
    """Cosine from `RATE` to a fiftieth over progress 0..1, after a linear warm-up."""
    return RATE * min(1.0, (step + 1) / WARM_STEPS) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def answering(network: Network) -> measure.Answering:
    """The network in the shape the judge asks: planes in, three arrays out."""
    shipped = Shipped(network).eval()
    device = next(network.parameters()).device

    def run(planes: np.ndarray) -> measure.Answer:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            out = shipped(torch.from_numpy(planes).to(device))
        boxes, scores, points = (o.float().cpu().numpy() for o in out)
        return boxes, scores, points

    return run


def load_training_frames(root: Path, cache: Path | None, extra: list[Path], pseudo: Path | None = None) -> list[Frame]:
    """The three training folders, same pictures joined, then any extra folder in the same form; then proposals."""
    boxed, pitch, broadcast = (data.load(root / s / "train", s, cache) for s in data.SOURCES)
    frames = data.join_same_pictures(boxed, pitch) + broadcast
    for folder in extra:
        frames += data.load(folder, folder.name, cache)
    return propose.complete(frames, pseudo) if pseudo else frames


def load_validation_frames(root: Path, cache: Path | None, extra: list[Path]) -> dict[str, list[Frame]]:
    return {s: data.load(root / s / "val", s, cache) for s in data.SOURCES} | {
        p.name: data.load(p, p.name, cache) for p in extra
    }


def versions(root: Path, extra: list[Path]) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "data": {f"{s}/train": data.fingerprint(root / s / "train") for s in data.SOURCES}
        | {p.name: data.fingerprint(p) for p in extra},
    }


def parse_shares(text: str) -> dict[str, float]:
    return {k: float(v) for k, v in (item.split("=") for item in text.split(","))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, nargs="*", default=[], help="more folders with images/ and labels/")
    parser.add_argument("--extra-val", type=Path, nargs="*", default=[])
    parser.add_argument("--pseudo", type=Path, help="labels for what has none: proposals, as they are or corrected")
    parser.add_argument(
        "--shares", default="detection=0.5,pitch=0.08,pitch_broadcast=0.42", help="share of each source in a batch"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/joint"))
    parser.add_argument("--minutes", type=float, default=100.0, help="length of the whole schedule, wall clock")
    parser.add_argument("--steps", type=int, default=0, help="length in steps instead of minutes (repeatable)")
    parser.add_argument("--crop-share", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="data-parallel processes of one thread each (CPU); 1 = one, all threads",
    )
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument(
        "--start",
        type=Path,
        help="network to begin from: a checkpoint, what `prune` wrote, or an fp32 ONNX file that ships",
    )
    parser.add_argument("--teacher", type=Path, help="network whose maps are to be learned too, as for --start")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--judge-minutes", type=float, default=12.0)
    parser.add_argument("--widths", default="{}", help="JSON of train.network.Widths fields")


def main(args: argparse.Namespace) -> None:
    """On a shared CPU one-thread processes lose far less to each other than one process of many threads:
    they wait once a step, not at every layer."""
    if args.processes == 1:
        fit(0, args)
        return
    # the picture cache is filled once, before the processes race for it
    load_training_frames(args.data, args.out.parent / "cache", args.extra)
    load_validation_frames(args.data, args.out.parent / "cache", args.extra_val)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    multiprocessing.spawn(fit, (args,), nprocs=args.processes)  # type: ignore[attr-defined, no-untyped-call]


def share_gradients(network: nn.Module, processes: int) -> None:
    """The mean gradient of all processes."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for g, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def fit(rank: int, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    if args.processes > 1:
        torch.set_num_threads(1)
        die_with_parent()
        dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out.parent / "cache"
    frames = load_training_frames(args.data, cache, args.extra, args.pseudo)
    validation = load_validation_frames(args.data, cache, args.extra_val)
    shares = parse_shares(args.shares)
    network = opened(args.start, frames, shares) if args.start else Network(Widths(**json.loads(args.widths)))
    teacher = opened(args.teacher, frames, shares).eval().to(device) if args.teacher else None
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(parameter_groups(network), lr=RATE)
    average, step, spent = Average(network), 0, 0.0
    if args.resume:
        step, spent = restore(args.resume, network, optimiser, average)
    facts = versions(args.data, args.extra) | {
        "seed": args.seed,
        "arguments": {k: str(v) for k, v in vars(args).items()},
    }
    loader = DataLoader(
        Batches(frames, shares, args.crop_share, args.seed + step, rank), batch_size=None,
        num_workers=args.workers, prefetch_factor=6 if args.workers else None,
    )  # fmt: skip
    begin = time.monotonic() - spent
    told = judged = saved = time.monotonic()
    sums: dict[str, float] = {}
    counted = pictures = 0
    for planes, targets in loader:
        spent = time.monotonic() - begin
        progress = step / args.steps if args.steps else spent / (60 * args.minutes)
        if args.processes > 1:  # clocks differ by a little: the first process decides
            shared = torch.tensor(progress)
            dist.broadcast(shared, 0)
            progress = float(shared)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = args.rate / RATE * rate_at(progress, step)
        network.train()
        targets = Targets(*(getattr(targets, f).to(device) for f in Targets.__slots__))
        shown = normalised(planes.to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs = network(shown)
        loss, parts = losses.total(outputs, targets, whole=planes.shape[2] == FULL[0] // 2)
        if teacher is not None:
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
                answer = teacher(shown)
            lesson = losses.taught(outputs, answer)
            loss, parts["lesson"] = loss + lesson, lesson.item()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if args.processes > 1:
            share_gradients(network, args.processes)
        if torch.isfinite(nn.utils.clip_grad_norm_(network.parameters(), 10.0)):
            optimiser.step()
        step, counted, pictures = step + 1, counted + 1, pictures + len(planes)
        for k, v in parts.items():
            sums[k] = sums.get(k, 0) + v
        if rank:
            continue
        average.update(network)
        now = time.monotonic()
        if now - told > 30:
            line = " ".join(f"{k} {v / counted:.3f}" for k, v in sums.items())
            print(f"step {step} {progress:.1%} {pictures / (now - told):.1f} views/s | {line}", flush=True)
            told, sums, counted, pictures = now, {}, 0, 0
        if now - saved > 240:
            save(args.out / "last.pt", network, optimiser, average, step, spent, facts)
            saved = now
        if now - judged > 60 * args.judge_minutes:
            judge(average.network, validation, args.out, step)
            judged = time.monotonic()
    if rank == 0:
        save(args.out / "last.pt", network, optimiser, average, step, spent, facts)
        judge(average.network, validation, args.out, step)
    if args.processes > 1:
        dist.destroy_process_group()


def opened(path: Path, frames: list[Frame], shares: dict[str, float]) -> Network:
    """A network to begin from or to learn from: a checkpoint, what `prune` wrote, or an fp32 file that ships."""
    if path.suffix != ".onnx":
        return load_network(path)[0]
    views = itertools.islice(Batches(frames, shares, 0.0, seed=0), REOPEN_BATCHES)
    return reopen(path, (planes for planes, _ in views))


def judge(network: nn.Module, validation: dict[str, list[Frame]], out: Path, step: int) -> None:
    assert isinstance(network, Network)
    table = {"step": float(step)} | measure.report(validation, answering(network))
    with (out / "val.jsonl").open("a") as f:
        f.write(json.dumps(table) + "\n")
    print("val " + " ".join(f"{k}={v:.3f}" for k, v in table.items()), flush=True)


def save(
    path: Path,
    network: Network,
    optimiser: torch.optim.Optimizer,
    average: Average,
    step: int,
    spent: float,
    facts: dict[str, Any],
) -> None:
    state = {
        "module": network, "network": network.state_dict(), "average": average.network.state_dict(),
        "average_steps": average.steps, "optimiser": optimiser.state_dict(),
        "step": step, "spent": spent, "facts": facts,
    }  # fmt: skip
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


def restore(path: Path, network: Network, optimiser: torch.optim.Optimizer, average: Average) -> tuple[int, float]:
    state = torch.load(path, map_location="cpu", weights_only=False)
    network.load_state_dict(state["network"])
    average.network.load_state_dict(state["average"])
    average.steps = state["average_steps"]
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["spent"])


def load_network(path: Path, averaged: bool = True) -> tuple[Network, dict[str, Any]]:
    """The network of a checkpoint of `fit` or `prune`, ready to answer, and the facts recorded with it.

    The file is a pickle (a pruned network is a structure, not only weights): load only files of your own.
    """
    state = torch.load(path, map_location="cpu", weights_only=False)
    network: Network = state["module"]
    if "average" in state:
        network.load_state_dict(state["average" if averaged else "network"])
    return network.eval(), state["facts"] | {"step": state.get("step", 0)}
