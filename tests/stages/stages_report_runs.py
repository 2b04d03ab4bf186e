"""A run folder made up of numbers: the files of every stage, in the run folder's formats, without any training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from greedynas_fast.spaces import SearchSpace

STEPS, WARMUP, UPDATE_EVERY, RETRAIN_STEPS = 6000, 1500, 500, 4000
GENERATIONS, POPULATION = 10, 30


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_rows(space: SearchSpace, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    removed = 0
    left = {(layer, op) for layer, names in enumerate(space.ops) for op in range(len(names))}
    for step in range(0, STEPS, 10):
        progress = step / STEPS
        warm = step < WARMUP
        q = None if warm else min(0.99, 0.5 + 0.49 * (step - WARMUP) / (0.8 * (STEPS - WARMUP)))
        bonus = 0.0 if warm else 0.35 * (progress - WARMUP / STEPS)
        loss = 0.5 + 1.9 * math.exp(-3.5 * progress) - bonus + rng.normal(0, 0.12)
        rows.append({
            "stage": "train", "kind": "step", "step": step, "epoch": step // 500, "loss": loss,
            "accuracy": float(np.clip(1 - 0.42 * loss + rng.normal(0, 0.03), 0, 1)),
            "lr": 0.06 * (1 + math.cos(math.pi * progress)), "q": q,
            "acceptance": None if q is None else float(np.clip(1 - q + rng.normal(0, 0.01), 0.002, 1)),
            "images_per_s": 900 + rng.normal(0, 25), "elapsed_s": step * 0.2,
        })  # fmt: skip
        if step >= WARMUP and (step - WARMUP) % UPDATE_EVERY == 0:
            merges = []
            for _ in range(int(rng.integers(0, 5))):
                layer = int(rng.integers(space.num_layers))
                ops = sorted(op for at, op in left if at == layer)
                if len(ops) < 3:
                    continue
                kept, gone = rng.choice(ops, 2, replace=False)
                left.discard((layer, int(gone)))
                removed += 1
                names = space.ops[layer]
                similarity = float(rng.uniform(0.8, 0.96))
                merges.append({"layer": layer, "kept": names[kept], "removed": names[gone], "similarity": similarity})
            first = step == WARMUP
            u = None if first else float(np.clip(0.62 + 0.3 * progress + rng.normal(0, 0.02), 0, 1))
            rows.append({
                "stage": "train", "kind": "update", "step": step, "epoch": step // 500, "q": q, "threshold": -0.7,
                "auroc": float(np.clip(0.72 + 0.2 * progress + rng.normal(0, 0.02), 0, 1)), "spread": 1.3,
                "collapsed": step == WARMUP + 2 * UPDATE_EVERY, "acceptance": None, "agreement": u,
                "kappa": None if u is None else u - 0.25, "merges": merges, "removed_total": removed,
                "allowed_total": len(left), "mean_loss": 1.6 - 0.6 * progress + rng.normal(0, 0.02),
            })  # fmt: skip
    rows.append({"stage": "train", "kind": "final", "step": STEPS, "epochs": STEPS // 500, "stopped": "agreement"})
    return rows


def write_similarity(folder: Path, space: SearchSpace, rng: np.random.Generator) -> None:
    layers, count = space.num_layers, space.max_ops
    traits = np.zeros((count, 6))
    for op, name in enumerate(space.ops[0]):
        traits[op] = ["K3" in name, "K5" in name, "K7" in name, "SE" in name, "MB6" in name, -2 * (name == "ID")]
    vectors = traits + rng.normal(0, 0.45, (layers, count, 6))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    similarity = np.einsum("lnd,lmd->lnm", vectors, vectors).astype(np.float32)
    allowed = space.allowed & (rng.random((layers, count)) > 0.12)
    similarity[~space.allowed] = np.nan
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "update-008.npz", similarity=similarity, allowed=allowed)
    (folder / "update-008.json").write_text("{}", encoding="utf-8")


def search_rows(space: SearchSpace, rng: np.random.Generator, max_macs: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    paths = np.stack([rng.integers(0, n, 4 * GENERATIONS * POPULATION) for n in space.num_ops], axis=1).astype(np.uint8)
    params, macs = space.costs(paths)
    ease = np.argsort(np.argsort(-macs)) / len(macs)
    order = np.argsort(-rng.random(len(macs)) * (0.3 + ease))
    for index, i in enumerate(order[: GENERATIONS * POPULATION]):
        generation = index // POPULATION
        size = (macs[i] - macs.min()) / (macs.max() - macs.min())
        accuracy = 0.38 + 0.1 * math.sqrt(size) + 0.13 * generation / GENERATIONS + rng.normal(0, 0.02)
        rows.append({
            "index": index, "generation": generation, "path": space.format(paths[i], "digits"),
            "names": space.format(paths[i]).replace("| ", "").split(), "accuracy": float(accuracy),
            "loss": float(2.4 - 2 * accuracy), "macs": int(macs[i]), "params": int(params[i]),
        })  # fmt: skip
    return [row for row in rows if row["macs"] <= 1.25 * max_macs]


def retrain_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(0, RETRAIN_STEPS + 1, 10):
        progress = step / RETRAIN_STEPS
        accuracy = float(np.clip(0.955 - 0.8 * math.exp(-5 * progress) + rng.normal(0, 0.012), 0, 1))
        rows.append({
            "stage": "retrain", "kind": "step", "step": step, "epoch": step // 200,
            "loss": 0.3 + 2 * math.exp(-5 * progress) + rng.normal(0, 0.05), "accuracy": accuracy, "lr": 0.05,
            "images_per_s": 2100.0,
        })  # fmt: skip
        if step % 200 == 0 and step:
            rows.append({
                "stage": "retrain", "kind": "epoch", "step": step, "epoch": step // 200, "loss": 0.4,
                "accuracy": accuracy, "lr": 0.05, "val_accuracy": accuracy - 0.01, "images_per_s": 2100.0,
            })  # fmt: skip
    return rows


def make_run(folder: Path, space: SearchSpace, seed: int = 0) -> Path:
    """A complete run of made-up numbers; the same seed gives the same files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    _, all_macs = space.op_costs()
    max_macs = float(round(0.55 * (all_macs.max(axis=1).sum() + space.fixed_cost().macs)))
    config = {
        "preset": "sample", "seed": seed, "space": {"name": space.name}, "data": {"root": "photos"},
        "train": {"epochs": 12, "agreement_threshold": 0.9}, "search": {"max_macs": max_macs},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", train_rows(space, rng) + retrain_rows(rng))
    write_similarity(folder / "filter", space, rng)
    searched = search_rows(space, rng, max_macs)
    write_lines(folder / "search.jsonl", searched)
    best = max((row for row in searched if row["macs"] <= max_macs), key=lambda row: row["accuracy"])
    (folder / "best.json").write_text(json.dumps({**best, "text": " ".join(best["names"])}), encoding="utf-8")
    (folder / "retrain").mkdir(exist_ok=True)
    (folder / "retrain" / "config.json").write_text(json.dumps({"path": best["path"]}), encoding="utf-8")
    (folder / "result.json").write_text(
        json.dumps({"top1": 0.94312, "split": "test", "path": best["path"]}), encoding="utf-8"
    )
    name = f"runs/{folder.name}"
    commands = [f"greedynas-fast train --run {name} --preset sample"]
    commands += [f"greedynas-fast {stage} {name}" for stage in ("search", "retrain", "evaluate")]
    (folder / "commands.txt").write_text("\n".join(commands) + "\n", encoding="utf-8")
    return folder
