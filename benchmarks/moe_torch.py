"""The yardstick for mixture-of-experts layers on CPU: Hugging Face's, in PyTorch, each beside a dense layer of its kind.

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python benchmarks/moe_torch.py --layer mixtral --experts 8 --seconds 5

times the forward and backward pass (of the input, the router and all weights) of one layer on 8 x 512 tokens of width 256 in
float32 and prints one JSON line; with --serve it speaks the protocol of `paired.py`. Layers, all without dropout or biases:

- dense: ReLU, hidden width 1024;
- switch: SwitchTransformersSparseMLP, top-1, ReLU, experts of width 1024, no token ever over capacity; switch-capacity: with
  places for 1.25 x 512 / experts tokens of a row;
- dense-gated: SiLU gate, hidden width 2 x 688; mixtral: MixtralSparseMoeBlock, top-2 of experts of width 688, as transformers
  runs it by default on its "eager" path; mixtral-grouped: on its "grouped_mm" path. Three matrices of width 688 are the FLOPs
  of two of width 1032, so that these do as much as two plain experts of width 1024.

A layer's active FLOPs are those of the dense layer of its kind. Freed memory is kept for the next step, as on the other side.
"""

import argparse
import ctypes
import json
import math
import platform
import statistics
import time

import torch
import transformers
from machine import threads
from serving import serve
from torch import nn
from torch.nn import functional

ROWS, LENGTH, WIDTH, FFN, GATED_FFN = 8, 512, 256, 1024, 688
LAYERS = ("dense", "dense-gated", "switch", "switch-capacity", "mixtral", "mixtral-grouped")
WARM_STEPS = 3


class Dense(nn.Module):
    """A feed-forward layer without biases: ReLU, or gated by SiLU."""

    def __init__(self, hidden: int, gated: bool):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden, bias=False), nn.Linear(hidden, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, hidden, bias=False) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, shaped like `x`."""
        hidden = self.up(x)
        return self.down(functional.relu(hidden) if self.gate is None else functional.silu(self.gate(x)) * hidden)


def make_layer(name: str, experts: int) -> nn.Module:
    """Return a layer of LAYERS; Hugging Face leaves some weights unset, so all are drawn here."""
    if name == "dense":
        layer = Dense(FFN, gated=False)
    elif name == "dense-gated":
        layer = Dense(2 * GATED_FFN, gated=True)
    elif name.startswith("switch"):
        from transformers.models.switch_transformers import modeling_switch_transformers as switch

        capacity = LENGTH if name == "switch" else math.ceil(1.25 * LENGTH / experts)
        config = transformers.SwitchTransformersConfig(
            d_model=WIDTH, d_ff=FFN, num_experts=experts, expert_capacity=capacity, dropout_rate=0.0,
            router_jitter_noise=0.0, dense_act_fn="relu",
        )  # fmt: skip
        layer = switch.SwitchTransformersSparseMLP(config)
    else:
        from transformers.models.mixtral import modeling_mixtral as mixtral

        config = transformers.MixtralConfig(
            hidden_size=WIDTH, intermediate_size=GATED_FFN, num_local_experts=experts, num_experts_per_tok=2,
            router_jitter_noise=0.0,
        )  # fmt: skip
        config._experts_implementation = "grouped_mm" if name == "mixtral-grouped" else "eager"
        layer = mixtral.MixtralSparseMoeBlock(config)
    for parameter in layer.parameters():
        # The router's logits come out as spread as ours do: 0.02 x sqrt(width).
        nn.init.normal_(parameter, std=0.02 if parameter.shape[0] == experts and parameter.ndim == 2 else WIDTH**-0.5)
    return layer.train()


class Bench:
    """A layer with its input, run forward and backward one step at a time."""

    def __init__(self, name: str, experts: int):
        torch.manual_seed(0)
        self.name, self.experts, self.layer = name, experts, make_layer(name, experts)
        self.x, self.towards = torch.randn(2, ROWS, LENGTH, WIDTH)
        self.x.requires_grad_()
        self.wanted = [self.x, *self.layer.parameters()]
        for _ in range(WARM_STEPS):
            self.step()

    def step(self) -> None:
        """Compute all gradients once, and drop them."""
        torch.autograd.grad(self.layer(self.x), self.wanted, self.towards, allow_unused=True)

    def measure(self, seconds: float) -> dict:
        """Step for about `seconds` and describe the speed, from the median step."""
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        median = statistics.median(times)
        return {
            "tokens_per_second": ROWS * LENGTH / median, "step_ms": 1e3 * median, "steps": len(times),
            "program": f"torch {self.name}", "experts": self.experts, "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
            },
        }  # fmt: skip


def main() -> None:
    """Warm up, then measure once or on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layer", choices=LAYERS, default="switch")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=threads(), help="threads of one operation; those that XLA takes")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the measurement")
    parser.add_argument("--serve", action="store_true", help="measure on request from standard input")
    arguments = parser.parse_args()
    if platform.libc_ver()[0] == "glibc":
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h: no limit
            ctypes.CDLL(None).mallopt(option, -1)
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.layer, arguments.experts)
    if not arguments.serve:
        print(json.dumps(bench.measure(arguments.seconds)), flush=True)
        return
    serve(bench.measure)


if __name__ == "__main__":
    main()
