"""What a person sees of a row is what the network reads."""

import base64
import io

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from multiexit.data import digits
from multiexit.data.showing import LONGEST, shown
from multiexit.data.text import TextDataset


def test_pictures_are_the_pixels():
    images = digits.load()
    for row in (0, 7):
        url = shown(images.test, row, images.preprocessing)["image"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        pixels = torch.tensor(list(picture.getdata())).view(8, 8)
        assert torch.equal(pixels, images.test.images[row, 0].long())


def test_texts_come_in_their_parts():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5}
    backend = Tokenizer(models.WordLevel(words, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    data = TextDataset.from_texts(tokenizer, ["good bad", "bad " * 110], ["bad", "good"])
    assert shown(data, 0, {"kind": "text"}) == {"text": ["good bad", "bad"]}
    long, _ = shown(data, 1, {"kind": "text"})["text"]
    assert len(long) == LONGEST + 1


def test_other_rows_show_nothing():
    assert shown([(torch.zeros(3), 1)], 0, {}) == {}
