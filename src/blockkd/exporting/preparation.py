"""What raw inputs need before the exported network sees them: of images their pixels, of sentences their tokens."""

import json
from pathlib import Path

from blockkd.data.preprocessing import Preprocessing
from blockkd.durable import write_durably
from blockkd.exporting.errors import ExportError
from blockkd.text.preprocessing import FOLDER, TextPreprocessing, read_tokenizer

Preparation = Preprocessing | TextPreprocessing

PREPROCESSING = "preprocessing.json"


def write_preparation(preparation: Preparation, folder: Path) -> None:
    """Write ``preprocessing.json``, and for sentences the tokenizer in a folder of its own."""
    text = json.dumps(preparation.as_dict(), indent=2, ensure_ascii=False) + "\n"
    write_durably(folder / PREPROCESSING, text.encode("utf-8"))
    if isinstance(preparation, TextPreprocessing):
        write_tokenizer(preparation, folder / FOLDER)


def write_tokenizer(preparation: TextPreprocessing, folder: Path) -> None:
    """Write the folder that ``AutoTokenizer.from_pretrained`` loads; it may be there."""
    preparation.tokenizer.save_pretrained(folder)


def load_preprocessing(folder: str | Path) -> Preparation:
    """What is to be done to raw inputs before the exported network sees them.

    Of images ``network(preprocessing(pixels))``; of sentences ``network(**preprocessing(["a fine film"]))``.

    Raises:
        ExportError: the export does not say.
    """
    path = Path(folder) / PREPROCESSING
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if FOLDER in content:
            return TextPreprocessing.from_dict(content, read_tokenizer(Path(folder) / FOLDER))
        return Preprocessing.from_dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} does not say how inputs are made ready: {type(error).__name__} {error}") from error
