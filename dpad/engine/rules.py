r"""Published rules of parallel decoding: which masked positions of a block a step decodes, beyond a plain threshold.

    python run.py generate -m tiny --rule eb --gamma 0.1 -e \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"

A rule is a pure function from confidences to positions, and a frozen dataclass with its settings. A new one is a
subclass and an entry in RULES. Two of them remember earlier forwards of a block (KLASS, CreditDecoding). Of every rule
it is said how well its formula is known; no rule's published code was run. docs/methods.md has them in one table.

Every rule decodes at least one position of a row that has masks, and only positions that compete. Each row is decided
alone, so that a batch gets what its rows get alone. Imported, never run; torch is imported when a rule is used.

Shapes: R rows of a batch, L block length, M positions that compete (of all rows), V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dpad.engine.fields import check_settings, setting
from dpad.engine.lazy import lazy_module
from dpad.engine.selection import best_but_mask, choose_most_confident, in_pieces, log_probability, send

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy_module("torch")

NOTHING = float("-inf")  # the confidence where nothing competes; NaN competes, so that a broken model ends in an error


class ParallelRule(ABC):
    """Which positions a step decodes, when the predictions decide how many. Frozen: what changes is in the `RuleState`.

    orders: what positions may be ordered by, under the names of Dream's --alg; the first one is the default.
    needs_entropy: whether `choose` needs the entropies. bytes_per_logit: memory that a block takes, for each of its
    R L V logits.
    """

    orders: ClassVar[tuple[str, ...]] = ("maskgit_plus",)
    needs_entropy: ClassVar[bool] = False
    bytes_per_logit: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        """The rule's work on one block.

        Args:
            kept: int64 [R], on the model's device: how many suffix positions each row keeps.
            length: L.
            mask_id: the mask token.
        """


class RuleState(ABC):
    """A rule at work on one block of a batch.

    observes: whether `adjust` wants the logits of every masked position at every forward of the block, also at Dream's
    opening ones. kept: int64 [R]; the loop replaces it where a sampler chooses after the first forward.
    """

    observes: ClassVar[bool] = False

    def __init__(self, kept: Tensor):
        self.kept = kept

    def adjust(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The logits [M, V] that candidates and confidences are taken from, given the model's.

        rows, columns: int64 [M], each position's row in the present batch and its place in the block.
        """
        return logits

    @abstractmethod
    def choose(self, confidence: Tensor, entropy: Tensor | None) -> Tensor:
        """Which positions to decode: bool [R, L].

        Args:
            confidence: float64 [R, L], what positions are ordered by; -inf where nothing competes.
            entropy: float64 [R, L], of the whole distribution, in nats; None unless the rule needs it.
        """

    def keep(self, places: list[int]) -> None:
        """Keep only the rows at these places, in this order."""
        self.kept = self.kept[send(torch.tensor(places), self.kept.device)]


class _Memoryless(RuleState):
    """Of a rule that looks at the present step alone: `function` takes confidence, entropy and kept."""

    def __init__(self, kept: Tensor, function: Callable[[Tensor, Any, Tensor], Tensor]):
        super().__init__(kept)
        self.function = function

    def choose(self, confidence: Tensor, entropy: Tensor | None) -> Tensor:
        return self.function(confidence, entropy, self.kept)


class _Remembering(RuleState):
    """Of a rule with a tensor as large as a block's logits, whose rows stay where they are while rows leave the batch.

    homes: int64 [R], where each row of the present batch is found in the tensors of the block's first batch.
    """

    observes = True

    def __init__(self, kept: Tensor, length: int):
        super().__init__(kept)
        self.shape = len(kept), length
        self.homes = torch.arange(len(kept), device=kept.device)

    def keep(self, places: list[int]) -> None:
        super().keep(places)
        self.homes = self.homes[send(torch.tensor(places), self.homes.device)]


def _threshold() -> Any:
    return setting(0.9, "the rule's threshold on the confidence", flags=("-th", "--threshold"), above=0, maximum=1)


def _with_best(choice: Tensor, confidence: Tensor) -> Tensor:
    """The choice, bool [R, L], with the most confident position of each row, and without those that do not compete."""
    return (choice | choose_most_confident(confidence, 1)) & (confidence != NOTHING)


