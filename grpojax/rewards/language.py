"""Language consistency: the share of the reasoning's words that are in the target language.

Equation 7 of DeepSeek-R1 (arXiv 2501.12948), Num(Words_target) / Num(Words), with a word's language
judged by its script: Latin against Han is seen, English against French is not.
"""

import functools
import itertools
import unicodedata

from grpojax.rewards.format import inside
from grpojax.task import Example, Reward

# Scripts by the first word of their letters' Unicode names.
SCRIPTS = {
    "arabic": {"ARABIC"},
    "bengali": {"BENGALI"},
    "cyrillic": {"CYRILLIC"},
    "devanagari": {"DEVANAGARI"},
    "greek": {"GREEK"},
    "han": {"CJK"},
    "hangul": {"HANGUL"},
    "hebrew": {"HEBREW"},
    "japanese": {"CJK", "HIRAGANA", "KATAKANA"},
    "latin": {"LATIN"},
    "telugu": {"TELUGU"},
    "thai": {"THAI"},
}
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA"}


def language_consistency(script: str) -> Reward:
    """The reward of eq. 7 for a target `script` of `SCRIPTS`, from 0.0 to 1.0 (all words in it).

    Judged is the text inside the only `<think>...</think>`. A word is a run of letters of one
    script; each Han or kana character is a word, as no spaces part them. Digits and symbols are no
    words. Without words there, or without that pair of tags, it is 0.0: silence is not consistency.

    Raises:
      ValueError: `script` is not in `SCRIPTS`.
    """
    if script not in SCRIPTS:
        raise ValueError(f"script must be one of {', '.join(SCRIPTS)}, got {script!r}")

    def language(example: Example, completion: str) -> float:
        words = word_scripts(inside("think", completion) or "")
        return sum(word in SCRIPTS[script] for word in words) / len(words) if words else 0.0

    return language


def word_scripts(text: str) -> list[str]:
    """The script of each word of `text`, in order."""
    # Compatibility forms (full width, mathematical italics) fold to plain letters; accents and
    # vowel signs belong to the letter before them and would otherwise break its word.
    folded = unicodedata.normalize("NFKC", text)
    letters = (c for c in folded if not unicodedata.category(c).startswith("M"))
    words = []
    for script, run in itertools.groupby(letters, letter_script):
        if script:
            words += [script] * (sum(1 for _ in run) if script in UNSPACED else 1)
    return words


@functools.lru_cache(maxsize=4096)
def letter_script(character: str) -> str:
    """The first word of a letter's Unicode name; empty for anything but a letter."""
    if not character.isalpha():
        return ""
    # "CJK UNIFIED IDEOGRAPH-4E00", and "KATAKANA-HIRAGANA PROLONGED SOUND MARK"
    return unicodedata.name(character, "UNNAMED").replace("-", " ").partition(" ")[0]
