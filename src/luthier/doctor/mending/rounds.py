"""The rounds of a mending: one diagnosis, its candidates, at most one patch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.batches import in_memory
from luthier.data.trees import as_tensors
from luthier.doctor.findings import Diagnosis
from luthier.doctor.mending.book import case_of, choices_of
from luthier.doctor.mending.candidates import Candidate, candidates
from luthier.doctor.mending.judging import Effect, Noise, chance_spread, curve_spread
from luthier.doctor.mending.result import Ending, Outcome, Step
from luthier.doctor.mending.trials import Trial, Trials
from luthier.errors import LuthierError
from luthier.patch import Patch
from luthier.recipe import Recipe

if TYPE_CHECKING:
    from luthier.doctor.mend import Listener
    from luthier.record import Record

SHARES = ("accuracy", "binary_accuracy", "f1", "multilabel_f1")
TOGETHER = 5  # candidates that are trained with one seed before the best of them get more
FINALISTS = 2
SCREENED = 4  # candidates that prove themselves over a few steps first
PROOF_SHARE, PROOF_STEPS, LEAST_PROOF = 1 / 8, 200, 20


class Rounds:
    """A mending in progress.

    Attributes:
        recipe: the recipe so far.
        steps: what was tried.
        again: patches that looked good and were not kept, with their mean gain.
    """

    def __init__(
        self,
        trials: Trials,
        start: Recipe,
        seeds: int,
        diagnose: Callable[[Record], Diagnosis],
        listener: Listener,
        patience: int,
    ) -> None:
        self.trials, self.start, self.recipe = trials, start, start
        self.seeds = [start.seed + offset for offset in range(seeds)]
        self.diagnose, self.listener, self.patience = diagnose, listener, patience
        self.metric = trials.task.metric
        self.steps: list[Step] = []
        self.again: list[tuple[float, Patch]] = []
        self.tried: set[str] = {start.key()}
        self.left: set[tuple[str, Any]] = set()
        self.noise = Noise(0.0)
        self.round = 0
        self.short_of_budget = False
        self.before = self.after = Diagnosis()

    def run(self) -> Ending:
        """Rounds until healthy, until the budget ends, or until nothing is left to try."""
        try:
            self.before = self.after = self._examine()
            while True:
                if self.after.is_healthy and not self.patience:
                    return "healthy"
                if not self._round():
                    break
                self.after = self._examine()
        except KeyboardInterrupt:
            return "interrupted"
        if self.short_of_budget:
            return "budget"
        return "healthy" if self.after.is_healthy else "nothing left"

    def _examine(self) -> Diagnosis:
        """Train the recipe so far (if that was not done yet) and diagnose the record."""
        trial = self.trials.train(self.recipe, self.seeds[0])
        if trial.record is None:
            raise LuthierError(f"the recipe cannot be trained at all: {trial.trouble}")
        self.round += 1
        self.noise = Noise(self._prior(trial))
        diagnosis = self.diagnose(trial.record)
        self.listener.diagnosed(self.round, diagnosis, self.metric.name, trial.value)
        return diagnosis

    def _round(self) -> bool:
        """Try the candidates, a few at a time; whether one was kept."""
        trial = self.trials.train(self.recipe, self.seeds[0])
        case = case_of(self.trials.task, self.recipe, trial.record, self.left)
        again = [patch for _, patch in sorted(self.again, key=lambda item: -item[0])]
        found, refused = candidates(self.recipe, self.after, case, again, self.tried)
        self.again = []
        alarming = {finding.symptom for finding in self.after.findings if finding.severity != "info"}
        for item in refused:
            if item.source in alarming:
                self._tell(Step(self.round, item.patch, item.source, "not applicable", item.reason))
        found = self._screened(found)
        if self.after.is_healthy:
            found = found[: self.patience]
        for first in range(0, len(found), TOGETHER):
            if self._narrow(found[first : first + TOGETHER]):
                self.trials.forget_weights(frozenset({self.start.key(), self.recipe.key()}))
                return True
        return False

    def _screened(self, found: list[Candidate]) -> list[Candidate]:
        """The first candidates in the order of their validation loss after a few steps; harmful ones are dropped.

        Only where training itself is sick: what helps against overfitting does not show so early.
        """
        steps = min(PROOF_STEPS, round(PROOF_SHARE * self.trials.cost(self.recipe)))
        generalises = {"overfitting", "label_noise", "data_leakage", "too_few_epochs", "class_imbalance"}
        roots = {finding.symptom for finding in self.after.findings if finding.severity != "info"}
        if steps < LEAST_PROOF or not roots - generalises:
            return found
        first, others = found[:SCREENED], found[SCREENED:]
        losses = {}
        for candidate in first:
            loss = self.trials.short(candidate.recipe, self.seeds[0], steps)
            if loss is None:
                return found  # the budget is short: the order stays
            losses[candidate.recipe.key()] = loss
        kept = []
        for candidate in sorted(first, key=lambda item: losses[item.recipe.key()]):
            if losses[candidate.recipe.key()] < math.inf:
                kept.append(candidate)
            else:
                self.tried.add(candidate.recipe.key())
                self._record(candidate, "dropped", f"diverged within {steps} steps", None)
        return kept + others

    def _narrow(self, group: Sequence[Candidate]) -> bool:
        """One seed for each; more at once for one that is clearly better, at last more for the best of the others."""
        good: list[tuple[Effect, Candidate]] = []
        for candidate in group:
            effect = self._compare(candidate, 1)
            if effect is None:
                continue
            if effect.is_clear:
                if self._confirm(candidate, good):
                    return True
            elif effect.mean > 0:
                good.append((effect, candidate))
            else:
                self._drop(candidate, effect)
        good.sort(key=lambda item: -item[0].mean)
        for _ in range(min(FINALISTS, len(good))):
            _, candidate = good.pop(0)
            if self._confirm(candidate, good):
                return True
        for effect, candidate in good:
            self._drop(candidate, effect)
        return False

    def _confirm(self, candidate: Candidate, others: Sequence[tuple[Effect, Candidate]]) -> bool:
        """Train with all seeds, a close call with one more; keep it when it is better beyond noise."""
        effect = None
        for n in (len(self.seeds), len(self.seeds) + 1):
            further = self._compare(candidate, n)
            effect = further or effect
            if further is None or further.verdict != "open" or further.mean <= 0:
                break
        if effect is None or effect.verdict != "better":
            self._drop(candidate, effect or self._compare(candidate, 1))
            return False
        self._keep(candidate, effect)
        for other_effect, other in others:
            self.again.append((other_effect.mean, other.patch))
            self._record(other, "dropped", "another was kept first; it comes up again", other_effect)
        return True

    def _compare(self, candidate: Candidate, n: int) -> Effect | None:
        """Gains with the first n seeds over the recipe so far; None when the budget does not allow it."""
        seeds = [self.seeds[0] + offset for offset in range(n)]
        pairs = [(recipe, seed) for seed in seeds for recipe in (self.recipe, candidate.recipe)]
        missing = [recipe for recipe, seed in pairs if self.trials.known(recipe, seed) is None]
        try:
            needed = sum(self.trials.cost(recipe) for recipe in missing)
        except LuthierError:
            needed = 0  # it cannot be built, which its trial will say
        if not self.trials.affords(needed):
            self.short_of_budget = True
            return None
        self.tried.add(candidate.recipe.key())
        gains = []
        for seed in seeds:
            watch = seed == self.seeds[0]  # the training that is diagnosed
            sides = (self.trials.train(recipe, seed, watch) for recipe in (self.recipe, candidate.recipe))
            gains.append(self._gain(*sides))
            if gains[-1] == -math.inf:
                break
        self.noise.learn(candidate.recipe.key(), gains)
        return self.noise.effect(gains)

    def _gain(self, without: Trial, with_patch: Trial) -> float:
        """Difference of the validation values, positive when the patch is better; infinite when one failed."""
        if with_patch.value is None:
            return -math.inf
        before = without.value
        if before is None:
            if self.metric.name not in SHARES:
                return math.inf
            before = 0.0
        return (with_patch.value - before) * (-1.0 if self.metric.minimise else 1.0)

    def _keep(self, candidate: Candidate, effect: Effect) -> None:
        self._record(candidate, "kept", f"better beyond noise over {len(effect.gains)} seeds", effect)
        before, after = (choices_of(self.trials.task, recipe) for recipe in (self.recipe, candidate.recipe))
        self.left |= before - after
        self.recipe = candidate.recipe
        if any(operation.op == "scale" for operation in candidate.patch.operations):
            self.again.append((effect.mean, candidate.patch))

    def _drop(self, candidate: Candidate, effect: Effect | None) -> None:
        if effect is None:
            return
        known = self.trials.known(candidate.recipe, self.seeds[0])
        if known is not None and known.record is None:
            self._record(candidate, "not applicable", known.trouble, None)
            return
        words = {"worse": "worse", "open": "within noise", "better": "the budget ended before it was confirmed"}
        reason = words[effect.verdict]
        if effect.mean == -math.inf:
            troubles = (self.trials.known(candidate.recipe, seed) for seed in self._seeds_of(effect))
            reason = next((trial.trouble for trial in troubles if trial is not None and trial.trouble), "no value")
        self._record(candidate, "dropped", reason, effect)

    def _record(self, candidate: Candidate, outcome: Outcome, reason: str, effect: Effect | None) -> None:
        seeds = [] if effect is None else self._seeds_of(effect)
        with_patch = [self.trials.known(candidate.recipe, seed) for seed in seeds]
        without = [self.trials.known(self.recipe, seed) for seed in seeds]
        self._tell(
            Step(
                round=self.round,
                patch=candidate.patch,
                source=candidate.source,
                outcome=outcome,
                reason=reason,
                effect=effect,
                values=tuple(trial.value for trial in with_patch if trial is not None),
                without=tuple(trial.value for trial in without if trial is not None),
                steps=sum(trial.steps for trial in with_patch if trial is not None),
            )
        )

    def _seeds_of(self, effect: Effect) -> list[int]:
        return [self.seeds[0] + offset for offset in range(len(effect.gains))]

    def _tell(self, step: Step) -> None:
        self.steps.append(step)
        self.listener.tried(step, self.metric.name)

    def _prior(self, trial: Trial) -> float:
        """What spread to expect before any pair was seen."""
        tree = in_memory(self.trials.task.val)
        if self.metric.name in SHARES and tree is not None:
            return chance_spread(trial.value, as_tensors(tree)[1])
        rows = [] if trial.record is None else trial.record.rows
        return curve_spread([row[f"val_{self.metric.name}"] for row in rows if row["kind"] == "epoch"])

    def values(self, recipe: Recipe, complete: bool) -> tuple[float | None, ...]:
        """Validation value of each seed that a recipe was trained with.

        Args:
            recipe: the one before or after.
            complete: train the seeds that are missing, where the budget still allows.
        """
        for seed in self.seeds if complete else ():
            if self.trials.known(recipe, seed) is None and self.trials.affords(self.trials.cost(recipe)):
                self.trials.train(recipe, seed, watch=False)
        known = (self.trials.known(recipe, self.seeds[0] + offset) for offset in range(len(self.seeds) + 1))
        return tuple(trial.value for trial in known if trial is not None)