# --- Streaming-dLLM ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FallingThreshold(ParallelRule):
    """Streaming-dLLM's rule: a threshold that falls while the query fills up (see `falling_threshold`).

    Read in the authors' code and paper (arXiv 2601.17917). They have it with a prefix cache; without one it is the same
    formula here. Dream's opening forward, which decodes the block's first position, comes before the rule.
    """

    threshold: float = _threshold()
    fall: float = setting(0.3, "falling: how much of the threshold is gone when the query has no mask left", minimum=0,
                          maximum=1)

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Memoryless(kept, lambda c, _, kept: choose_falling(c, kept, self.threshold, self.fall))


def choose_falling(confidence: Tensor, kept: Tensor, threshold: float, fall: float) -> Tensor:
    """Every position with c >= `falling_threshold`, and the most confident one: bool [R, L].

    confidence: float64 [R, L], the candidates' probabilities, -inf where nothing competes. kept: int64 [R], the suffix
    positions that each row keeps.
    """
    masks = (confidence != NOTHING).sum(dim=1)
    thresholds = falling_threshold(masks, kept, confidence.shape[1], threshold, fall)
    return _with_best(confidence >= thresholds[:, None], confidence)


def falling_threshold(masks: Tensor, kept: Tensor, length: int, threshold: float, fall: float) -> Tensor:
    """threshold * (1 - fall * (1 - r)), with r = (masks + kept) / (length + kept) the share of masks in the query.

    The suffix counts as masks, so the more of it is kept, the less the threshold falls.

    Args:
        masks: int64 [R], masks of the row's block before the step.
        kept: int64 [R], suffix positions that the row keeps.
        length: of a block.

    Returns:
        float64 [R].
    """
    share = (masks + kept).double() / (length + kept)
    return threshold * (1 - fall * (1 - share))


# --- EB-Sampler -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntropyBound(ParallelRule):
    """EB-Sampler: as many positions as a bound on their joint uncertainty allows (see `choose_by_entropy_bound`).

    From arXiv 2505.24857. Read in others' code, with which the formula agrees as we know it; the authors' code was not
    seen. Others take the running maximum over the rows of the batch; it belongs to the run within a row. The default of
    gamma is others' too.
    """

    orders = ("entropy", "maskgit_plus", "topk_margin")
    needs_entropy = True

    gamma: float = setting(0.001, "eb: bound on the entropies of the tokens of a step, all but the largest; 0: one "
                           "token, with others that are certain", minimum=0, unit="nats")

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Memoryless(kept, lambda c, entropy, _: choose_by_entropy_bound(c, entropy, self.gamma))


def choose_by_entropy_bound(confidence: Tensor, entropy: Tensor, gamma: float) -> Tensor:
    """The longest run U of positions, best first, with sum(H over U) - max(H over U) <= gamma: bool [R, L].

    The left side bounds how far the tokens of U depend on each other. It is 0 for one position, which so always fits.

    Args:
        confidence: float64 [R, L], what positions are ordered by (-H, probability or margin), -inf where nothing
            competes.
        entropy: float64 [R, L], H in nats; anything where nothing competes.
    """
    order = confidence.argsort(dim=1, descending=True, stable=True)
    competing = confidence.gather(1, order) != NOTHING
    entropies = entropy.gather(1, order)
    fits = competing & (entropies.cumsum(dim=1) - entropies.cummax(dim=1).values <= gamma)
    run = fits.long().cumprod(dim=1).bool()
    return _with_best(torch.zeros_like(run).scatter_(1, order, run), confidence)


