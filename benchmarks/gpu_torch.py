"""The yardstick for training speed on a GPU: one train step of a Llama-shaped model in PyTorch, as a user would write it.

RMSNorm, rotary positions, grouped queries through `scaled_dot_product_attention(is_causal=True)`, SwiGLU, a tied head; float32
parameters under bfloat16 autocast, `torch.compile` of model and loss, fused AdamW, gradient norm clipped to 1. Autocast alone
would keep the residual stream in float32 and move twice the bytes; here it is bfloat16, as ours is. The shapes are
those of gpu_shapes.py; parameters and FLOPs are counted here from the modules, so that benchmarks/gpu.py can hold them against
ours. It needs torch and numpy alone.

    python benchmarks/gpu_torch.py --shape 1b --length 2048 --seconds 20

prints one JSON line. With --device cpu --eager it runs anywhere, to see that it does.
"""

import argparse
import json
import platform
import statistics
import time

import torch
from gpu_shapes import EPSILON, SHAPES, Shape
from torch import nn
from torch.nn import functional

BATCHES = 4
WARM_STEPS = 5


class Norm(nn.Module):
    """Root-mean-square normalisation, its statistics in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, EPSILON).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of features, the first half of a head with the second; x is [B, N, L, H]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.attention_norm, self.mlp_norm = Norm(shape.width), Norm(shape.width)
        self.q = nn.Linear(shape.width, queries, bias=False)
        self.k = nn.Linear(shape.width, keys, bias=False)
        self.v = nn.Linear(shape.width, keys, bias=False)
        self.o = nn.Linear(queries, shape.width, bias=False)
        self.gate = nn.Linear(shape.width, shape.ffn, bias=False)
        self.up = nn.Linear(shape.width, shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        h = self.attention_norm(x)
        q, k, v = (part(h).view(batch, length, -1, self.shape.head_size).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.shape.kv_heads != self.shape.heads
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1))
        h = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A decoder; called with targets, it gives the mean loss."""

    def __init__(self, shape: Shape, length: int, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = Norm(shape.width)
        frequencies = shape.theta ** (-torch.arange(0, shape.head_size, 2) / shape.head_size)
        angles = torch.outer(torch.arange(length), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=0.02 / (2 * shape.layers) ** 0.5 if name.endswith(("o.weight", "down.weight")) else 0.02
                )

    def stream(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the last block hands to the head, in the stream's type."""
        x, length = self.embed(tokens).to(self.dtype), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return x

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(self.final_norm(self.stream(tokens)), self.embed.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))


def flops_per_token(model: Llama, shape: Shape, length: int) -> float:
    """Return the FLOPs of one token's training step: six a weight of every product, attention over all keys of the row."""
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    products += model.embed.weight.numel()  # as the head
    return 6.0 * products + 12.0 * shape.layers * shape.heads * shape.head_size * length


class Trainer:
    """A train step, taken again and again over a few batches that are sent anew at every step."""

    def __init__(self, arguments: argparse.Namespace):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.arguments, self.shape = arguments, SHAPES[arguments.shape]
        self.rows = arguments.rows or self.shape.rows(arguments.length)
        self.dtype = getattr(torch, arguments.dtype)
        model = Llama(self.shape, arguments.length, self.dtype).to(arguments.device)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.flops = flops_per_token(model, self.shape, arguments.length)
        matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=3e-4, betas=(0.9, 0.95), fused=arguments.device == "cuda",
        )  # fmt: skip
        self.weights = list(model.parameters())
        self.model = model if arguments.eager else torch.compile(model)
        drawn = torch.randint(self.shape.vocab, (BATCHES, self.rows, arguments.length + 1))
        self.batches = [batch.pin_memory() if arguments.device == "cuda" else batch for batch in drawn]
        self.steps, self.loss = 0, None
        with torch.no_grad(), self.autocast():
            few = torch.zeros((1, 8), dtype=torch.long, device=arguments.device)
            self.stream_dtype = str(model.stream(few).dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context in which products are made in the stream's type."""
        return torch.autocast(self.arguments.device, torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def step(self) -> None:
        """Take one step; the loss of the one before is read, so that the host runs no further ahead than ours does."""
        batch = self.batches[self.steps % BATCHES].to(self.arguments.device, non_blocking=True)
        with self.autocast():
            loss = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.loss is not None:
            self.loss.item()
        self.loss, self.steps = loss.detach(), self.steps + 1

    def measure(self, seconds: float) -> dict:
        """Train for about `seconds` and describe the median step."""
        times, end = [], time.perf_counter() + seconds
        last = time.perf_counter()
        while len(times) < 3 or last < end:
            self.step()
            now = time.perf_counter()
            times.append(now - last)
            last = now
        step, cuda = statistics.median(times), self.arguments.device == "cuda"
        return {
            "program": "torch eager" if self.arguments.eager else "torch.compile",
            "tokens_per_second": self.rows * self.arguments.length / step, "step_ms": 1e3 * step, "steps": len(times),
            "parameters": self.parameters, "flops_per_token": self.flops, "loss": self.loss.item(), "rows": self.rows,
            "length": self.arguments.length, "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
            "dtype": self.stream_dtype, "device": torch.cuda.get_device_name() if cuda else "cpu",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }  # fmt: skip


def main() -> None:
    """Warm up, measure once, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=[name for name, shape in SHAPES.items() if not shape.experts], default="1b")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=0, help="rows of a step; by default the shape's tokens over the length")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measurement")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of products and the stream")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parser.parse_args()
    trainer = Trainer(arguments)
    for _ in range(WARM_STEPS):
        trainer.step()
    print(json.dumps(trainer.measure(arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
