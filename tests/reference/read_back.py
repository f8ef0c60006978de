"""Show that what is exported is read by Hugging Face transformers as the same function, and store that it was.

In the project's environment, write a folder for every case of every family's fixture, imported and exported again:

    python tests/reference/read_back.py export FOLDER

In an environment with torch==2.13.0 and transformers==5.23.0, load each with `AutoModelForCausalLM.from_pretrained`, compare
its logits with the fixture's, which the original model gave, and write exported.json beside this script:

    python tests/reference/read_back.py read FOLDER

exported.json holds for each case a SHA-256 of config.json and of every tensor, and the greatest difference of a logit over the
largest logit. Export is deterministic: a test exports again and compares the digests, so that
what was read back then is what is written now.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
BAR = 5e-5


def write(folder: Path) -> None:
    """Export every case."""
    sys.path.insert(0, str(HERE.parent))
    import families

    for name, case in families.cases():
        place = folder / name / case
        place.mkdir(parents=True)
        print(name, case, families.export(name, case, place))


def digest(config: str, tensors: dict[str, np.ndarray]) -> str:
    """The SHA-256 of a config.json's text and of all tensors by name; tests/families.py has the same."""
    hashed = hashlib.sha256(config.encode())
    for name in sorted(tensors):
        hashed.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode() + tensors[name].tobytes())
    return hashed.hexdigest()


def read(folder: Path) -> None:
    """Load every exported case with transformers and store how near its logits are."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    results = {}
    for config in sorted(folder.glob("*/*/config.json")):
        place, (name, case) = config.parent, config.parts[-3:-1]
        written = digest(config.read_text(), load_file(place / "model.safetensors"))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            place, attn_implementation="eager", experts_implementation="eager", output_loading_info=True, dtype=torch.float32
        )
        if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise AssertionError(f"{name} {case}: {report}")
        with np.load(HERE / f"{name}.npz") as stored:
            tokens, expected = stored[f"{case}/tokens"], stored[f"{case}/logits"]
        with torch.no_grad():
            found = model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        print(f"{name} {case}: {type(model).__name__}, {off:.1e}")
        if not off <= BAR:
            raise AssertionError(f"{name} {case}: logits differ by {off:.1e} of the largest")
        results[f"{name}/{case}"] = {"digest": written, "difference": float(f"{off:.1e}")}
    (HERE / "exported.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    {"export": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
