"""What the tests of both training scripts share: whole runs in this process, with a random M_S and a scripted M_L."""

import json
import sys

import data
from lmcot import LocalLM
from model import T5, T5Config
from tiny import world


def save_random_small(folder, tokenizer, dropout=0.1):
    """A tiny M_S, with dropout, so that what is random in training matters."""
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=1,
                      num_decoder_layers=1, dropout_rate=dropout)  # fmt: skip
    T5(config).init_weights(0).save_pretrained(folder, tokenizer)


def run_script(patch, script, sizes, make_large, flags, arguments):
    """Run `script.main` as its command would, on a TinyWiki of these sizes; the folder "teacher" is what make_large
    gives for the options of LocalLM.load → exit status."""
    patch.setattr(world, "SIZES", world.SIZES | sizes)
    load = LocalLM.load.__func__

    def stub_or_load(cls, place, **options):
        return make_large(**options) if str(place) == "teacher" else load(cls, place, **options)

    patch.setattr(LocalLM, "load", classmethod(stub_or_load))
    given = [str(x) for pair in flags.items() for x in pair] + [str(x) for x in arguments]
    patch.setattr(sys, "argv", [f"{script.__name__}.py", *given])
    try:
        data.run_main(script.main)
    except SystemExit as end:
        return end.code
    finally:
        patch.setattr(LocalLM, "load", classmethod(load))
    return 0


def lines(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
