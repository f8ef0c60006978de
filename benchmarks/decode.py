"""The speed of generation on a CPU beside transformers' `generate`: greedy, float32, the same weights and threads.

    python benchmarks/decode.py --yardstick "OTHER/bin/python benchmarks/generate_torch.py"

runs three comparisons one after the other, each in turns (`paired.py`): decoding at batch 1 and at batch 8 after a prompt of
64 tokens, and prefill of 512 tokens. OTHER is an environment with torch and transformers (generate_torch.py says which).
The model is a Llama of about 30M parameters: 10 layers of width 384, 6 heads, 6 key-value heads (--kv-heads 2: grouped-query),
feed-forward width 1024, vocabulary 32,000, tied. Decoding is the time of 1 + N tokens through the public `generate` less
that of 1; both sides say which tokens came first, and they must be the same.
"""

import argparse
import dataclasses
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import paired
import record
from drawn import drawn_params
from machine import threads

COMPARISONS = (("decode", 1, 64), ("decode", 8, 64), ("prefill", 1, 512))


class Side:
    """Our model and what is measured of it."""

    def __init__(self, arguments: argparse.Namespace):
        import jax

        jax.config.update("jax_platforms", "cpu")
        import numpy as np

        from jaxlm import param
        from jaxlm.decode.generate import Request
        from jaxlm.decode.sampling import Sampling
        from jaxlm.decode.weights import prepare
        from jaxlm.layout import Layout, make_mesh
        from jaxlm.model import transformer
        from jaxlm.model.config import ModelConfig
        from jaxlm.run.memory import keep_freed_memory

        keep_freed_memory()
        self.arguments = arguments
        self.config = ModelConfig(
            vocab_size=arguments.vocab, hidden_size=arguments.width, num_layers=arguments.layers, num_heads=arguments.heads,
            num_kv_heads=arguments.kv_heads, intermediate_size=arguments.intermediate, max_length=2048, norm_epsilon=1e-6,
        ).for_platform("cpu")  # fmt: skip
        self.layout = Layout(batch=None)
        jax.set_mesh(make_mesh({}, jax.devices()[:1]))
        params = jax.device_put(drawn_params(self.config))
        self.weights = prepare(params, self.config, self.layout)
        self.parameters = param.count(transformer.spec(self.config))
        prompts = np.random.default_rng(1).integers(3, arguments.vocab, (arguments.batch, arguments.prompt))
        self.requests = [Request(prompt=prompt.tolist(), sampling=Sampling(temperature=0.0)) for prompt in prompts]
        self.tokens: list[int] = []

    def timed(self, new: int) -> float:
        """Return the seconds of `new` tokens a row, through the public function."""
        from jaxlm.decode.generate import generate

        start = time.perf_counter()
        made = generate(self.weights, self.config, self.layout, self.requests, new)
        self.tokens = made[0].tokens[:16]
        return time.perf_counter() - start

    def prefilled(self) -> float:
        """Return the seconds of reading the prompts."""
        from jaxlm.decode.generate import read_prompts

        start = time.perf_counter()
        read_prompts(self.weights, self.requests, 1, self.config, self.layout).logits.block_until_ready()
        return time.perf_counter() - start

    def measure(self, seconds: float) -> dict:
        """Measure for about `seconds`: medians over repetitions."""
        import jax

        end, speeds, arguments = time.perf_counter() + seconds, [], self.arguments
        while time.perf_counter() < end or len(speeds) < 2:
            if arguments.what == "decode":
                speeds.append(arguments.batch * arguments.new / (self.timed(1 + arguments.new) - self.timed(1)))
            else:
                speeds.append(arguments.batch * arguments.prompt / self.prefilled())
        return {
            "tokens_per_second": round(statistics.median(speeds), 2), "program": "jaxlm generate",
            "parameters": self.parameters, "first_tokens": self.tokens, "threads": threads(),
            "versions": {"python": platform.python_version(), "jax": jax.__version__},
        }  # fmt: skip


def compare(arguments: argparse.Namespace) -> int:
    """Run every comparison; return 1 where one fails, the sides make different tokens, or a bar is missed."""
    results, turns, others, failure = [], {}, {}, None
    for what, batch, prompt in COMPARISONS:
        label = label_of(what, batch, prompt)
        shape = f"--serve --what {what} --batch {batch} --prompt {prompt} --kv-heads {arguments.kv_heads}"
        ours = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} {shape}"
        found = paired.compare(
            [("jaxlm", ours), ("transformers", f"{arguments.yardstick} {shape} --threads {threads()}")],
            rounds=arguments.rounds, seconds=arguments.seconds, label=label,
        )  # fmt: skip
        failure = found.failure or unlike(found)
        if failure:
            break
        paired.show(paired.summarise(["jaxlm", "transformers"], found.used), "transformers")
        results.append(record.compared(
            label, found.values("jaxlm"), found.values("transformers"), "tokens/s", "higher", disturbed=not found.enough
        ))  # fmt: skip
        turns[label] = [dataclasses.asdict(turn) for turn in found.rounds]
        others |= {name: found.rounds[-1].answers["transformers"]["versions"][name] for name in ("torch", "transformers")}
    return record.finish(
        "decode", results, arguments.json, failure=failure, judged=arguments.kv_heads == 6, more_versions=others,
        seconds=arguments.seconds, turns=turns,
    )  # fmt: skip


def label_of(what: str, batch: int, prompt: int) -> str:
    """Return what a comparison is called."""
    return f"{what}, batch {batch}, {prompt} tokens"


def unlike(found: paired.Comparison) -> str | None:
    """Return what is wrong where the sides did not make the same first tokens in every round, or not with as many threads."""
    made = {tuple(answer["first_tokens"]) for turn in found.rounds for answer in turn.answers.values()}
    return f"the sides do not make the same tokens: {made}" if len(made) != 1 else paired.unlike_threads(found)


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults are a Llama of about 30M parameters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("vocab", 32000), ("width", 384), ("layers", 10), ("heads", 6), ("kv-heads", 6), ("intermediate", 1024),
        ("batch", 1), ("prompt", 64), ("new", 64), ("rounds", 5),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    parser.add_argument("--what", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--serve", action="store_true", help="measure ours on request from standard input")
    parser.add_argument("--yardstick", help="the command to compare with; without it ours alone is measured, once")
    arguments = parser.parse_args()
    own = [name for name in ("vocab", "width", "layers", "heads", "intermediate", "batch", "prompt", "new", "what")
           if getattr(arguments, name) != parser.get_default(name)]  # fmt: skip
    if arguments.yardstick and own:
        parser.error(f"--yardstick compares shapes of its own: leave out --{', --'.join(own)}")
    return arguments


def main() -> int:
    """Compare, serve, or measure once."""
    arguments = parse_arguments()
    if arguments.yardstick:
        return compare(arguments)
    side = Side(arguments)
    _ = [side.timed(1), side.timed(1 + arguments.new)] if arguments.what == "decode" else side.prefilled()
    if arguments.serve:
        from serving import serve

        serve(side.measure)
    else:
        print(side.measure(arguments.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
