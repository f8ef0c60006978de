"""The yardstick for generation on a CPU: transformers' `generate`, greedy, float32, its defaults otherwise.

The model is a Llama of about 30M parameters whose weights are drawn from one NumPy seed, by `drawn.py`, as `decode.py`'s are.
Decoding is measured as the time of 1 + N new tokens less that of 1, so that reading the prompt does not count; prefill as one
forward pass over a prompt that keeps its cache and computes the last token's logits alone.

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python benchmarks/generate_torch.py --serve --what decode --batch 1

speaks `paired.py`'s protocol; `decode.py` starts it.
"""

import argparse
import platform
import statistics
import time

import numpy as np
import torch
import transformers
from drawn import drawn
from machine import threads
from serving import serve


class Side:
    """The model and what is measured of it."""

    def __init__(self, arguments: argparse.Namespace):
        torch.set_num_threads(arguments.threads)
        self.arguments = arguments
        config = transformers.LlamaConfig(
            vocab_size=arguments.vocab, hidden_size=arguments.width, num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.heads, num_key_value_heads=arguments.kv_heads,
            intermediate_size=arguments.intermediate, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = transformers.LlamaForCausalLM(config).eval()
        weights = {name: p for name, p in self.model.named_parameters() if name != "lm_head.weight"}
        with torch.no_grad():
            for name, values in drawn({name: tuple(p.shape) for name, p in weights.items()}).items():
                weights[name].copy_(torch.from_numpy(values))
        self.parameters = sum(p.numel() for p in weights.values())
        rng = np.random.default_rng(1)
        self.prompt = torch.from_numpy(rng.integers(3, arguments.vocab, (arguments.batch, arguments.prompt)))
        self.tokens: list[int] = []

    def timed(self, new: int) -> float:
        """Return the seconds of `new` tokens a row."""
        start = time.perf_counter()
        out = self.model.generate(
            self.prompt, attention_mask=torch.ones_like(self.prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        self.tokens = out[0, self.arguments.prompt :][:16].tolist()
        return time.perf_counter() - start

    @torch.no_grad()
    def prefilled(self) -> float:
        """Return the seconds of reading the prompts."""
        start = time.perf_counter()
        self.model(self.prompt, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def measure(self, seconds: float) -> dict:
        """Measure for about `seconds`: medians over repetitions."""
        end, speeds, arguments = time.perf_counter() + seconds, [], self.arguments
        while time.perf_counter() < end or len(speeds) < 2:
            if arguments.what == "decode":
                speeds.append(arguments.batch * arguments.new / (self.timed(1 + arguments.new) - self.timed(1)))
            else:
                speeds.append(arguments.batch * arguments.prompt / self.prefilled())
        versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "tokens_per_second": round(statistics.median(speeds), 2), "program": "transformers generate",
            "parameters": self.parameters, "threads": torch.get_num_threads(), "first_tokens": self.tokens,
            "versions": versions,
        }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults are a Llama of about 30M parameters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("vocab", 32000), ("width", 384), ("layers", 10), ("heads", 6), ("kv-heads", 6), ("intermediate", 1024),
        ("batch", 1), ("prompt", 64), ("new", 64), ("threads", threads()),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--what", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--serve", action="store_true", help="measure on request from standard input")
    return parser.parse_args()


def main() -> None:
    """Warm up, then measure once or on request."""
    side = Side(parse_arguments())
    _ = side.timed(2) if side.arguments.what == "decode" else side.prefilled()
    serve(side.measure) if side.arguments.serve else print(side.measure(6.0))


if __name__ == "__main__":
    main()
