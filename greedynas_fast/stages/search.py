"""`search`: the trained supernet scores paths, NSGA-II with the filter chooses which (Sec. 4.1)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.config import ConfigSource
from greedynas_fast.errors import InputError
from greedynas_fast.nn import local_norms
from greedynas_fast.runtime import Interrupt, LineLog, Stopwatch, read_rows, seed_for, write_json
from greedynas_fast.search import Record, Search
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.choice import load_trained
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.train import calibration
from greedynas_fast.supernet import MemoryBound, Supernet, score_paths

Paths = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

STAGE = "search"
# Paths that a rank scores together: enough to share most of what a generation shares, few enough that a killed run,
# which goes on after the last group, loses little.
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
    algorithm = load_trained(context)
    scorer = _Scorer(context, algorithm.net)
    if not context.world.is_main:
        return scorer.serve()
    try:
        runner = _Search(context, algorithm, scorer)
        runner.run()
        result = runner.finish()
    except (InputError, KeyboardInterrupt) as error:
        scorer.end(error)
        raise
    scorer.end(result)
    return result


class _Scorer:
    """Scores groups of paths, with all ranks: rank 0 asks, the others serve.

    The search itself is on rank 0 alone, so that no other rank can come to other paths by rounding.
    """

    def __init__(self, context: StageContext, net: Supernet) -> None:
        self.world, self.net, self.stage = context.world, net, context.config.search_stage
        part = context.data.validation
        if self.stage.images is not None:
            part = part.subset(min(self.stage.images, len(part)), context.config.seed)
        self.images, self.labels = (tensor.to(context.device) for tensor in part.tensors())
        context.say_backend()
        context.say_notices()
        self.calibration, self.bound = None, MemoryBound(self.stage.memory_mb * 10**6)
        if self.stage.bn == "recalibrate":
            self.calibration = calibration(
                context.data.train, self.stage.calibration_images, context.config.seed, context.device
            )

    def score(self, paths: Paths, interrupt: Interrupt) -> tuple[Floats, Floats]:
        """Accuracies and losses [m] of paths [m, L]; on rank 0.

        Raises:
            KeyboardInterrupt: a signal asks one of the ranks to stop.
        """
        return self._score(self.world.broadcast(paths), interrupt)

    def serve(self) -> dict[str, Any]:
        """Score what rank 0 asks for until it ends; what it ends with is returned or raised."""
        with Interrupt() as interrupt:
            while isinstance(asked := self.world.broadcast(None), np.ndarray):
                with suppress(KeyboardInterrupt):  # rank 0 has it too, and says how this ends
                    self._score(asked, interrupt)
        result: dict[str, Any] = self.world.on_main(dict)
        return result

    def end(self, outcome: dict[str, Any] | BaseException) -> None:
        """Let the other ranks go on with what `search_stage` gives or raises here."""
        self.world.broadcast(None)

        def tell() -> dict[str, Any]:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        with suppress(InputError, KeyboardInterrupt):
            self.world.on_main(tell)

    def _score(self, paths: Paths, interrupt: Interrupt) -> tuple[Floats, Floats]:
        def poll() -> None:
            if interrupt.requested:
                raise interrupt.stopped()

        own: tuple[Floats, Floats] | None = None
        # A rank that is asked to stop does not finish its share, but it tells the others, who would wait for it.
        with suppress(KeyboardInterrupt), local_norms(self.net):
            scores = score_paths(
                self.net,
                paths[self.world.share(len(paths))],
                self.images,
                self.labels,
                batch_size=self.stage.batch_size,
                bn=self.stage.bn,
                calibration=self.calibration,
                memory=self.bound,
                poll=poll,
                walk=self.stage.walk,
            )
            own = scores.accuracy, scores.loss
        found = [part for part in self.world.gather(None if interrupt.requested else own) if part is not None]
        if len(found) < self.world.size:
            raise interrupt.stopped()
        accuracies, losses = zip(*found, strict=True)
        return np.concatenate(accuracies), np.concatenate(losses)


class _Search:
    """The loop that asks, scores and tells; `search.jsonl` is its whole memory."""

    def __init__(self, context: StageContext, algorithm: Algorithm1, scorer: _Scorer) -> None:
        self.context, self.space, self.scorer = context, context.space, scorer
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

    def run(self) -> None:
        """Evaluate until the search is over; what `search.jsonl` holds is replayed, not evaluated again."""
        total = self.context.config.search.evaluations
        with LineLog(self.context.run.search) as log, Interrupt() as interrupt:
            known = [(self.space.parse(row["path"]), row["accuracy"]) for row in read_rows(self.context.run.search)]
            self.search.replay(known)
            with self.context.progress(STAGE, total, start=len(known)) as progress:
                if known:
                    progress.message(f"going on after {len(known)} evaluations")
                proposing, scoring = Stopwatch(), Stopwatch()
                while len(paths := self._ask(proposing)):
                    for group in _groups(paths, self._group_size(paths)):
                        with scoring:
                            accuracies, losses = self.scorer.score(group, interrupt)
                        for path, accuracy, loss in zip(group, accuracies, losses, strict=True):
                            generation, index = self.search.generation, len(self.search.records)
                            row = self._row(index, generation, path, float(accuracy), float(loss))
                            log.append([json.dumps(row, allow_nan=False)])
                            self.search.tell(path[None], accuracy)
                            best = self.search.best()
                            progress.update(index + 1, generation=generation, best=best.accuracy, macs=best.macs)
                progress.message(f"making and filtering proposals took {proposing.summary()}")
                progress.message(f"scoring paths took {scoring.summary()}")
            if interrupt.requested:
                raise interrupt.stopped()

    def _group_size(self, paths: Paths) -> int:
        """All of a generation where each path makes the launches fewer, else `GROUP` a rank."""
        together = self.context.config.search_stage.walk == "layers"
        return len(paths) if together else GROUP * self.context.world.size

    def _ask(self, proposing: Stopwatch) -> Paths:
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


def _groups(paths: Paths, size: int) -> list[Paths]:
    """Groups of a generation, paths with common prefixes side by side. After a stop the rest keeps its order."""
    ordered = paths[np.lexsort(paths.T[::-1])]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
