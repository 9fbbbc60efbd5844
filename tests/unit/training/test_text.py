"""The lexicon, the tokenizers and the started encoders, on a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel  # noqa: E402

from training.lexicon import align, common_words, lexicon, words  # noqa: E402
from training.records import Record  # noqa: E402
from training.text import build_text, start_embedding, token_ids  # noqa: E402
from training.tokenizers import (  # noqa: E402
    CLIP_LENGTH,
    T5_LENGTH,
    load_tokenizers,
    save_tokenizers,
    train_clip,
    train_t5,
)

CLIP_TOKENS, T5_TOKENS = 700, 120
ENGLISH = ("red apple", "green apple", "red car", "green car", "cat face", "sunset over mountains")
GERMAN = ("roter apfel", "grüner apfel", "rotes auto", "grünes auto", "katzengesicht", "sonnenuntergang über bergen")


def _record(label: str, german: str, keywords: Sequence[str] = ()) -> Record:
    return Record(
        label=label,
        name=label,
        style="flat",
        set="twemoji",
        license="CC-BY-4.0",
        group="objects",
        keywords=tuple(keywords),
        labels={"de": german},
    )


RECORDS = [_record(*pair) for pair in zip(ENGLISH, GERMAN, strict=True)]
COUNTS = lexicon(RECORDS, ["A red apple on calm water!"], ["puppy"]).counts


@pytest.fixture(scope="module")
def tokenizers() -> tuple[CLIPTokenizer, PreTrainedTokenizerFast]:
    """Small ones, from the records' words."""
    return train_clip(COUNTS, CLIP_TOKENS), train_t5(COUNTS, T5_TOKENS)


def test_words_are_letters_and_digits_in_lower_case_whatever_separates_them() -> None:
    assert words("The T-Shirt, №5: Über-ﬁsh's 红苹果!") == ["the", "t", "shirt", "no5", "über", "fish", "s", "红苹果"]


def test_translated_labels_teach_what_each_word_in_them_means() -> None:
    meant = align([(words(german), words(english)) for english, german in zip(ENGLISH, GERMAN, strict=True)])
    assert {word: max(meant[word], key=meant[word].__getitem__) for word in ("apfel", "roter", "auto", "grünes")} == {
        "apfel": "apple",
        "roter": "red",
        "auto": "car",
        "grünes": "green",
    }
    assert meant["apfel"]["apple"] > 0.9
    assert all(sum(shares.values()) == pytest.approx(1) for shares in meant.values())


def test_a_word_of_two_languages_means_both() -> None:
    meanings = lexicon([_record("poison", "gift"), _record("wrapped gift", "geschenk")], [], []).meanings
    assert meanings["gift"] == {"poison": 0.5, "gift": 0.5}
    assert meanings["poison"] == {"poison": 1.0}


def test_a_label_counts_once_however_many_styles_show_it() -> None:
    assert lexicon([*RECORDS, *RECORDS], [], []).counts == lexicon(RECORDS, [], []).counts


def test_words_in_captions_and_common_words_mean_themselves() -> None:
    known = lexicon(RECORDS, ["calm water"], ["puppy"])
    assert known.meanings["calm"] == {"calm": 1.0}
    assert known.meanings["puppy"] == {"puppy": 1.0}
    assert known.counts["water"] == 1


def test_common_words_past_the_most_frequent_are_plain_nouns_one_can_draw(tmp_path: Path) -> None:
    frequent = [
        chr(97 + number // 26 // 26) + chr(97 + number // 26 % 26) + chr(97 + number % 26) for number in range(4000)
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "##ing", *frequent, "kitten", "idea", "paris"]), "utf-8")
    (tmp_path / "data.noun").write_text(
        "  1 the licence\n"
        "00000001 05 n 01 kitten 0 000 | a young cat\n"
        "00000002 09 n 01 idea 0 000 | a thought\n"
        "00000003 18 n 01 Paris 0 000 | a prince\n",
        "utf-8",
    )
    (tmp_path / "index.noun").write_text(
        "  1 the licence\nidea n 1 0 1 0 00000002\nkitten n 1 0 1 0 00000001\nparis n 1 0 1 0 00000003\n",
        "utf-8",
    )
    assert common_words(tmp_path, tmp_path / "vocab.txt") == [*frequent, "kitten"]


def test_t5_has_whole_words_and_separates_at_punctuation(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> None:
    t5 = tokenizers[1]
    assert t5.tokenize("A RED apple--green, Puppy.") == ["▁a", "▁red", "▁apple", "▁green", "▁puppy"]
    assert t5.tokenize("katzengesicht") == ["▁katzengesicht"]


def test_both_read_upper_case_like_lower_case(tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast]) -> None:
    for tokenizer in tokenizers:
        assert tokenizer("GRÜNER Apfel").input_ids == tokenizer("grüner apfel").input_ids


