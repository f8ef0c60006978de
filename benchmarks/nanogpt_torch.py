"""The yardstick for training speed on CPU: one train step of nanoGPT in PyTorch, written here, equal to its `train.py`.

What is equal, checked against the public repository: pre-norm GPT-2 blocks with one fused query-key-value projection,
`scaled_dot_product_attention(is_causal=True)`, LayerNorm and linear layers without biases (its default), exact GELU, learned
positions, a head tied to the embedding, logits returned beside the loss; AdamW without its fused form (nanoGPT takes that on
CUDA only), weight decay 0.1 on matrices alone, gradient norm clipped to 1, gradients set to None, the cosine schedule set on
every step; the next batch fetched between forward and backward; the loss read out every tenth step. Left out: evaluation,
checkpoints, printing, and the cutting of batches from a memory map: they are drawn before, as many and the same as those of
`train_step.py`, so that neither side pays for its data. Float32, no dropout, no accumulation, which
is what nanoGPT's documented CPU command runs. With --compile the model is compiled, as there; the optimizer is not.

    pip install torch==2.13.0 numpy --extra-index-url https://download.pytorch.org/whl/cpu
    python benchmarks/nanogpt_torch.py --layers 4 --heads 4 --width 128 --length 64 --batch 12 --vocab 65 --seconds 10

prints one JSON line. With --serve it prints `ready` once warm, and then answers each line `measure SECONDS` on its standard
input with a JSON line, idle in between, so that `paired.py` can take turns between several programs.
"""

import argparse
import json
import math
import platform
import statistics
import time

import numpy as np
import torch
from machine import threads
from serving import serve
from torch import nn
from torch.nn import functional

WARM_STEPS = 5
HOST_BATCHES = 16  # drawn once and taken in turn, as in train_step.py


class LayerNorm(nn.Module):
    """Layer normalisation whose bias may be left out."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention with the three input projections fused into one."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.fused = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        by_head = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.view(by_head).transpose(1, 2) for part in self.fused(x).split(width, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, width))


class Block(nn.Module):
    """One pre-norm layer: attention, then a GELU feed-forward four times as wide."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.attention_norm = LayerNorm(width, bias)
        self.attention = Attention(width, heads, bias)
        self.mlp_norm = LayerNorm(width, bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.activation = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class Gpt(nn.Module):
    """GPT-2 with learned positions and a tied head; called with targets, it gives logits and the mean loss."""

    def __init__(self, layers: int, heads: int, width: int, length: int, vocab: int, bias: bool):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, bias) for _ in range(layers))
        self.final_norm = LayerNorm(width, bias)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return logits, functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)


class Trainer:
    """The train loop's state, advanced one step at a time."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.batches = [self._draw(seed) for seed in range(HOST_BATCHES)]
        torch.manual_seed(1337)
        torch.set_num_threads(arguments.threads)
        self.model = Gpt(arguments.layers, arguments.heads, arguments.width, arguments.length, arguments.vocab, arguments.bias)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=arguments.learning_rate,
            betas=(0.9, arguments.beta2),
        )
        if arguments.compile:
            self.model = torch.compile(self.model)
        self.steps, self.loss = 0, math.nan
        self.batch = self.batches[0]

    def _draw(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and targets, the same as in train_step.py."""
        shape = (self.arguments.batch, self.arguments.length + 1)
        rows = np.random.default_rng(seed).integers(0, self.arguments.vocab, shape, np.int32).astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def scheduled_rate(self) -> float:
        """Warm-up over 100 steps, then a cosine down to a tenth at step 5,000, as for its Shakespeare model."""
        peak, warm_up, last = self.arguments.learning_rate, 100, 5000
        if self.steps < warm_up:
            return peak * (self.steps + 1) / (warm_up + 1)
        progress = min(1.0, (self.steps - warm_up) / (last - warm_up))
        return peak * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def step(self) -> None:
        """Forward, next batch, backward, clip, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduled_rate()
        _, loss = self.model(*self.batch)
        self.batch = self.batches[(self.steps + 1) % HOST_BATCHES]
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.steps % self.arguments.log_interval == 0:
            self.loss = loss.item()
        self.steps += 1

    def measure(self, seconds: float) -> dict:
        """Train for about `seconds` and describe the speed; the median is over windows of whole steps."""
        tokens_a_step = self.arguments.batch * self.arguments.length
        # Short windows let the median shrug off a neighbour's burst, and a window is never less than one whole step.
        window_seconds = min(0.5, seconds / 5)
        speeds, first_step = [], self.steps
        start = window_start = time.perf_counter()
        window_first = self.steps
        while True:
            self.step()
            now = time.perf_counter()
            if now - window_start >= window_seconds:
                speeds.append((self.steps - window_first) * tokens_a_step / (now - window_start))
                window_start, window_first = now, self.steps
                if now - start >= seconds:
                    break
        return {
            "tokens_per_second": round(statistics.median(speeds), 1),
            "tokens_per_second_mean": round((self.steps - first_step) * tokens_a_step / (now - start), 1),
            "windows": len(speeds),
            "steps": self.steps - first_step,
            "seconds": round(now - start, 3),
            "loss": round(self.loss, 4),
            "program": "nanogpt torch.compile" if self.arguments.compile else "nanogpt torch eager",
            "parameters": self.parameters,
            "shape": {key: getattr(self.arguments, key) for key in ("layers", "heads", "width", "length", "batch", "vocab")},
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults are nanoGPT's documented CPU shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("layers", 4), ("heads", 4), ("width", 128), ("length", 64), ("batch", 12), ("vocab", 65)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=threads(), help="threads of one operation; those that XLA takes")
    parser.add_argument("--bias", action="store_true", help="biases in norms and linear layers, as GPT-2 has them")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--beta2", type=float, default=0.99, help="0.99 for its Shakespeare model, 0.95 for its GPT-2")
    parser.add_argument("--log-interval", type=int, default=10, help="steps between reads of the loss")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the measurement")
    parser.add_argument("--serve", action="store_true", help="measure on request from standard input")
    arguments = parser.parse_args()
    if arguments.width % arguments.heads:
        parser.error(f"--width {arguments.width} does not divide into --heads {arguments.heads}")
    return arguments


def main() -> None:
    """Warm up, then measure once or on request."""
    arguments = parse_arguments()
    trainer = Trainer(arguments)
    for _ in range(WARM_STEPS):
        trainer.step()
    if arguments.serve:
        serve(trainer.measure)
    else:
        print(json.dumps(trainer.measure(arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
