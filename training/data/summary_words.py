"""Classes of English words for annotation: words with little content, verbs, and words that begin a clause.

Closed classes and frequent irregular verbs are listed; all other words are classified by their endings.
"""

import re
from functools import lru_cache

from nltk.stem.porter import PorterStemmer


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


STOP_WORDS = _words(
    "a about above after again against all also am an and any are as at be because been before being below "
    "between both but by can could did do does doing down during each few for from further had has have having he "
    "her here hers herself him himself his how i if in into is it its itself just me more most my myself no nor "
    "not now of off on once only or other our ours ourselves out over own s said same say says she should so some "
    "such t than that the their theirs them themselves then there these they this those through to too under "
    "until up us very was we were what when where which while who whom why will with would you your yours"
)
AUXILIARIES = _words(
    "is are was were am be been has have had do does did will would can could may might must shall should isn't "
    "aren't wasn't weren't hasn't haven't hadn't don't doesn't didn't won't wouldn't can't couldn't cannot it's "
    "he's she's that's there's they're we're i'm you're"
)
IRREGULAR = _words(
    "became began bought broke brought built came caught chose cut dealt drew drove fell felt fled flew forgot "
    "fought found gave gets got goes grew heard held hit hurt kept knew knows laid led left lent let lies lost "
    "made makes meant met paid put quit ran rang read rode rose said sang sank sat saw says sees sent set shook "
    "shot showed shows shut slept sold sought spent spoke spread stands stood stole struck swam swore takes "
    "taught tells thinks thought threw told took understood wants went woke won wore wrote died dies say think "
    "believe want need needs remains includes comes plans hopes expects faces claims warns urges calls wins leads "
    "helps works lives pays runs moves opens closes starts begins seeks asks offers tries uses means turns gains "
    "marks reveals accuses"
)
SAYING = _words(
    "said says say told tells added adds reported reports announced confirmed explained wrote claimed noted "
    "stated believes believe argued insisted"
)
REPORTING = _words("said says announced reported confirmed")
SUBJECT_STARTS = _words(
    "the a an he she it they we i you his her its their our my this that these those there some many most more "
    "one two three several both all police officials authorities investigators people residents critics experts "
    "researchers nobody everyone no"
)
PRONOUNS = _words("he she it they we i you")
POSSESSIVES = _words("his her its their our my your")
LEADING = _words(
    "after when while although though as if since because with without despite in on at by for from during "
    "following amid under before once until unless but and so yet however meanwhile earlier later last instead "
    "also still according moreover furthermore nevertheless nonetheless additionally indeed today yesterday now "
    "then perhaps speaking like unlike given thanks through throughout within among beyond"
)
SUBORDINATORS = _words("after when while although though as if since because before once until unless")
CONJUNCTIONS = _words("but and so yet or however meanwhile moreover furthermore also still")
RELATIVE = _words("who which whose where whom")
TRAILING = RELATIVE | _words(
    "when while after as because although though but with including such despite amid following whereas since "
    "before according until if even despite per adding saying leaving making prompting raising sparking"
)
WEEKDAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
TIME_UNITS = _words("second minute hour day night week weekend month year decade time shortly soon moments")
DAY_PARTS = _words("morning afternoon evening night")

_WORD = re.compile(r"[a-z0-9]+")
_stemmer = PorterStemmer()


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """A small-letter word's stem, as the package rouge-score makes it: words of up to three letters stay."""
    return _stemmer.stem(word) if len(word) > 3 else word


def stems(text: str) -> list[str]:
    """All words of a text as stems, as the package rouge-score cuts it."""
    return [stem(word) for word in _WORD.findall(text.lower())]


def content(text: str) -> set[str]:
    """Stems of the content words."""
    return {stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS}


def details(text: str) -> set[str]:
    """Stems of a sentence's names and numbers: of words with a digit, or a capital letter behind the first word."""
    words = text.split()
    return content(" ".join(word for at, word in enumerate(words) if re.search(r"\d" if not at else r"\d|[A-Z]", word)))


def is_finite(word: str) -> bool:
    """Whether a word looks like a finite verb."""
    word = word.lower().replace("’", "'")
    return word in AUXILIARIES or word in IRREGULAR or (len(word) > 4 and word.endswith("ed")) or word.endswith("n't")