def test_t5_is_padded_to_its_length_after_the_end(tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast]) -> None:
    ids = tokenizers[1]("red apple", padding="max_length", truncation=True).input_ids
    assert ids[2:] == [1] + [0] * (T5_LENGTH - 3)
    assert tokenizers[1]("red " * 99, padding="max_length", truncation=True).input_ids[-2:] == [ids[0], 1]


def test_clip_marks_start_and_end_and_pads_with_the_end(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> None:
    ids = tokenizers[0]("red apple", padding="max_length", truncation=True).input_ids
    assert len(ids) == CLIP_LENGTH
    assert ids[0] == 0
    assert set(ids[3:]) == {1}


@pytest.mark.parametrize("text", ["a cat, sitting.", "#1 «café» 😀", "红苹果 яблоко", "\x00\x7f"])
def test_clip_never_takes_a_text_to_end_before_it_does(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast], text: str
) -> None:
    assert tokenizers[0].eos_token_id not in tokenizers[0](text).input_ids[:-1]


def test_training_the_tokenizers_again_gives_the_same() -> None:
    backwards = Counter(dict(reversed(COUNTS.items())))
    for train, size in ((train_clip, CLIP_TOKENS), (train_t5, T5_TOKENS)):
        assert train(COUNTS, size).get_vocab() == train(backwards, size).get_vocab()


def test_saved_tokenizers_and_encoders_are_read_back_by_the_stock_classes(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    save_tokenizers(tmp_path, *tokenizers)
    for saved, loaded in zip(tokenizers, load_tokenizers(tmp_path), strict=True):
        assert loaded("Ein roter Apfel!").input_ids == saved("Ein roter Apfel!").input_ids
        assert loaded.model_max_length == saved.model_max_length
    ids = torch.tensor([[3, 5, 8, 1, 1]])
    for encoder, stock in zip(build_text(*tokenizers), (CLIPTextModel, T5EncoderModel), strict=True):
        encoder.eval().save_pretrained(tmp_path / "encoder")
        again = stock.from_pretrained(tmp_path / "encoder")

        assert torch.equal(again(ids)[0], encoder(ids)[0])


def test_the_pooled_row_is_that_of_the_end_of_the_text(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> None:
    clip = build_text(*tokenizers)[0].eval()
    ids = torch.tensor([tokenizers[0]("a red apple.", padding="max_length").input_ids])
    end = ids[0].tolist().index(1)
    found = clip(ids)
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, end])


def test_encoders_at_random_give_rows_of_ordinary_size(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> None:
    torch.manual_seed(0)
    for encoder, tokenizer in zip(build_text(*tokenizers), tokenizers, strict=True):
        ids = torch.tensor([tokenizer("a red apple", padding="max_length").input_ids])
        assert 0.3 < encoder.eval()(ids)[0].std() < 3


def test_tokens_start_beside_those_of_like_meaning_and_keep_their_length(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> None:
    torch.manual_seed(0)
    t5 = tokenizers[1]
    names = ["red", "roter", "apple", "apfel", "water"]
    meanings = torch.nn.functional.normalize(torch.randn(3, 384), dim=1)
    vectors = meanings[torch.tensor([0, 0, 1, 1, 2])]
    weight = torch.randn(len(t5), 32)
    before = weight.clone()
    start_embedding(weight, list(token_ids(t5, names)), vectors)
    rows = torch.nn.functional.normalize(weight[t5.convert_tokens_to_ids(["▁" + name for name in names])], dim=1)
    likeness = rows @ rows.T
    assert likeness[0, 1] > 0.99
    assert likeness[2, 3] > 0.99
    assert likeness[0, 2] < 0.3
    assert torch.allclose(rows.new_tensor(32**0.5), weight[t5.convert_tokens_to_ids("▁red")].norm(), rtol=0.05)
    untouched = [t5.pad_token_id, t5.eos_token_id, t5.convert_tokens_to_ids("▁puppy")]
    assert torch.equal(weight[untouched], before[untouched])


def test_a_part_of_a_word_means_the_words_that_hold_it() -> None:
    weight = torch.randn(4, 2)
    start_embedding(weight, [[0], [1], [2], [0, 3]], torch.eye(4)[[0, 1, 2, 0]])
    assert torch.nn.functional.cosine_similarity(weight[0], weight[3], dim=0) > 0.99
