"""What a mixture-of-experts layer is made of, as values: every routing rule, and all that is around it."""

from typing import Annotated, Literal

from jaxlm.config import Function, Range, config
from jaxlm.errors import ConfigError

Size = Annotated[int, Range(1)]
Weight = Annotated[float, Range(0)]


@config
class MoeConfig:
    """Mixture-of-experts layers: how tokens find their experts, how many an expert takes, what keeps them balanced.

    The defaults are the Switch Transformer's (arXiv:2101.03961).
    """

    num_experts: Annotated[int, Range(0)] = 0
    """Experts a layer (E); 0 makes every layer dense."""
    every: Size = 1
    """Every n-th layer is a mixture, beginning with the n-th (Switch-Base: 2)."""
    dense_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that stay dense all the same; with any, no layers are scanned over: compile time grows."""
    experts_per_token: Size = 1
    """Experts that a token visits (k)."""
    expert_size: Annotated[int, Range(0)] = 0
    """Hidden width of an expert; 0 means intermediate_size."""
    shared_experts: Annotated[int, Range(0)] = 0
    """Experts that every token visits besides (arXiv:2401.06066)."""

    router: Literal["softmax", "noisy", "sigmoid", "expert_choice"] | Annotated[str, Function("route(logits_BLE, token)")] = (
        "softmax"
    )
    """softmax over all experts, top k; noisy: with learned noise on the logits (arXiv:1701.06538); sigmoid: scores of their
    own, chosen with a balancing bias (arXiv:2412.19437); expert_choice: experts choose tokens (arXiv:2202.09368);
    FILE.py:NAME: a rule of your own (model/functions.py)."""
    renormalize: bool = False
    """Divide a token's gates by their sum (Mixtral, DeepSeek-V3, noisy top-k as published); raw probabilities otherwise. With
    one expert a token every gate is then 1, and the router cannot be trained."""
    gate_scale: Weight = 1.0
    """Factor on all gates (DeepSeek-V3: 2.5)."""
    expert_groups: Size = 1
    """Sigmoid: experts form this many groups, of which a token may visit `groups_per_token`."""
    groups_per_token: Size = 1
    """Sigmoid: groups kept, by the sum of their two best biased scores."""
    jitter: Annotated[float, Range(0, 0.99)] = 0.0
    """Multiply the router's input by a draw from U(1 - jitter, 1 + jitter), in training (Switch: 0.01)."""

    capacity_factor: Annotated[float, Range(0)] | None = 1.25
    """An expert takes ceil(factor x k x tokens / experts) of a group's assignments in training; None drops nothing."""
    evaluation_capacity_factor: Annotated[float, Range(0)] | None = None
    """The same outside of training (Switch: 2.0). Decoding with a cache never drops."""
    min_capacity: Size = 4
    """The least that an expert takes of a group."""
    rows_per_group: Size = 1
    """Rows of the batch whose tokens compete for an expert's places; in evaluation the most that also divide its batch."""
    priority: Literal["token", "choice", "confidence"] = "token"
    """Who gets a place: tokens in order with all their choices; all first choices before any second, which lets a later token
    evict an earlier one; or tokens in order of their best score, which looks ahead as well (arXiv:2106.05974)."""

    load_balancing_loss: Weight = 1e-2
    """Weight of E x sum over experts of (fraction of tokens) x (mean probability), before dropping."""
    balance_over: Literal["batch", "row"] = "batch"
    """Fractions are of the whole batch, over all devices, or of each row, averaged."""
    router_z_loss: Weight = 0.0
    """Weight of the mean squared log-normaliser of the router's logits (arXiv:2202.08906: 1e-3)."""
    importance_loss: Weight = 0.0
    """Weight of the squared coefficient of variation of the experts' summed gates (arXiv:1701.06538: 0.1)."""
    load_loss: Weight = 0.0
    """Weight of the same of their smooth expected load; needs the noisy router."""
    losses_over_layers: Literal["mean", "sum"] = "mean"
    """Average these losses over mixture layers, or add them up (as the Switch paper does)."""
    bias_update_rate: Weight = 1e-3
    """Sigmoid: how far the balancing bias of an expert moves after each step, against its load (arXiv:2408.15664)."""

    expert_dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """On the experts' hidden activations, in training (Switch fine-tuning: 0.4)."""
    router_init_std: Annotated[float, Range(0)] = 0.02
    """Standard deviation of the router's initial weights; a noisy router starts at zero."""
    allow_leaks: bool = False
    """Permit what sees the future in a causal decoder, for analysis: expert choice, priorities but by token. A rule of your own
    then sees all tokens of a batch at once, and without it one at a time."""
    kernel: Literal["auto", "loop", "ragged", "megablox"] = "auto"
    """Of the experts' products: a loop over their tokens (CPU), the backend's grouped matrix product (GPU), or that with
    gradients of weights through the TPU's megablox kernel. auto settles it."""

    def check(self) -> None:
        """Raise ConfigError where fields contradict one another."""
        if not self.num_experts:
            return
        k, experts = self.experts_per_token, self.num_experts
        if k > experts:
            raise ConfigError(
                f"moe.experts_per_token = {k} exceeds moe.num_experts = {experts}: a token cannot visit more experts "
                f"than there are; set --model.moe.experts-per-token {experts} or fewer"
            )
        if self.router == "expert_choice" and None in (self.capacity_factor, self.evaluation_capacity_factor):
            raise ConfigError(
                "moe.router = 'expert_choice' has experts take a number of tokens, which a capacity factor sets: give both "
                "--model.moe.capacity-factor and --model.moe.evaluation-capacity-factor, 1.0 for example"
            )
        for name, factor in (
            ("capacity_factor", self.capacity_factor),
            ("evaluation_capacity_factor", self.evaluation_capacity_factor),
        ):
            if factor == 0:
                raise ConfigError(
                    f"moe.{name} = 0 leaves no place for any token: set 1.25, for example, or None to drop nothing"
                )
        if self.load_loss and self.router != "noisy":
            raise ConfigError("moe.load_loss is defined by the noise of moe.router = 'noisy': choose that, or importance_loss")
        if self.router == "sigmoid":
            self._check_groups()
        elif self.expert_groups > 1:
            raise ConfigError("moe.expert_groups needs moe.router = 'sigmoid'")

    def _check_groups(self) -> None:
        groups, kept, experts = self.expert_groups, self.groups_per_token, self.num_experts
        if experts % groups:
            raise ConfigError(f"moe.num_experts = {experts} does not divide into expert_groups = {groups}: take a divisor")
        if kept > groups or kept * (experts // groups) < self.experts_per_token:
            raise ConfigError(
                f"moe.groups_per_token = {kept} of {groups} groups of {experts // groups} experts cannot hold "
                f"experts_per_token = {self.experts_per_token}: keep between "
                f"{-(-self.experts_per_token // (experts // groups))} and {groups} groups"
            )

    def has_leaks(self) -> bool:
        """Whether a token's output may depend on later tokens."""
        drops = self.capacity_factor is not None or self.evaluation_capacity_factor is not None
        order = self.priority == "confidence" or (self.priority == "choice" and self.experts_per_token > 1)
        return self.router == "expert_choice" or (drops and order)
