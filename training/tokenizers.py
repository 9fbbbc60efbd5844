"""The two tokenizers: CLIP's byte-level BPE and T5's Unigram, both in lower case, trained on counted words.

What it does not know: what words mean, networks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

CLIP_VOCABULARY = 8192
CLIP_LENGTH = 48  # tokens, with start and end
T5_VOCABULARY = 12_288
T5_LENGTH = 32  # tokens, with the end
_SUB_WORDS = 1 / 3  # of T5's vocabulary; the rest are whole words
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_END_OF_WORD = "</w>"
_MARK = "▁"  # stands before the first piece of a word
#: Chinese and Japanese write a whole label as one word: its characters are its words.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_BONUS = 1.0  # how much likelier (natural logarithm) a whole word is than its best split


def train_clip(counts: Mapping[str, int], vocabulary: int = CLIP_VOCABULARY) -> CLIPTokenizer:
    """A BPE of `vocabulary` tokens; start 0, end 1, padded with the end as CLIP is.

    Every byte is a token, inside a word and at its end: nothing is unknown. CLIP's unknown token is the end, and the
    text would be taken to stop there.
    """
    backend = Tokenizer.from_str(CLIPTokenizer().backend_tokenizer.to_str())  # CLIP's own rules for text
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [byte + _END_OF_WORD for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *ends],  # a number each, so that ties end the same way
        end_of_word_suffix=_END_OF_WORD,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(counts), trainer)
    trained = json.loads(backend.to_str())["model"]
    merges = [(first, second) for first, second in trained["merges"]]
    return CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=CLIP_LENGTH)


def train_t5(counts: Mapping[str, int], vocabulary: int = T5_VOCABULARY) -> PreTrainedTokenizerFast:
    """A Unigram of `vocabulary` pieces: trained sub-words, and those words that would else cost most pieces.

    A whole word is always likelier than its best split. The end follows every text; padding is 0, end 1, unknown 2.
    """
    pieces = _sub_words(counts, int(vocabulary * _SUB_WORDS))
    splitter = _unigram(pieces)
    splits = {word: splitter.encode(word).tokens for word in sorted(counts) if not _UNSPACED.search(word)}
    by_cost = sorted(splits, key=lambda word: counts[word] * (1 - len(splits[word])))
    for word in by_cost[: vocabulary - len(pieces)]:
        pieces[_MARK + word] = sum(pieces[piece] for piece in splits[word]) + _BONUS
    backend = _unigram(pieces)
    backend.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=T5_LENGTH,
    )


def save_tokenizers(folder: Path, clip: CLIPTokenizer, t5: PreTrainedTokenizerFast) -> None:
    """Write both where a pipeline has them inside `folder`."""
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, PreTrainedTokenizerFast]:
    """CLIP's and T5's, as `save_tokenizers` wrote them."""
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return clip, PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True)


def _sub_words(counts: Mapping[str, int], vocabulary: int) -> dict[str, float]:
    """Piece -> logarithm of its probability, the special ones first, then by falling probability.

    The trainer sums and sorts in no fixed order: last digits go, and ties are put in an order of our own.
    """
    special = [_PAD, _END, _UNKNOWN]
    backend = _unigram({})
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=special, unk_token=_UNKNOWN, show_progress=False
    )
    backend.train_from_iterator(_repeated(counts), trainer)
    found = {piece: round(score, 6) for piece, score in json.loads(backend.to_str())["model"]["vocab"]}
    ordered = sorted(found.keys() - special, key=lambda piece: (-found[piece], piece))
    return {piece: found[piece] for piece in [*special, *ordered]}


def _unigram(pieces: Mapping[str, float]) -> Tokenizer:
    """Only letters and digits are read; whatever else stands in a text separates words."""
    backend = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2) if pieces else models.Unigram())
    separate = normalizers.Replace(Regex(r"[^\p{L}\p{M}\p{N}]+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), separate])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    return backend


def _repeated(counts: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it counts, in an order that does not depend on how the counts were made."""
    for word, count in sorted(counts.items()):
        for _ in range(count):
            yield word
