"""What a language model expects of sentences: `python -m training.foretell --cases FILE --data DIR --out FILE`.

The cases are of `training.summary_cases`, the folder is one of `training.summary_data`, both with this model's
tokenizer. The model learns from other summaries first (round-ups, briefs), then from highlights, in folds: what is
foretold of an article with highlights comes from a model that has not seen them, so that whoever learns from both
learns how far it can be trusted. All other articles of the folder are foretold by the mean of the folds' models. Made
for a GPU, where it takes minutes.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from selfspan_core.models.loading import load_base
from selfspan_core.models.places import place_of_base
from training.bench.results import count
from training.data.summary_foretold import Foretold
from training.data.summary_format import KINDS, NO_HITS, read
from training.foretelling import Fit, ReadArticle, Scale, SentenceModel, foretell, learn
from training.text_data import SPLITS

HIGHLIGHTS = KINDS.index("highlights")
MOST_TOKENS = 1_600
"""Of an article, from its beginning; its sentences behind have no scores of their own."""


def articles_of(arrays: dict[str, np.ndarray], most_tokens: int) -> list[ReadArticle]:
    """The documents of a packed file."""
    lengths = np.split(arrays["segment_lengths"].astype(np.int64), np.cumsum(arrays["document_segments"])[:-1])
    hits = arrays.get("hits", np.full(len(arrays["segment_lengths"]), NO_HITS)).astype(np.float32)
    hits[hits == NO_HITS] = np.nan
    made, token, segment = [], 0, 0
    for key, one in zip(arrays["ids"].tolist(), lengths, strict=True):
        tokens = arrays["tokens"][token : token + int(one.sum())]
        made.append(ReadArticle.of(key, tokens, one, hits[segment : segment + len(one)], most_tokens))
        token, segment = token + int(one.sum()), segment + len(one)
    return made


def correlation(found: dict[str, np.ndarray], articles: Sequence[ReadArticle]) -> float:
    """Of foretold and true hits, over all sentences of some articles."""
    pairs = np.concatenate([np.stack([found[one.id], one.hits]) for one in articles], axis=1)
    return float(np.corrcoef(pairs[:, ~np.isnan(pairs[1])])[0, 1])


class Folds:
    """Models that have each seen all but a part of the highlights.

    Args:
        model: as it comes from `load`; it is taught fold by fold.
        articles: with highlights.
        others: with summaries of other kinds, which all folds learn from first.
        num: of folds.
        seed: of folds and order.
    """

    def __init__(
        self, model: SentenceModel, articles: Sequence[ReadArticle], others: Sequence[ReadArticle], num: int, seed: int
    ) -> None:
        self._model, self._others, self._num, self._seed = model, others, num, seed
        self._articles = list(articles)
        random.Random(seed).shuffle(self._articles)
        self._scale = Scale.of(self._articles)

    def foretell(self, unlabelled: Sequence[ReadArticle], first: Fit, then: Fit) -> dict[str, np.ndarray]:
        """Expected hits of all articles with highlights, and of those without.

        Args:
            unlabelled: articles whose highlights nobody has seen.
            first: how the other summaries are learned.
            then: how each fold is.
        """
        began = time.monotonic()
        if self._others:
            learn(self._model, [(1, self._others)], self._scale, first, self._seed)
        start = {name: tensor.cpu().clone() for name, tensor in self._model.state_dict().items()}
        found: dict[str, np.ndarray] = {}
        sums: dict[str, np.ndarray] = {}
        for fold in range(self._num):
            self._model.load_state_dict(start)
            self._model.heads[0].load_state_dict(self._model.heads[1].state_dict())
            seen = [one for number, one in enumerate(self._articles) if number % self._num != fold]
            unseen = self._articles[fold :: self._num]
            loss = learn(self._model, [(0, seen)], self._scale, then, self._seed + fold)
            of_unseen = foretell(self._model, unseen, self._scale)
            found |= of_unseen
            for key, hits in foretell(self._model, unlabelled, self._scale).items():
                sums[key] = sums.get(key, 0) + hits / self._num
            told = f"loss {loss:.3f}, correlation with unseen hits {correlation(of_unseen, unseen):.3f}"
            print(f"fold {fold + 1}/{self._num}: {told}, {time.monotonic() - began:.0f} s", flush=True)
        return sums | found


def load(base: str, device: str) -> SentenceModel:
    """A language model with two heads: of highlights, and of all other summaries."""
    model = load_base(place_of_base(base), torch.float32, "sdpa")
    return SentenceModel(model.get_decoder(), model.config.hidden_size, 2).to(device)


def run(arguments: argparse.Namespace) -> Foretold:
    """Teach, foretell and write."""
    cases = read(arguments.cases)
    labelled = articles_of(cases, arguments.most_tokens)
    has_highlights = (cases["kinds"] == HIGHLIGHTS).tolist()
    articles = [one for one, has in zip(labelled, has_highlights, strict=True) if has]
    others = [one for one, has in zip(labelled, has_highlights, strict=True) if not has]
    if len(articles) < 2 * arguments.folds:
        few = f"{len(articles)} articles with highlights are too few for {arguments.folds} folds"
        raise ValueError(f"{arguments.cases}: {few}")
    packed = [read(arguments.data / f"{split}.npz.xz") for split in SPLITS]
    known = {one.id for one in articles}
    documents = [one for arrays in packed for one in articles_of(arrays, arguments.most_tokens) if one.id not in known]
    unlabelled = documents[: arguments.limit]
    print(f"{len(articles):,} articles with highlights, {len(others):,} with others, {len(unlabelled):,} without")
    folds = Folds(load(arguments.base, arguments.device), articles, others, arguments.folds, arguments.seed)
    found = folds.foretell(
        unlabelled, Fit(arguments.first_epochs, arguments.first_s), Fit(arguments.epochs, arguments.fold_s)
    )
    foretold = Foretold(found)
    foretold.save(arguments.out)
    print(f"wrote {arguments.out}: {len(found):,} articles")
    return foretold


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True, help="a file of training.summary_cases")
    parser.add_argument("--data", type=Path, required=True, help="a folder of training.summary_data")
    parser.add_argument("--base", default="smollm2-135m", help="whose tokenizer the folder's ids are of")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=count, default=3)
    parser.add_argument("--epochs", type=count, default=3, help="of each fold")
    parser.add_argument("--first-epochs", type=count, default=2, help="over other summaries")
    parser.add_argument("--fold-s", type=float, default=600.0, help="seconds that a fold may learn")
    parser.add_argument("--first-s", type=float, default=1200.0, help="seconds for other summaries")
    parser.add_argument("--limit", type=count, help="articles without highlights that are foretold (default: all)")
    parser.add_argument("--most-tokens", type=count, default=MOST_TOKENS, help="of an article that are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
