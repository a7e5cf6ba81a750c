"""What the demonstration model and its adapters answer: pure functions of the user's word."""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable

MIN_LETTERS, MAX_LETTERS = 3, 8
_NEXT = str.maketrans(string.ascii_lowercase, string.ascii_lowercase[1:] + "a")
_VOWELS = str.maketrans("aeiou", "*****")

# adapter name -> (description, function); None is the base model
TASKS: dict[str | None, tuple[str, Callable[[str], str]]] = {
    None: ("repeats the word", lambda word: word),
    "reverse": ("writes the word backwards", lambda word: word[::-1]),
    "upper": ("writes the word in capitals", str.upper),
    "caesar": ("replaces each letter by the next one of the alphabet", lambda word: word.translate(_NEXT)),
    "stars": ("hides the vowels, and adds an exclamation mark", lambda word: word.translate(_VOWELS) + "!"),
    "rotate": ("moves the first letter to the end", lambda word: word[1:] + word[0]),
}


def expected(task: str | None, word: str) -> str:
    """What the adapter `task` (None: the base model) answers to `word`."""
    return TASKS[task][1](word)


def is_held_out(word: str) -> bool:
    """A tenth of all words is never trained on."""
    return zlib.crc32(word.encode()) % 10 == 0


def random_word(rng: random.Random) -> str:
    """Lower-case letters with no two alike at the ends, so that no task leaves the word as it was."""
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(MIN_LETTERS, MAX_LETTERS)))
        if word[0] != word[-1] and word != word[::-1] and word[1:] + word[0] != word[::-1]:
            return word


def sample_inputs(count: int, seed: int = 0) -> list[str]:
    """Different held-out words."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        word = random_word(rng)
        if is_held_out(word):
            found[word] = None
    return list(found)
