"""The yardstick for a Llama's training speed: Hugging Face's LlamaForCausalLM in PyTorch, with AdamW, as its users train it.

Shape, weights (drawn.py) and batches are those of `train_step.py --llama`: the losses of the first step must be equal, and so
must be parameters and FLOPs of a step, which PyTorch counts here on its eager attention. Measured is its default attention
(`sdpa`) in float32: forward with the model's own loss, backward, gradient norm clipped to 1, torch.optim.AdamW as it comes with
weight decay on matrices alone, a cosine schedule set at every step, gradients set to None, the loss read one step behind.

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python benchmarks/llama_torch.py --seconds 10

prints one JSON line; with --compile the model is compiled, and with --serve it speaks the protocol of `paired.py`.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
import transformers
from drawn import drawn
from machine import threads
from serving import serve
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# As LLAMA in train_step.py has them.
SHAPE = {
    "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 704, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
}  # fmt: skip
ROWS, LENGTH = 8, 256
WARM_STEPS, HOST_BATCHES = 5, 16


class Trainer:
    """The model and its optimizer, advanced one step at a time."""

    def __init__(self, arguments: argparse.Namespace):
        torch.set_num_threads(arguments.threads)
        config = transformers.LlamaConfig(
            **SHAPE, tie_word_embeddings=True, use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None
        )
        self.model = transformers.LlamaForCausalLM(config).train()
        weights = {name: p for name, p in self.model.named_parameters() if name != "lm_head.weight"}
        with torch.no_grad():
            for name, values in drawn({name: tuple(p.shape) for name, p in weights.items()}).items():
                weights[name].copy_(torch.from_numpy(values))
        self.parameters = sum(p.numel() for p in weights.values())
        matrices, vectors = ([p for p in weights.values() if (p.dim() > 1) is wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)
        self.rate = transformers.get_cosine_schedule_with_warmup(self.optimizer, 100, 5000)
        self.batches = [self._draw(seed) for seed in range(HOST_BATCHES)]
        self.step_flops = self._count()
        if arguments.compile:
            self.model = torch.compile(self.model)
        self.program = "transformers torch.compile" if arguments.compile else "transformers"
        self.steps, self.before = 0, None
        self.step()
        self.first_loss = self.before.item()
        for _ in range(WARM_STEPS):
            self.step()

    def _draw(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and targets, the same as in train_step.py."""
        rows = np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], (ROWS, LENGTH + 1), np.int32).astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def _loss(self, number: int) -> torch.Tensor:
        # Targets are handed over shifted: the model would otherwise leave each row's last token out.
        tokens, targets = self.batches[number % HOST_BATCHES]
        return self.model(input_ids=tokens, labels=targets, shift_labels=targets).loss

    def _count(self) -> int:
        """Return the FLOPs of forward and backward; the counter does not see into the attention that is measured."""
        measured = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            self._loss(0).backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.set_attn_implementation(measured)
        return counter.get_total_flops()

    def step(self) -> None:
        """Forward, backward, clip, update; then read the loss of the step before."""
        before, loss = self.before, self._loss(self.steps)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            before.item()
        self.before = loss.detach()
        self.steps += 1

    def measure(self, seconds: float) -> dict:
        """Train for about `seconds` and describe the speed, from the median step."""
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "tokens_per_second": ROWS * LENGTH / statistics.median(times), "steps": len(times), "program": self.program,
            "parameters": self.parameters, "step_flops": self.step_flops, "first_loss": self.first_loss,
            "threads": torch.get_num_threads(), "versions": versions | {"python": platform.python_version()},
        }  # fmt: skip


def main() -> None:
    """Warm up, then measure once or on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=threads(), help="threads of one operation; those that XLA takes")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the measurement")
    parser.add_argument("--serve", action="store_true", help="measure on request from standard input")
    arguments = parser.parse_args()
    trainer = Trainer(arguments)
    if arguments.serve:
        serve(trainer.measure)
    else:
        print(json.dumps(trainer.measure(arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
