"""Everything that is fuzzed, by name."""

from fuzz import arrays, configurations, documents, folders, gguf, templates, tokenizers, weights, words

TARGETS = {
    target.name: target
    for room in (weights, gguf, tokenizers, documents, configurations, folders, templates, arrays, words)
    for target in room.TARGETS
}
