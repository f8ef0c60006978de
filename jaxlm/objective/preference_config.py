"""Which loss preferences are learned by, as values."""

from typing import Annotated, Literal

from jaxlm.config import Range, config
from jaxlm.errors import ConfigError

Weight = Annotated[float, Range(0)]
Loss = Literal[
    "sigmoid", "robust", "hinge", "ipo", "ipo_sum", "sigmoid_norm", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "nca_pair", "exo_pair", "discopop", "kto", "orpo", "simpo", "cpo",
]  # fmt: skip

WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
# The losses of a difference of scores, into which another divergence than the reverse KL can be put.
OF_SCORES = ("sigmoid", "robust", "hinge", "ipo", "ipo_sum", "sigmoid_norm", "exo_pair", "discopop")
# field: (value that stands for "not set", the losses that read it)
READ_BY = {
    "label_smoothing": (0.0, ("sigmoid", "robust", "exo_pair", "simpo", "cpo")),
    "divergence": ("reverse_kl", OF_SCORES),
    "margin": (0.5, ("simpo",)),
    "temperature": (0.05, ("discopop",)),
    "desirable_weight": (1.0, ("kto",)),
    "undesirable_weight": (1.0, ("kto",)),
}


@config
class PreferenceConfig:
    """How chosen responses are preferred to rejected ones, or desirable to undesirable ones; used where `data.form` has them.

    Formulas are in `objective.preference_losses`. The default is DPO (arXiv:2305.18290).
    """

    loss: Loss = "sigmoid"
    """sigmoid (DPO; with label_smoothing conservative DPO), robust (arXiv:2403.00409), hinge (SLiC, arXiv:2305.10425), ipo
    (arXiv:2310.12036; divided by lengths, as its authors ran it), ipo_sum (not divided), sigmoid_norm (DPO divided by
    lengths), bco_pair (arXiv:2404.04656, without its shift), sppo_hard (arXiv:2405.00675), apo_zero and apo_down
    (arXiv:2408.06266), nca_pair (arXiv:2402.05369), exo_pair (arXiv:2402.00856), discopop (arXiv:2406.08414), kto
    (arXiv:2402.01306); without a reference orpo (arXiv:2403.07691), simpo (arXiv:2405.14734), cpo (arXiv:2401.08417)."""
    beta: Weight = 0.1
    """How closely the policy is held to the reference (DPO's beta, IPO's tau, ORPO's lambda). The scale differs by loss: simpo
    is published with 2 to 2.5, and what is divided by lengths (ipo, sigmoid_norm) wants another value than what is not."""
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    """The probability that a pair's labels are swapped (sigmoid, robust, simpo, cpo: below 0.5), or what is put in place of a
    probability of 0 (exo_pair: above 0, 1e-3 for example)."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What keeps the policy near the reference (arXiv:2309.16240), in the losses of a difference of scores."""
    alpha: float = 0.5
    """Of the alpha divergence; towards 1 it becomes the reverse KL."""
    sft_weight: Weight = 0.0
    """Times the mean negative log-probability of the chosen responses' tokens over the (micro)batch, added to the loss. TRL's
    CPO and SimPO have 1.0 by default, its DPO none; SimPO as published none, CPO 1.0. orpo has a term of its own."""
    margin: float = 0.5
    """By how much simpo wants chosen above rejected (its gamma)."""
    temperature: Annotated[float, Range(1e-6)] = 0.05
    """Of discopop's blend between a logistic and an exponential loss (its tau)."""
    desirable_weight: Weight = 1.0
    """Of kto's loss on desirable examples. Its paper wants weight x number of examples about the same for both kinds."""
    undesirable_weight: Weight = 1.0
    """Of kto's loss on undesirable examples."""
    router_losses: bool = True
    """Add the losses of a mixture's routers, with the weights of the model's configuration, once for each pair."""
    reference: Literal["cached", "live"] = "cached"
    """cached: the reference's log-probabilities are computed once and kept on disk; live: the reference stands beside the
    policy, for the cost of its weights and its forward pass, and its exact KL is reported."""
    reference_run: str = ""
    """The run whose newest checkpoint is the reference; empty: what training begins from (`init_from`)."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.loss not in WITHOUT_REFERENCE

    @property
    def form(self) -> Literal["preferences", "labels"]:
        """Which form of data the loss reads (`data.form`)."""
        return "labels" if self.loss == "kto" else "preferences"

    def check(self) -> None:
        """Raise ConfigError where fields contradict one another."""
        loss, smoothing = self.loss, self.label_smoothing
        if not self.beta:
            raise ConfigError("preference.beta = 0 leaves nothing to learn from: set 0.1, for example")
        for name, (neutral, losses) in READ_BY.items():
            if getattr(self, name) != neutral and loss not in losses:
                raise ConfigError(
                    f"preference.{name} = {getattr(self, name)!r} has no meaning for preference.loss = {loss!r}: leave it at "
                    f"{neutral!r}, or choose a loss that reads it ({', '.join(losses)})"
                )
        if self.alpha != 0.5 and self.divergence != "alpha":
            raise ConfigError(
                f"preference.alpha = {self.alpha} is of the alpha divergence, but preference.divergence = "
                f"{self.divergence!r}: set --preference.divergence alpha, or leave alpha at 0.5"
            )
        if loss == "exo_pair" and not 0 < smoothing < 1:
            raise ConfigError(
                f"preference.loss = 'exo_pair' takes the logarithm of preference.label_smoothing = {smoothing}: set "
                "--preference.label-smoothing 1e-3, as published"
            )
        if loss != "exo_pair" and smoothing >= 0.5:
            raise ConfigError(
                f"preference.label_smoothing = {smoothing} says that labels are no better than a coin: it must be below 0.5"
            )
        if loss == "orpo" and self.sft_weight:
            raise ConfigError(
                f"preference.sft_weight = {self.sft_weight} would count twice what preference.loss = 'orpo' has already "
                "(the negative log-probability of prompt and chosen response, with weight 1): set it to 0"
            )
        if not self.needs_reference and (self.reference != "cached" or self.reference_run):
            name = "reference_run" if self.reference_run else "reference"
            raise ConfigError(
                f"preference.{name} = {getattr(self, name)!r} is never read: preference.loss = {loss!r} has no reference"
            )
