"""lab/classes.py: rationales classed by hand, and what the gold sentences of real questions are."""

import pytest
from harness import call, write_run

import data
from lab import classes


def example(kind, paragraphs, supporting):
    """An example whose supporting facts are these sentences."""
    texts = [data.Paragraph(title, sentences) for title, sentences in paragraphs.items()]
    places = {sentence: (p, s) for p, text in enumerate(texts) for s, sentence in enumerate(text.sentences)}
    facts = tuple(places[sentence] for sentence in supporting)
    return data.Example("0", "?", tuple(texts), "Daton", supporting_facts=facts, type=kind)


DIRECTED, MUSIC = "Bapick directed Stormgate.", "Stormgate has music by Cobla."
BORN, COBLA_BORN = "The birthplace of Bapick is Daton.", "Cobla was born in Feburg."
FATHER = "Bapick is a child of Rocuck, the father."
CHAIN = example("compositional", {"Stormgate": (DIRECTED, MUSIC, COBLA_BORN), "Bapick": (FATHER, BORN)},
                [DIRECTED, BORN])  # fmt: skip

# The director lives where the lookalike, a stranger, was born: no sentence leads to the stranger. A lookalike is who
# the last sentence is about, and not who it names, too.
EMPLOYS, LIVES = "Bapick employs Hiklona.", "Hiklona lives in Feburg."
STRANGER = example("compositional", {"Hiklona": (EMPLOYS, LIVES, COBLA_BORN), "Bapick": (BORN,)}, [EMPLOYS, BORN])

A, B = "Stormgate was released in 1950.", "Moonfall came out in 1931."
COMPARISON = example("comparison", {"Stormgate": (A, MUSIC), "Moonfall": (B,)}, [A, B])

A_HOP, A_YEAR = "P directed A.", "P was born in the year 1950."
B_HOP, B_YEAR = "Q directed B.", "The birth year of Q is 1931."
BRIDGE = example("bridge_comparison", {"A": (A_HOP,), "P": (A_YEAR,), "B": (B_HOP,), "Q": (B_YEAR,)},
                 [A_HOP, A_YEAR, B_HOP, B_YEAR])  # fmt: skip


@pytest.mark.parametrize("question, said, name", [
    (CHAIN, [DIRECTED, BORN], "full chain"),
    (CHAIN, [DIRECTED, MUSIC, FATHER, BORN], "full chain"),  # true sentences between them
    (CHAIN, [BORN], "right leap"),
    (CHAIN, [FATHER, BORN], "right leap"),
    (CHAIN, [MUSIC, COBLA_BORN], "lookalike chain"),
    (CHAIN, [COBLA_BORN], "lookalike leap"),
    (CHAIN, [DIRECTED, COBLA_BORN], "lookalike leap"),  # the hop to somebody else leads not there
    (STRANGER, [LIVES, COBLA_BORN], "lookalike leap"),
    (CHAIN, [DIRECTED], "hop only"),
    (CHAIN, [DIRECTED, FATHER], "hop only"),
    (CHAIN, [DIRECTED, BORN, MUSIC], "hop only"),  # the last sentence counts
    (CHAIN, [MUSIC], "other"),
    (CHAIN, [], "other"),
    (CHAIN, [DIRECTED, "Bapick was born in Daton."], "unfaithful"),  # true, and in other words
    (CHAIN, [DIRECTED, "The birthplace of Bapick is Feburg."], "unfaithful"),
    (CHAIN, [DIRECTED, BORN.rstrip(".")], "unfaithful"),  # cut
    (COMPARISON, [A, B], "both facts"),
    (COMPARISON, [B, A], "both facts"),
    (COMPARISON, [A, MUSIC], "one fact"),
    (COMPARISON, [B, B], "one fact"),
    (COMPARISON, [MUSIC], "no fact"),
    (COMPARISON, [], "no fact"),
    (COMPARISON, [A, "Moonfall came out in 1950."], "unfaithful"),
    (BRIDGE, [A_HOP, A_YEAR, B_HOP, B_YEAR], "2 full chains"),
    (BRIDGE, [B_HOP, B_YEAR, A_HOP, A_YEAR], "2 full chains"),
    (BRIDGE, [A_HOP, B_HOP, A_YEAR, B_YEAR], "2 full chains"),
    (BRIDGE, [A_HOP, A_YEAR, B_YEAR], "1 full chain"),
    (BRIDGE, [A_YEAR, A_HOP, B_YEAR], "0 full chains"),
    (BRIDGE, [], "0 full chains"),
    (BRIDGE, [A_HOP, "Q directed A."], "unfaithful"),
])  # fmt: skip
def test_rationales_by_hand(question, said, name):
    assert classes.classify(question, " ".join(said)) == name


def test_of_real_questions_gold_is_whole_and_only_two_hops_have_leaps():
    best = {"two hops": "full chain", "comparison": "both facts", "bridge comparison": "2 full chains", "": ""}
    without = {"two hops": "right leap", "comparison": "one fact", "bridge comparison": "1 full chain", "": ""}
    groups = {}
    for each in data.load("tiny", "dev", 200) + data.load("tiny", "ood", 50, "all"):
        gold, group = each.supporting_sentences, classes.group_of(each)
        groups[each.type] = group
        assert classes.classify(each, " ".join(gold)) == best[group]
        assert classes.classify(each, " ".join(gold[1:])) == without[group]
        if group == "two hops":
            assert classes.classify(each, classes.lookalike(each)[1]) == "lookalike leap"
    two_hops = dict.fromkeys(("compositional", "inference", "unseen_pair"), "two hops")
    assert groups == two_hops | {"comparison": "comparison", "bridge_comparison": "bridge comparison", "three_hops": ""}


def test_a_comparison_of_eval_is_counted_by_hand(tmp_path, monkeypatch, capsys):
    """Two questions of two hops, one a full chain and right, one a leap and wrong; a voted method does not count."""
    examples = data.load("tiny", "dev", 40)
    two = [each for each in examples if classes.group_of(each) == "two hops"]
    answers = []
    for each in examples:
        is_first = each is two[0]
        said = each.supporting_sentences if is_first else each.supporting_sentences[1:]
        answers.append({"id": each.id, "prediction": each.answer if is_first else "-", "rationale": " ".join(said)})
    rows = [{"method": name, "seed": 0, "answers": answers} for name in ("LM-guided, KD", "LM-guided, KD + SC")]
    write_run(tmp_path, {"data": "tiny", "split": "dev", "limit": 40, "context": "gold"}, answers=rows)
    assert call(monkeypatch, classes.main, tmp_path) == 0
    first, *_ = capsys.readouterr().out.split("\n\n")
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in first.splitlines()]
    found = {row[0]: row[1] for row in cells[2:] if len(row) > 1}
    assert cells[0][1:] == ["LM-guided, KD, 0"]
    assert found["full chain"] == f"{100 / len(two):.1f} (100)"
    assert found["right leap"] == f"{100 * (len(two) - 1) / len(two):.1f} (0)"
    assert found["other"] == "0.0"

    write_run(tmp_path, {"data": "hotpotqa", "split": "dev", "limit": 40, "context": "gold"})
    assert call(monkeypatch, classes.main, tmp_path) == 2
    assert "only TinyWiki's sentences have classes" in capsys.readouterr().err
