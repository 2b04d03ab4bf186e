"""`search`: the trained supernet scores paths, NSGA-II with the filter chooses which (Sec. 4.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.config import ConfigSource
from greedynas_fast.runtime import Interrupt, LineLog, Stopwatch, read_rows, seed_for, write_json
from greedynas_fast.search import Record, Search
from greedynas_fast.stages.choice import load_trained
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.train import calibration
from greedynas_fast.supernet import PathScores, score_paths

STAGE = "search"
# Paths scored together: enough to share most of what a generation shares, few enough that a killed run, which goes on
# after the last group, loses little.
GROUP = 10


def search(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Search the supernet of a run folder, or go on where that was stopped.

    Args:
        run: the run folder.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `evaluations`, `stop_reason`, `accuracy` (0..1, on validation images with inherited weights), `macs`,
        `params`, `text`, `pareto` (paths), `next`.

    Raises:
        InputError: no trained supernet, a MAC limit that no path meets, bad input.
        KeyboardInterrupt: stopped by a signal; all finished evaluations are kept.
    """
    with open_run(run, source, reporter) as context:
        return search_stage(context)


def search_stage(context: StageContext) -> dict[str, Any]:
    """`search` on a run folder that is already open."""
    runner = _Search(context)
    runner.run()
    return runner.finish()


class _Search:
    """The loop that asks, scores and tells; `search.jsonl` is its whole memory."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.space = context, context.space
        algorithm = load_trained(context)
        self.net = algorithm.net
        stage = context.config.search_stage
        trained = algorithm.trained if stage.use_filter else None
        if trained is not None and trained.collapsed:
            context.say("the last path filter has learned nothing; the search rejects no path")
            trained = None
        self.search = Search(
            self.space,
            context.config.search,
            algorithm.allowed,
            None if trained is None else trained.is_weak,
            seed_for(context.config.seed, STAGE, context.config.search.seed),
        )
        part = context.data.validation
        if stage.images is not None:
            part = part.subset(min(stage.images, len(part)), context.config.seed)
        self.images, self.labels = (tensor.to(context.device) for tensor in part.tensors())
        self.calibration = None
        if stage.bn == "recalibrate":
            self.calibration = calibration(
                context.data.train, stage.calibration_images, context.config.seed, context.device
            )

    def run(self) -> None:
        """Evaluate until the search is over; what `search.jsonl` holds is replayed, not evaluated again."""
        total = self.context.config.search.evaluations
        with LineLog(self.context.run.search) as log, Interrupt() as interrupt:
            known = [(self.space.parse(row["path"]), row["accuracy"]) for row in read_rows(self.context.run.search)]
            self.search.replay(known)
            with self.context.progress(STAGE, total, start=len(known)) as progress:
                if known:
                    progress.message(f"going on after {len(known)} evaluations")
                proposing = Stopwatch()
                while len(paths := self._ask(proposing)):
                    for group in _groups(paths):
                        scores = self._score(group, interrupt)
                        for path, accuracy, loss in zip(group, scores.accuracy, scores.loss, strict=True):
                            generation, index = self.search.generation, len(self.search.records)
                            row = self._row(index, generation, path, float(accuracy), float(loss))
                            log.append([json.dumps(row, allow_nan=False)])
                            self.search.tell(path[None], accuracy)
                            best = self.search.best()
                            progress.update(index + 1, generation=generation, best=best.accuracy, macs=best.macs)
                progress.message(f"making and filtering proposals took {proposing.summary()}")
            if interrupt.requested:
                raise KeyboardInterrupt

    def _ask(self, proposing: Stopwatch) -> npt.NDArray[np.uint8]:
        with proposing:
            return self.search.ask()

    def finish(self) -> dict[str, Any]:
        """Write `best.json` and the final row."""
        context, best = self.context, self.search.best()
        summary = {
            "evaluations": len(self.search.records),
            "stop_reason": self.search.stop_reason,
            "accuracy": best.accuracy,
            **self._described(best),
        }
        write_json(
            context.run.best,
            {
                "path": self.space.format(best.path, "digits"),
                "names": [names[op] for names, op in zip(self.space.ops, best.path, strict=True)],
                "text": summary["text"],
                "macs": best.macs,
                "params": summary["params"],
                "accuracy": best.accuracy,
                "source": STAGE,
                "space": self.space.name,
                "next": context.command("retrain"),
            },
        )
        context.final_row(STAGE, len(self.search.records), summary)
        return {
            "run": str(context.run.path),
            **summary,
            "pareto": [self.space.format(record.path, "digits") for record in self.search.pareto()],
            "next": context.command("retrain"),
        }

    def _described(self, record: Record) -> dict[str, Any]:
        return {
            "macs": record.macs,
            "params": self.space.cost(record.path).params,
            "text": self.space.format(record.path),
        }

    def _score(self, paths: npt.NDArray[np.uint8], interrupt: Interrupt) -> PathScores:
        stage = self.context.config.search_stage

        def poll() -> None:
            if interrupt.requested:
                raise KeyboardInterrupt

        return score_paths(
            self.net,
            paths,
            self.images,
            self.labels,
            batch_size=stage.batch_size,
            bn=stage.bn,
            calibration=self.calibration,
            poll=poll,
        )

    def _row(
        self, index: int, generation: int, path: npt.NDArray[np.uint8], accuracy: float, loss: float
    ) -> dict[str, Any]:
        cost = self.space.cost(path)
        return {
            "index": index,
            "generation": generation,
            "path": self.space.format(path, "digits"),
            "names": [names[op] for names, op in zip(self.space.ops, path, strict=True)],
            "accuracy": accuracy,
            "loss": loss if np.isfinite(loss) else None,
            "macs": cost.macs,
            "params": cost.params,
        }


def _groups(paths: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Groups of a generation, paths with common prefixes side by side. After a stop the rest keeps its order."""
    ordered = paths[np.lexsort(paths.T[::-1])]
    return [ordered[start : start + GROUP] for start in range(0, len(ordered), GROUP)]
