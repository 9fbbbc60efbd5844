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
T5_VOCABULARY = 16_384
T5_LENGTH = 32  # tokens, with the end
_SUB_WORDS = 4  # one in so many of T5's pieces; the others are whole words
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_END_OF_WORD = "</w>"
_MARK = "▁"  # stands before the first piece of a word
#: Chinese and Japanese write a whole label as one word: its characters are its words.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_COST = 100.0  # of a piece, in units of the difference between the likeliest and the least likely


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
    """A Unigram of `vocabulary` pieces: a BPE's sub-words, and as many whole words as fit.

    All pieces are about as likely: the split with the fewest wins, so a whole word always, and then the one with the
    commoner pieces. (The Unigram's own trainer adds up in an order left to chance: no two runs give the same.)
    The end follows every text; padding is 0, end 1, unknown 2.
    """
    splitter = _reading(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary // _SUB_WORDS,
        special_tokens=[_PAD, _END, _UNKNOWN],
        initial_alphabet=sorted({_MARK, *"".join(counts)}),
        show_progress=False,
    )
    splitter.train_from_iterator(_repeated(counts), trainer)
    ids = splitter.get_vocab()
    missing = [word for word in sorted(counts) if _MARK + word not in ids and not _UNSPACED.search(word)]
    missing.sort(key=lambda word: -counts[word])
    pieces = [*sorted(ids, key=ids.__getitem__), *(_MARK + word for word in missing)][:vocabulary]
    scores = [(piece, -_COST - rank / vocabulary) for rank, piece in enumerate(pieces)]
    backend = _reading(Tokenizer(models.Unigram(scores, unk_id=2)))
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


def _reading(backend: Tokenizer) -> Tokenizer:
    """Set to read letters and digits only; whatever else stands in a text separates words."""
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
