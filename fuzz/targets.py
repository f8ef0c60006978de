"""Everything that is fuzzed, by name."""

from fuzz import arrays, checkpoints, configurations, documents, folders, gguf, templates, tokenizers, weights, words

TARGETS = {
    target.name: target
    for room in (weights, gguf, tokenizers, documents, configurations, folders, checkpoints, templates, arrays, words)
    for target in room.TARGETS
}
