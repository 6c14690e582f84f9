"""The training text: public-domain novels and short stories, split by document, then encoded."""

import lzma
import pathlib
import random
import re

END = "<|endoftext|>"


def _clean(text):
    text = text.replace("\r\n", "\n").replace("\u2018", "'").replace("\u2019", "'")
    text = text.replace("\u201c", '"').replace("\u201d", '"')
    # One paragraph per line group: line breaks inside paragraphs are layout, not language.
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def read_documents(folder):
    """Returns (novels, stories): lists of cleaned documents."""
    folder = pathlib.Path(folder)
    with lzma.open(folder / "novels.txt.xz", "rt", encoding="utf-8") as file:
        novels = [_clean(d) for d in file.read().split(END)]
    stories = (folder / "tinystories_sample_2M.txt").read_text(encoding="utf-8", errors="replace")
    stories = [_clean(d) for d in stories.split(END)]
    return [d for d in novels if d], [d for d in stories if len(d) > 100]


def split(novels, stories, seed, story_repeats):
    """Held-out: the last 2 % of every novel, and 2 % of the stories. Returns the training texts and {kind: held-out texts}."""
    rng = random.Random(seed)
    train, held_novels, held_stories = [], [], []
    for novel in novels:
        cut = novel.rfind("\n\n", 0, int(len(novel) * 0.98))
        cut = cut if cut > 0 else int(len(novel) * 0.98)
        train.append(novel[:cut])
        held_novels.append(novel[cut:].strip())
    for story in stories:
        if rng.random() < 0.02:
            held_stories.append(story)
        else:
            train.extend([story] * story_repeats)
    rng.shuffle(train)
    return train, {"novels": held_novels, "stories": held_stories}


def train_tokenizer(texts, vocab, path):
    """Byte-level BPE as HF's tokenizers writes it; the end-of-text token is id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(str(path))
    return tokenizer


def encode(tokenizer, texts):
    """One flat list of ids, documents ended by id 0."""
    flat = []
    for encoding in tokenizer.encode_batch(texts):
        flat.extend(encoding.ids)
        flat.append(0)
    return flat