# --- LocalLeap --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLeap(ParallelRule):
    """LocalLeap: a lower threshold near positions that pass the threshold (see `choose_leaping`).

    From arXiv 2510.07081. Read in others' copies of the authors' function, which name these defaults.
    """

    threshold: float = _threshold()
    near_threshold: float = setting(0.75, "localleap: threshold near a token that passes the other one", above=0,
                                    maximum=1)
    reach: int = setting(4, "localleap: how far from such a token is near", minimum=0, unit="tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_threshold > self.threshold:
            raise ValueError(f"near_threshold is {self.near_threshold!r}; it must be at most threshold "
                             f"({self.threshold!r})")

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Memoryless(kept, lambda c, *_: choose_leaping(c, self.threshold, self.near_threshold, self.reach))


def choose_leaping(confidence: Tensor, threshold: float, near_threshold: float, reach: int) -> Tensor:
    """Anchors c >= threshold, every position with c >= near_threshold at most `reach` from one, and the best.

    Anchors are masked positions of the same step and block; what is decoded already is none.

    Args:
        confidence: float64 [R, L], the candidates' probabilities, -inf where nothing competes.

    Returns:
        bool [R, L].
    """
    reach = min(reach, confidence.shape[1] - 1)
    anchors = confidence >= threshold
    near = torch.nn.functional.max_pool1d(anchors[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    return _with_best(anchors | near & (confidence >= near_threshold), confidence)


# --- dInfer's hierarchy -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hierarchy(ParallelRule):
    """dInfer's hierarchical decoding: a token in every gap, to divide it (see `choose_hierarchy`).

    Read in the authors' code (inclusionAI/dInfer, HierarchyDecoder), which has no default threshold.
    """

    threshold: float = _threshold()
    low_threshold: float = setting(0.4, "hierarchy: the best token of a gap is decoded above this; 1: the threshold "
                                   "alone", minimum=0, maximum=1)

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Memoryless(kept, lambda c, *_: choose_hierarchy(c, self.threshold, self.low_threshold))


def choose_hierarchy(confidence: Tensor, threshold: float, low_threshold: float) -> Tensor:
    """The best position of every run of masks if c > low_threshold, all with c > threshold, and the best of all.

    Of equally good positions of a run all are decoded.

    Args:
        confidence: float64 [R, L], the candidates' probabilities, -inf where nothing competes.

    Returns:
        bool [R, L].
    """
    competing = confidence != NOTHING
    begins = competing.clone()
    begins[:, 1:] &= ~competing[:, :-1]
    run = (begins.cumsum(dim=1) - 1).clamp(min=0)  # the number of the run that a position belongs to, or follows
    highest = torch.full_like(confidence, NOTHING).scatter_reduce(1, run, confidence, "amax")
    best = confidence == highest.gather(1, run)
    return _with_best(best & (confidence > low_threshold) | (confidence > threshold), confidence)


# --- KLASS ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Klass(ParallelRule):
    """KLASS: confident positions whose predictions have come to rest (see `choose_rested`, `divergence`).

    Read in the authors' code (arXiv 2511.05664). Two things are ours: the history begins with the block, so that
    `kl_history` forwards of it pass before anything can be stable; and where nothing is ready, the one most confident
    position is decoded, as the authors' schedule does at one token a step. Their thresholds differ by model and task
    (0.6 to 0.9, max_kl 0.001 to 0.015); these defaults are those of LLaDA on HumanEval.

    A block needs 8 R L V bytes.
    """

    bytes_per_logit = 8

    threshold: float = _threshold()
    max_kl: float = setting(0.01, "klass: a prediction is stable while its divergence from the one before is below "
                            "this", above=0, unit="nats")
    kl_history: int = setting(2, "klass: for how many forwards in a row a prediction must be stable", minimum=1)

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Stability(self, kept, length)


class _Stability(_Remembering):
    """previous: float64 [R, L, V], the last predictions. rested: int64 [R, L], how many forwards they are stable."""

    def __init__(self, rule: Klass, kept: Tensor, length: int):
        super().__init__(kept, length)
        self.rule = rule
        self.previous: Tensor | None = None
        self.rested = torch.zeros(self.shape, dtype=torch.long, device=kept.device)

    def adjust(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.previous is None:
            self.previous = torch.zeros(*self.shape, logits.shape[-1], dtype=torch.float64, device=logits.device)
        homes = self.homes[rows]
        for piece in in_pieces(logits):
            place = homes[piece], columns[piece]
            p = logits[piece].double().softmax(-1)
            stable = divergence(p, self.previous[place]) < self.rule.max_kl
            self.rested[place] = (self.rested[place] + 1) * stable
            self.previous[place] = p
        return logits

    def choose(self, confidence: Tensor, entropy: Tensor | None) -> Tensor:
        return choose_rested(confidence, self.rested[self.homes], self.rule.threshold, self.rule.kl_history)


def divergence(p: Tensor, previous: Tensor) -> Tensor:
    """KL(p || previous) in nats, with the code's epsilon: sum of p * (log(p + 1e-12) - log(previous + 1e-12)).

    p, previous: float64 [M, V]; previous is 0 at a block's first forward, which gives far more than any sensible bound.
    """
    return (p * (torch.log(p + 1e-12) - torch.log(previous + 1e-12))).sum(-1)


def choose_rested(confidence: Tensor, rested: Tensor, threshold: float, history: int) -> Tensor:
    """Every position with c > threshold and rested >= history; where a row has none, its most confident one.

    Args:
        confidence: float64 [R, L], the candidates' probabilities, -inf where nothing competes.
        rested: int64 [R, L], how many of the last forwards in a row had a divergence below the bound.

    Returns:
        bool [R, L].
    """
    ready = (rested >= history) & (confidence > threshold)
    return torch.where(ready.any(dim=1, keepdim=True), ready, _with_best(ready, confidence))


# --- CreditDecoding ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credit(ParallelRule):
    """CreditDecoding: tokens that were likeliest before get larger logits, then a threshold (see `earn_credit`).

    logits + credit_weight * log(1 + credit) take the place of the logits. From arXiv 2510.06133; read in dInfer's code,
    which is of the same group and has these defaults but for the threshold. There the mask token can earn credit; here
    it is never a candidate, so it cannot.

    A block needs 4 R L V bytes, and as many for the logits that take the model's place.
    """

    bytes_per_logit = 8

    threshold: float = _threshold()
    credit_weight: float = setting(0.7, "credit: weight of the logarithm of the credit; 0: the threshold alone",
                                   minimum=0)
    credit_decay: float = setting(0.8, "credit: how much of the credit a forward leaves", minimum=0, maximum=1)
    credit_power: float = setting(0.2, "credit: power of the probability that is added to the credit", minimum=0)

    def begin(self, kept: Tensor, length: int, mask_id: int) -> RuleState:
        return _Credits(self, kept, length, mask_id)


class _Credits(_Remembering):
    """credits: float32 [R, L, V]."""

    def __init__(self, rule: Credit, kept: Tensor, length: int, mask_id: int):
        super().__init__(kept, length)
        self.rule = rule
        self.mask_id = mask_id
        self.credits: Tensor | None = None

    def adjust(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.credits is None:
            self.credits = torch.zeros(*self.shape, logits.shape[-1], device=logits.device)
        homes = self.homes[rows]
        tokens = best_but_mask(logits, self.mask_id)
        p = log_probability(logits, tokens).exp()
        adjusted = []
        for piece in in_pieces(logits):
            place = homes[piece], columns[piece]
            credit = earn_credit(self.credits[place], tokens[piece], p[piece], self.rule.credit_decay,
                                 self.rule.credit_power)
            self.credits[place] = credit
            adjusted.append(logits[piece] + self.rule.credit_weight * credit.log1p())
        return torch.cat(adjusted)

    def choose(self, confidence: Tensor, entropy: Tensor | None) -> Tensor:
        return _with_best(confidence >= self.rule.threshold, confidence)


def earn_credit(credit: Tensor, tokens: Tensor, p: Tensor, decay: float, power: float) -> Tensor:
    """The credit after another forward: decay * credit, and p ** power more for each position's likeliest token.

    credit: float32 [M, V]. tokens: int64 [M]. p: float64 [M], the tokens' probabilities by the model's own logits.
    """
    return (decay * credit).scatter_add_(1, tokens[:, None], (p**power).to(credit.dtype)[:, None])


# By the name that --rule takes.
RULES: dict[str, type[ParallelRule]] = {
    "falling": FallingThreshold,
    "eb": EntropyBound,
    "localleap": LocalLeap,
    "hierarchy": Hierarchy,
    "klass": Klass,
    "credit": Credit,
}
