"""Proofs for plumbing/answers.py: each row is what some kind of model writes, and the answer that a reader sees."""

import json
import random
import re

import pytest
from harness import SAMPLES
from hypothesis import given
from hypothesis import strategies as st

import data
import lmcot
from plumbing import markup

# ---- Where an answer was asked for: text, prediction -----------------------------------------------------------------

ANSWERS = {
    "a short answer": [
        ("Paris", "Paris"),
        ("Walt Disney Pictures.", "Walt Disney Pictures."),
        ("Love Is the Answer", "Love Is the Answer"),
        ("Answer Me, My Love", "Answer Me, My Love"),
        ("Question Mark & the Mysterians", "Question Mark & the Mysterians"),
        ("singer, songwriter, and actress", "singer, songwriter, and actress"),
        ("model", "model"),
        ("$5 million", "$5 million"),
        ("#1 Record", "#1 Record"),
        ("I <3 You", "I <3 You"),
        ("", ""),
        ("\n\n", ""),
    ],
    "the answer is": [
        ("The answer is Paris.", "Paris"),
        ("Based on the context, the answer is **Paris**.", "Paris"),
        ("According to the given passage, the correct answer is: Paris", "Paris"),
        ("Ann was born there.\nTherefore, the answer is Paris.", "Paris"),
        ("I think the answer is Paris.", "Paris"),
        ("The answer would be Paris.", "Paris"),
        ("My answer is Paris.", "Paris"),
        ("The answer is, Paris", "Paris"),
        ("The answer is:\nAnn Lee", "Ann Lee"),
        ("The answer is:\n\nAnn Lee\n\nShe is older.", "Ann Lee"),
        ("The answer is that both are French.", "both are French"),
        ('The answer is "That Bizarre Girl".', "That Bizarre Girl"),
        ("The answer is That Bizarre Girl.", "That Bizarre Girl"),
        ("The answer is Not Without My Daughter.", "Not Without My Daughter"),
    ],
    "the answer to a question": [
        ("The answer to your question is Paris.", "Paris"),
        ("The answer to the question is: Paris", "Paris"),
        ("The answer to this is Paris", "Paris"),
        ('The answer to the question "Ann or Bob?" is Bob.', "Bob"),
        ('The answer to the question "Who is older, Ann or Bob?" is Bob.', "Bob"),
        ("The answer to the question “Which film is older?” is Stormgate.", "Stormgate"),
        ('The answer to "Where was Ann born?" is Paris.', "Paris"),
        ("The answer to the question of who is older is Ann.", "Ann"),
        ("The answer to whether they are both French is yes.", "yes"),
        ("The answer you are looking for is Paris.", "Paris"),
        ("The answer for this question is Paris.", "Paris"),
        ("The answer to your question is Paris, which is in France.", "Paris"),
    ],
    "a label": [
        ("Answer: Paris", "Paris"),
        ("Answer:Paris", "Paris"),
        ("Answer :Paris", "Paris"),
        ("Answer：Paris", "Paris"),
        ("ANSWER: Paris", "Paris"),
        ("* Answer: Paris", "Paris"),
        ("1. Answer: Paris", "Paris"),
        ("**Answer**: Paris", "Paris"),
        ("**Answer:** **Paris**", "Paris"),
        ("[Answer] Paris", "Paris"),
        ("Ans: Paris", "Paris"),
        ("Final Answer is Paris", "Paris"),
        ("Final answer - Paris", "Paris"),
        ("Short answer: Paris.", "Paris"),
        ("Answer to the question: Paris", "Paris"),
        ("### Answer\nParis", "Paris"),
        ("**Final Answer**\n\nParis", "Paris"),
        ("## Answer\n\nParis\n\n## Explanation\n\nAnn was born there.", "Paris"),
        ("Answer: The final answer is Paris. I hope it is correct.", "Paris"),
        ("Question: Where was Ann born?\nAnswer: Paris", "Paris"),
    ],
    "an introduction": [
        ("Here is the answer to your question:\n\nParis", "Paris"),
        ("Here's my answer:\nParis", "Paris"),
        ("Based on the context provided:\n\nParis", "Paris"),
        ("The person who directed Stormgate is:\n\nAnn Lee", "Ann Lee"),
        ("The following is the answer:\n\n- Paris", "Paris"),
        ("Sure! Here is the answer:\n\nParis", "Paris"),
        ("Sure, here's the answer: Paris", "Paris"),
        ("Certainly! The answer is Paris.", "Paris"),
        ("Sure!\n\nParis", "Paris"),
    ],
    "what follows the answer": [
        ("Paris\n\nAnn was born there.", "Paris"),
        ("Paris\n\nQuestion: Where is Bob?\nAnswer: Rome", "Paris"),
        ("Paris\n\nQ: Where is Bob?\nA: Rome", "Paris"),
        ("Paris\n\n### Question 2:\nWhere is Bob?\n### Answer:\nRome", "Paris"),
        ("Paris Question: Where is Bob? Answer: Rome", "Paris"),  # T5 writes no line breaks
        ("Paris\n\nContext: Bob is in Rome.\nQuestion: Where is Bob?\nAnswer: Rome", "Paris"),
        ("Paris\n\nHuman: And Bob?\n\nAssistant: The answer is Rome", "Paris"),
        ("Paris\n\nNote: The answer is based on the first sentence.", "Paris"),
        ("Paris\n\n(Note: the answer is not stated directly.)", "Paris"),
        ("Paris (Note: the answer is taken from the context)", "Paris"),
        ("The answer is Paris. Note that the answer is not stated in full.", "Paris"),
        ("Paris.\n\nLet me know if the answer is unclear!", "Paris"),
        ("Paris\n\nExplanation: The answer is clear because Ann was born there.", "Paris"),
        ("Paris\n\nWhy? The answer is in the context.", "Paris"),
        ("Paris. Ann was born there.", "Paris"),
        ("Paris, because Ann was born there.", "Paris"),
        ("Paris because Ann was born there", "Paris"),
        ("Paris, which is in France.", "Paris"),
        ("American singer. He was born in Paris.", "American singer"),
        ("The Lord of the Rings. It came out in 2001.", "The Lord of the Rings"),
        ("Rome. She was born there.", "Rome"),
        ("Just Because", "Just Because"),
        # Reasoning in one line is left as it is, for F1 and AI to judge: the embedded M_L writes that now and then, and
        # the README's tables count it as wrong.
        ("The father of Ann is Bob. So the answer is Bob.", "The father of Ann is Bob. So the answer is Bob."),
        ("Ann founded Acme. Bob is older.", "Ann founded Acme. Bob is older."),
        ("J. R. R. Tolkien wrote it.", "J. R. R. Tolkien wrote it."),
        ("Lt. Gen. James Hill was the commander.", "Lt. Gen. James Hill was the commander."),
    ],
    "yes and no": [  # the official F1 gives 0 for all but the bare word
        ("Yes, because both are French.", "Yes"),
        ("No. They differ.", "No"),
        ("yes - both are", "yes"),
        ("Yes, Ann and Bob are both French.", "Yes"),
        ("Yes, Ann is French.", "Yes"),
        ("Yes (both are French)", "Yes"),
        ("Yes—both are French", "Yes"),
        ("Yes – they are", "Yes"),
        ("No; they differ", "No"),
        ("Yes,they are", "Yes"),
        ("Yes they are.", "Yes"),
        ("no because they differ", "no"),
        ("**No**. They differ.", "No"),
        ("The answer is no, they do not.", "no"),
        ("No. 10 Downing Street", "No. 10 Downing Street"),  # names
        ("Yes, Prime Minister", "Yes, Prime Minister"),
        ("No, No, Nanette", "No, No, Nanette"),
        ("No Country for Old Men", "No Country for Old Men"),
        ("No-one", "No-one"),
    ],
    "names with stops": [
        ("Warner Bros. Pictures", "Warner Bros. Pictures"),
        ("Lt. Gen. James Hill", "Lt. Gen. James Hill"),
        ("the U.S.", "the U.S."),
        ("1. FC Köln", "1. FC Köln"),
        ("Vol. 2 of the series", "Vol. 2 of the series"),
        ("Portrait of Dr. Gachet by van Gogh", "Portrait of Dr. Gachet by van Gogh"),
        ("Monsters, Inc.", "Monsters, Inc."),
        ("Oh! What a Lovely War", "Oh! What a Lovely War"),
        ("tick, tick... BOOM!", "tick, tick... BOOM!"),
    ],
    "bold, quotes and fences": [
        ("**Paris**", "Paris"),
        ("_Paris_", "Paris"),
        ("*Paris*", "Paris"),
        ("- Paris", "Paris"),
        ("> Paris", "Paris"),
        ("`Paris`", "Paris"),
        ("```\nParis\n```", "Paris"),
        ("```text\nParis\n```", "Paris"),
        ('The answer is: "Paris"', "Paris"),
        ("M*A*S*H", "M*A*S*H"),
    ],
    "boxes and LaTeX": [
        (r"\boxed{Paris}", "Paris"),
        (r"$\boxed{Paris}$", "Paris"),
        (r"$$\boxed{\text{Ann Lee}}$$", "Ann Lee"),
        ("\\[\n\\boxed{\\text{St. Louis}}\n\\]", "St. Louis"),
        (r"**\boxed{Paris}**", "Paris"),
        (r"\boxed{\mathbf{\text{Paris}}}", "Paris"),
        (r"\boxed{3.5\,\text{km}}", "3.5 km"),
        (r"\boxed{1{,}950}", "1,950"),
        (r"\boxed{\$50\%\text{ of Ann \& Bob}}", "$50% of Ann & Bob"),
        (r"\[ \boxed{\text{Yes, they are}} \]", "Yes"),
        (r"The answer is \boxed{Paris}, since Ann was born there.", "Paris"),
        (r"\boxed{Paris", "Paris"),  # cut
        ("Final Answer:\n$$\n\\boxed{Paris}\n$$", "Paris"),
    ],
    "tags and fields": [
        ("<answer>Paris</answer>", "Paris"),
        ("<answer>\n**Paris**\n</answer>", "Paris"),
        ("<answer>Paris</answer> Ann was born there.", "Paris"),
        ("<final_answer>Paris</final_answer>", "Paris"),
        ("<reasoning>Ann was born there.</reasoning>\n<answer>Paris</answer>", "Paris"),
        ("<answer>Yes</answer><explanation>The answer is clear</explanation>", "Yes"),
        ("<b>Paris</b>", "Paris"),
        ('```json\n{"answer": "Paris"}\n```', "Paris"),
        ('{"reasoning": "Ann was born there.", "answer": "Paris", "confidence": 0.9}', "Paris"),
        ('{"answer": 1950}', "1950"),
    ],
    "special tokens and roles": [
        ("Paris</s>", "Paris"),
        ("<pad> Paris</s>", "Paris"),
        ("<bos>Paris<eos>", "Paris"),
        ("Paris<|eot_id|>", "Paris"),
        ("Paris</s> Rome", "Paris"),
        ("Paris<eos>Rome", "Paris"),
        ("Paris<end_of_turn>Rome", "Paris"),
        ("Paris<|im_end|>\n<|im_start|>user\nAnd Bob?", "Paris"),
        ("<|im_start|>assistant\nParis<|im_end|>", "Paris"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nParis<|eot_id|>", "Paris"),
        ("<start_of_turn>model\nParis<end_of_turn>\n", "Paris"),
        ("[/INST] Paris</s>", "Paris"),
        ("Paris<｜end▁of▁sentence｜>", "Paris"),
        ("assistant\n\nParis", "Paris"),
        ("Assistant: Paris", "Paris"),
        ("A: Paris", "Paris"),
    ],
    "thoughts": [
        ("<think>Rome?\nNo.</think>\n\nParis", "Paris"),
        ("<think>\n\n</think>\n\nParis", "Paris"),
        ("<think>Rome?", ""),
        ("<thinking>Rome?</thinking>Paris", "Paris"),
        ("<thought>Rome?</thought>Paris", "Paris"),
        ("<thought>Rome?", ""),
        ("[THINK]Rome?[/THINK]Paris", "Paris"),
        ("◁think▷Rome?◁/think▷Paris", "Paris"),
        ("<think>\nRome?\n</think>\n**Answer:** Paris<|im_end|>", "Paris"),
        ("<|channel|>analysis<|message|>The answer is Rome?<|end|><|start|>assistant<|channel|>final<|message|>Paris"
         "<|return|>", "Paris"),
        ("<|channel|>analysis<|message|>The answer is Rome?", ""),
    ],
    "signs that models write for plain ones": [
        ("Jean\u2011Luc Godard", "Jean-Luc Godard"),
        ("Ann’s father", "Ann's father"),
        ("Warner\xa0Bros. Pictures", "Warner Bros. Pictures"),
        ("Breaking Dawn – Part 2", "Breaking Dawn – Part 2"),  # the official answer has this dash, too
    ],
}  # fmt: skip

# ---- Chains of thought: text, reasoning, prediction ------------------------------------------------------------------

CHAINS = {
    "the end of a chain": [
        ("Ann was born in Oslo. So the answer is Oslo.", "Ann was born in Oslo.", "Oslo"),  # TinyWiki's own
        ("Ann is older. The final answer is: Ann.", "Ann is older.", "Ann"),  # FLAN
        ("Ann is older. Thus, the final answer is Ann", "Ann is older.", "Ann"),
        ("Ann is older.\n\nThe answer is: Ann\n\nHope this helps!", "Ann is older.", "Ann"),  # chat
        ("Ann is older.\nHENCE THE ANSWER IS: no.", "Ann is older.", "no"),
        ("It is 3.5 km long. So the answer is 3.5 km. That is long.", "It is 3.5 km long.", "3.5 km"),
        ("Ann is older, so the answer is Ann.", "Ann is older", "Ann"),
        ("The answer is Paris, Texas. Not France.", "", "Paris, Texas"),
        ("The correct answer to the question is Paris because Ann was born there.", "", "Paris"),
        ("Ann left. In conclusion, the answer is Paris.", "Ann left.", "Paris"),
        ("Ann left. Therefore, based on the context, the answer is Paris.", "Ann left.", "Paris"),
        ("Since Ann left, the answer is Paris.", "Since Ann left", "Paris"),
        ("1. Ann left.\n2. Bob stayed.\nFinal Answer: Bob", "1. Ann left.\n2. Bob stayed.", "Bob"),
        ("**Ann** left.\n\n### **Final Answer**:\n**Paris**\n", "Ann left.", "Paris"),
        (r"Ann left. The final answer is $\boxed{\text{St. Louis}}$.", "Ann left.", "St. Louis"),
        ("Ann left.\n\n$$\\boxed{\\text{Paris}}$$", "Ann left.", "Paris"),
        (r"Ann left. The answer is \(\boxed{3.5 km}\)", "Ann left.", "3.5 km"),
        (r"Ann left \(1950\). \boxed{Paris}", "Ann left 1950.", "Paris"),
        ("Ann left. Answer: Paris", "Ann left.", "Paris"),
        ("<reasoning>\nAnn left.\n</reasoning>\n<answer>\nParis\n</answer>", "Ann left.", "Paris"),
        ("Reasoning: Ann left.\nAnswer: Paris", "Ann left.", "Paris"),
        ('Ann left.\n\nThe answer to the question "Where was Ann born?" is Paris.', "Ann left.", "Paris"),
        ("<think>The answer is Rome? Wait.</think>Ann left. The answer is Paris.", "Ann left.", "Paris"),
        ("The answer is Rome? Wait.</think>\nAnn left. The answer is Paris.", "Ann left.", "Paris"),
        ("Ann’s film was in Jean‑Luc’s town. So the answer is Jean‑Luc.</s>",
         "Ann's film was in Jean-Luc's town.", "Jean-Luc"),
    ],
    "the last punctuation of the reasoning": [
        ("Oslo is in Norway (see above). So the answer is Oslo.", "Oslo is in Norway (see above).", "Oslo"),
        ('She said "yes." So the answer is Oslo.', 'She said "yes."', "Oslo"),
        ("Is it so? It is! So the answer is Oslo.", "Is it so? It is!", "Oslo"),
    ],
    "a chain without an answer": [
        ("Ann was born in Oslo.", "Ann was born in Oslo.", ""),
        ("  Ann was born in Oslo. So the answer is", "Ann was born in Oslo. So the answer is", ""),  # cut
        ("They breathe answer is nothing", "They breathe answer is nothing", ""),
        ("The reporter's answer: none.", "The reporter's answer: none.", ""),
        ("The answer is not stated in the context.", "The answer is not stated in the context.", ""),
        ("<think>The answer is Rome, or", "", ""),
        ("", "", ""),
    ],
    "several answers": [
        ("The answer is Bob? Wait. So the answer is Ann.", "The answer is Bob? Wait.", "Ann"),  # the last counts
        ("Ann left. So the answer is Oslo. So the answer is Oslo.", "Ann left.", "Oslo"),
        ("Ann left. The answer is Oslo. Therefore, the answer is", "Ann left.", "Oslo"),  # cut
        ("Ann left. The answer is Paris. The answer is based on the text.", "Ann left.", "Paris"),
        ("Ann left. The answer is not Rome. So the answer is Paris.", "Ann left. The answer is not Rome.", "Paris"),
        ("So the answer is Paris.\n\nQuestion: Where is Bob?\nSo the answer is Rome.", "", "Paris"),
        ("Ann left. So the answer is Paris.\n\nNote: the answer is short.", "Ann left.", "Paris"),
        ("Question: Where?\nAnn left. So the answer is Paris.", "Question: Where?\nAnn left.", "Paris"),
    ],
    "a yes or no": [
        ("Ann left. The answer is No. Bob stayed.", "Ann left.", "No"),
        ("So the answer is yes, both are French.", "", "yes"),
        ("Therefore, the final answer: No. They are not.", "", "No"),
        ("Ann left. So the answer is: Yes (both are French).", "Ann left.", "Yes"),
    ],
    "names with stops": [
        ("So the answer is Malcolm X. That is all", "", "Malcolm X"),
        ("So the answer is the U.S. That is all.", "", "the U.S."),
        ("So the answer is Warner Bros. Pictures. It made the film.", "", "Warner Bros. Pictures"),
        ("So the answer is Guardians of the Galaxy Vol. 2. That is all.", "", "Guardians of the Galaxy Vol. 2"),
        ("So the answer is Craig v. Boren. The case was decided in 1976.", "", "Craig v. Boren"),
        ("So the answer is Lt. Gen. James Hill. He led it.", "", "Lt. Gen. James Hill"),
        ("So the answer is J. R. R. Tolkien, who wrote it.", "", "J. R. R. Tolkien"),
        ("So the answer is St. Louis, where Ann was born.", "", "St. Louis"),
        ("So the answer is Craig v. Boren, which ended in 1976.", "", "Craig v. Boren"),
        ("So the answer is U.S. Department of Justice. It is in the text.", "", "U.S. Department of Justice"),
        ("So the answer is Hank Williams, Jr. Ann Lee left.", "", "Hank Williams, Jr."),
        ("So the answer is Marriott International, Inc. of Maryland. It grew.", "",
         "Marriott International, Inc. of Maryland"),
        ("So the answer is No. 10 Downing Street. That is all.", "", "No. 10 Downing Street"),
        ("So the answer is Who's Afraid of Virginia Woolf? That is all.", "", "Who's Afraid of Virginia Woolf?"),
        ("So the answer is Rome. James Hill was here.", "", "Rome"),
        ("So the answer is Bob. Ann, who was older, left.", "", "Bob"),
        ('Ann left. The answer is "Paris." Bob stayed.', "Ann left.", "Paris"),
        ("The answer is the song “Heroes”.", "", "the song “Heroes”"),
    ],
}  # fmt: skip


def rows(table):
    return [pytest.param(*row, id=f"{kind}: {row[0]!a}") for kind, cases in table.items() for row in cases]


@pytest.mark.parametrize(("text", "prediction"), rows(ANSWERS))
def test_the_answer_is_found_in_what_models_write_when_asked_for_one(text, prediction):
    assert lmcot.parse_answer(text) == prediction


@pytest.mark.parametrize(("text", "reasoning", "prediction"), rows(CHAINS))
def test_a_chain_is_cut_into_reasoning_and_answer(text, reasoning, prediction):
    assert lmcot.parse_cot(text) == (reasoning, prediction)


# ---- Words that mean the same: text with a gap, prediction, what may stand in the gap --------------------------------

NEXT = ["Question", "Question 2", "Q", "Q2", "User", "Human", "Context", "Passage", "Explanation", "**Note**",
        "Please note", "Let me know", "I hope", "(Note"]  # fmt: skip
REASONS = [" because", ", because", ", since", ", as", ", which", ", who", ", where"]
WORDS_OF_CHAINS = [  # the reasoning is "Ann left."
    ("Ann left. The {} is Paris.", "Paris",
     ["answer", "final answer", "correct answer", "right answer", "short answer"]),
    ("Ann left. The right answer {} Paris.", "Paris",
     ["is", "is:", "would be", ":", "must be", "to this question is", "to the question:"]),
    ("Ann left. {} the answer is Paris.", "Paris",
     ["So", "Thus,", "Therefore,", "Finally,", "In conclusion,", "Based on the context,", "According to the text,"]),
    ("Ann left. The answer is Paris. The answer is {}.", "Paris",
     ["not stated", "clear from it", "based on it", "found in it", "given", "stated there", "in the context",
      "in the text"]),
    ("Ann left. So the answer is Paris.\n{}: so the answer is Rome.", "Paris", NEXT),
    ("Ann left. So the answer is St. Louis{} Ann says so.", "St. Louis", REASONS),
    # Even an initial ends the answer before a word that no name has.
    ("Ann left. So the answer is Malcolm X. {} Ann says so.", "Malcolm X",
     ["That", "This", "The", "These", "There", "Therefore,", "It", "He", "She", "We", "I", "A", "An", "In", "On", "At",
      "As", "So", "Both", "His", "Her", "However,", "Not"]),
]  # fmt: skip
WORDS_OF_ANSWERS = [
    ("Paris\n\n{}: so the answer is Rome.", "Paris", NEXT),
    ("Rome{} Ann says so.", "Rome", REASONS),
    ("Yes {} say so.", "Yes", ["they", "both", "it", "he", "she", "because they"]),  # a yes needs no comma
]


def filled(table):
    return [(text.format(word), prediction) for text, prediction, words in table for word in words]


@pytest.mark.parametrize(("text", "prediction"), filled(WORDS_OF_CHAINS))
def test_a_chain_ends_in_many_words(text, prediction):
    assert lmcot.parse_cot(text) == ("Ann left.", prediction)


@pytest.mark.parametrize(("text", "prediction"), filled(WORDS_OF_ANSWERS))
def test_an_answer_ends_before_many_words(text, prediction):
    assert lmcot.parse_answer(text) == prediction


# ---- Properties ------------------------------------------------------------------------------------------------------


@given(st.lists(st.from_regex(r"[A-Za-z0-9À-ÿ'&$%()/-]{1,12}", fullmatch=True), min_size=1, max_size=6))
def test_a_short_answer_stays_as_it_is(words):
    text = " ".join(words)
    if "ans" not in text.lower() and words[0].lower().strip("-") not in ("yes", "no", ""):  # "- " begins a list
        assert lmcot.parse_answer(text) == text


@given(st.lists(st.sampled_from(["Ann was born in Oslo.", "Bob is 3.5 m tall.", "No."]), max_size=3),
       st.sampled_from(["Oslo", "no", "1931", "New York City"]))  # fmt: skip
def test_what_the_conclusion_states_is_what_parse_cot_returns(sentences, answer):
    reasoning = " ".join(sentences)
    text = " ".join([*sentences, lmcot.CONCLUSION.format(answer=answer)])
    assert lmcot.parse_cot(text) == (reasoning, answer)


PIECES = [
    *("Ann", "Paris", "yes", "no", "because", "who", "was born", "to", "is", "assistant", "Lt.", "X.", "Inc.", "- "),
    *("The answer is", "So the answer is", "Answer:", "(Note", "Note: the", "Question:", ".", "!", ",", ":", "(", ")"),
    *("<think>", "</think>", "<answer>", "</answer>", "</s>", "<|im_start|>", "\\boxed{", "\\text{", "}", "$"),
    *("\n", "\n\n", " ", '"', "“", "**", "```", "#"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from(["", " "]))
def test_whatever_is_written_reasoning_is_a_part_of_it_and_an_answer_is_one_line_of_it(pieces, between):
    text = between.join(pieces)
    cleaned = markup.clean(text)
    reasoning, prediction = lmcot.parse_cot(text)
    assert cleaned.startswith(reasoning) and reasoning == reasoning.strip()
    for answer in (prediction, lmcot.parse_answer(text)):
        assert answer in cleaned and "\n" not in answer


# ---- The answers of the real data sets -------------------------------------------------------------------------------

needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="LMCOT_SAMPLES names no folder with real records")


def gold_answers():
    answers = set()
    for file in SAMPLES.glob("*.json"):
        for record in json.loads(file.read_text("utf-8")):
            answer = record["answer"]
            answers.add(("no", "yes")[answer] if isinstance(answer, bool) else str(answer))
    return sorted(answers)


def titles_and_sentences():
    """What else can be an answer, and what can follow one: the titles and sentences of HotpotQA and 2WikiMultihopQA."""
    titles, sentences = set(), set()
    for file in SAMPLES.glob("*.json"):
        for record in json.loads(file.read_text("utf-8")):
            for title, texts in record.get("context", ()):
                titles.add(re.sub(r" \([^()]*\)$", "", title))
                sentences.update(text.strip() for text in texts if re.match(r'[A-Z"].{9,}\.\s*$', text))
    return sorted(titles), sorted(sentences)


@needs_samples
@pytest.mark.parametrize("text", [
    "{}", "**{}**", "<answer>{}</answer>", r"\boxed{{\text{{{}}}}}", "Here is the answer:\n\n{}",
    "{}\n\nQuestion: Who is it?\nAnswer: Rome", "The answer to your question is {}.",
])  # fmt: skip
def test_every_gold_answer_is_found_where_it_was_asked_for(text):
    answers = gold_answers()
    assert len(answers) > 500
    assert [a for a in answers if not data.exact_match(lmcot.parse_answer(text.format(a)), a)] == []


@needs_samples
@pytest.mark.parametrize("text", [
    "So the answer is {}. That is all.", "Ann left. Therefore, the final answer is: {}",
    "Ann left.\n\n**Answer:** {}.\n\nNote: the answer is short.", r"Ann left. The answer is $\boxed{{\text{{{}}}}}$.",
])  # fmt: skip
def test_every_gold_answer_is_found_in_a_chain(text):
    assert [a for a in gold_answers() if not data.exact_match(lmcot.parse_cot(text.format(a))[1], a)] == []


@needs_samples
def test_a_name_ends_where_a_real_sentence_begins():
    """More than 99 of 100 names are cut off right; after an initial ("Henry I. Ann Lee left") nobody can know."""
    titles, sentences = titles_and_sentences()
    rng = random.Random(0)
    wrong = 0
    for title in titles:
        text = f"So the answer is {title.removesuffix('.')}. {rng.choice(sentences)}"
        wrong += not data.exact_match(lmcot.parse_cot(text)[1], title)
    assert len(titles) > 1000 and wrong < len(titles) / 100
