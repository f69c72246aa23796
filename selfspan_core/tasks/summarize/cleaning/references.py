"""Reference marks taken off: "[1]", "[citation needed]", "[^1]", figures set high, and the notes that they lead to.

A mark goes only behind something, so that a list of sources keeps its numbers. It stays where it is a word of the
sentence ("as shown in [8]"), and a letter in brackets stays where it is one of a word ("[t]he bridge").
"""

import re
from collections import Counter

_NUMBERS = r"\d{1,3}(?: ?[,–-] ?\d{1,3}){0,9}(?:, pp?\. ?\d{1,4}(?:[–-]\d{1,4})?)?"
_NOTES = (
    r"citations? needed|clarification needed|better source needed|"
    r"(?:additional |non-primary )?source(?:\(s\)|s)? needed|"
    r"page needed|verification needed|failed verification|original research\??|unreliable source\??|dead link|"
    r"dubious(?: ?[–-] ?discuss)?|by whom\?|who\?|when\?|where\?|which\?|why\?|how\?|according to whom\?|update|edit|"
    r"(?:note|nb|n|fn) \d{1,3}"
)
_ANY = rf"\[(?:{_NUMBERS}|(?i:{_NOTES})|\^[\w-]{{1,30}})\]"
# Not " ?[,–-]? ?": a space could be either one, and nine of them would be tried in 512 ways.
_MORE = rf"(?: ?(?:[,–-] ?)?{_ANY}){{0,9}}"
# "(see [3, 4])"
_BRACKETED = re.compile(rf" ?\((?:(?:see|cf\.|e\.g\.,?|see also|ref\.|refs\.) )?{_ANY}{_MORE}\)", re.IGNORECASE)
# The page may follow: "[6]:17".
_REFERENCE = re.compile(rf"(?<=[^\s\[])( ?){_ANY}{_MORE}(?::\d{{1,4}}(?:[–-]\d{{1,4}})?)?")
_LETTER = re.compile(
    r"(?<=[.,;!?”’)\]])\[[a-z]\](?!\w)|(?<=[.,;!?])[\"']?\[[a-z]\](?=\s|\Z)|(?<=[a-z])\[[a-c]\](?=[\s.,;]|\Z)"
)
# "It is old.[1]: 12 It is long."
_PAGED = re.compile(rf"(?<=[.!?”\"]){_ANY}: \d{{1,4}}(?:[–-]\d{{1,4}})?(?= [A-Z“\"]|\Z)")
_HIGH = re.compile(r"(?<=[.,;!?”\"’)])[⁰¹²³⁴-⁹]{1,3}(?:[,–-][⁰¹²³⁴-⁹]{1,3}){0,5}(?=\s|\Z)")
_HIGH_FIGURES = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹")
_NOUN_BEFORE = re.compile(
    r"\b(?:in|see|from|by|of|to|with|than|also|and|or|ref\.|refs\.|reference|references)\Z", re.IGNORECASE
)
_NOTE = re.compile(r"\[\^[\w-]{1,30}\]:.{0,2000}")


def references_taken_off(lines: list[str], tally: Counter) -> list[str]:
    """Lines without reference marks, and without Markdown's notes ("[^1]: ...")."""
    kept = []
    for line in lines:
        if line.startswith("[^") and _NOTE.fullmatch(line):
            tally["notes"] += 1
            continue
        kept.append(_taken_off(line, tally) if ("[" in line and "]" in line) or set(line) & _HIGH_FIGURES else line)
    return kept


def _taken_off(line: str, tally: Counter) -> str:
    def without(match: re.Match) -> str:
        if match[1] and _NOUN_BEFORE.search(line[max(0, match.start() - 12) : match.start()]):
            return match[0]
        tally["references"] += max(1, match[0].count("["))
        return ""

    line, num_bracketed = _BRACKETED.subn("", line)
    line, num_paged = _PAGED.subn("", line)
    line = _REFERENCE.sub(without, line)
    line, num_letters = _LETTER.subn("", line)
    line, num_high = _HIGH.subn("", line)
    tally["references"] += num_bracketed + num_paged + num_letters + num_high
    return line
