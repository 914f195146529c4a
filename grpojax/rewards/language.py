"""Language consistency: the share of the reasoning's words that are in the target language.

Equation 7 of DeepSeek-R1 (arXiv 2501.12948), Num(Words_target) / Num(Words). A word's language is
judged by its script, where Latin against Han is seen and English against French is not, or by a
detector that hears a passage of words, as one alone says little.
"""

import functools
import itertools
import unicodedata

import py3langid

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
PASSAGE = 100  # characters, to the end of a word
HEARD = 20_000  # characters of the reasoning; the rest is taken to be like them


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


def language_detected(code: str) -> Reward:
    """The reward of eq. 7 for a target language, by its ISO 639 code, from 0.0 to 1.0.

    The text inside the only `<think>...</think>` is cut into passages of some 100 characters, and
    py3langid says the language of each: its words count if that is the target. Words are counted as
    in `language_consistency`, and so is silence. Foreign words in a passage of the target's are
    missed, passages of a few letters and close languages are confused, and formulas hide the
    language of the words between them; the script is the surer judge where it is enough.

    Raises:
      ValueError: the detector does not know the language.
    """
    if code not in dict(py3langid.rank("")):  # this also loads its model
        raise ValueError(f"language must be a code that py3langid knows, as 'en', got {code!r}")

    def language(example: Example, completion: str) -> float:
        words = consistent = 0
        for passage in passages((inside("think", completion) or "")[:HEARD]):
            count = len(word_scripts(passage))
            words += count
            consistent += count * (count > 0 and py3langid.classify(passage)[0] == code)
        return consistent / words if words else 0.0

    return language


def passages(text: str) -> list[str]:
    """`text` cut at spaces into pieces of at least `PASSAGE` characters, or at twice as many."""
    pieces, start = [], 0
    while start < len(text):
        space = text.find(" ", start + PASSAGE, start + 2 * PASSAGE)
        end = start + 2 * PASSAGE if space < 0 else space
        # A short rest would be heard badly: it goes with the piece before it.
        end = len(text) if len(text) - end < PASSAGE // 2 else end
        pieces.append(text[start:end])
        start = end
    return pieces


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
