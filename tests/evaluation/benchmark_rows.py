"""Questions of our own in the form of each benchmark: as its rows are on the hub, and as they are in local files."""

from typing import Any

Rows = list[dict[str, Any]]


def _arc(question: str, answer: str, labels: str = "ABCD") -> dict[str, Any]:
    texts = ["a stone", "a warm lamp over the pond", "rain", "two old boots"]
    return {"question": question, "choices": {"text": texts, "label": list(labels)}, "answerKey": answer}


_TEXTS = ["a stone", "a warm lamp over the pond", "rain", "two old boots"]
_ASKED = ["Which of these makes a plant grow?", "What floats? Think of wood."]
_ARC = [_arc(_ASKED[0], "C"), _arc(_ASKED[1], "4", "1234")]
_ARC_FILE = [
    {"query": f"Question: {asked}", "choices": _TEXTS, "gold": gold} for asked, gold in zip(_ASKED, (2, 3), strict=True)
]
_ENDINGS = ["throws it over the wall.", "[substeps] reads it twice  and smiles.", "sits.", "eats a whole [title] pie."]
_PLAIN_ENDINGS = ["throws it over the wall.", " reads it twice and smiles.", "sits.", "eats a whole. pie."]
_PREMISE = "The Glass fell off the table."

HUB: dict[str, Rows] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "hellaswag": [
        {
            "activity_label": "Playing ball",
            "ctx_a": "A boy holds a ball. He looks at it!",
            "ctx_b": "the other Boy",
            "endings": _ENDINGS,
            "label": "1",
        },
        {
            "activity_label": "Home",
            "ctx_a": "[header] How to bake [title] Heat the oven. [step] Wait.",
            "ctx_b": "",
            "endings": _ENDINGS,
            "label": "0",
        },
    ],
    "lambada_openai": [
        {"text": 'She looked at the cat, and the cat\nlooked at "her'},
        {"text": "To show a file type cat; to make one type touch"},
        {"text": "He asked who  was there, said Don’t"},
    ],
    "piqa": [
        {"goal": "make tea", "sol1": "boil water and pour it.", "sol2": "boil water and drink sand.", "label": 0},
        {"goal": "How do I open a jar?", "sol1": "hit it", "sol2": "turn the lid with a dry cloth", "label": 1},
    ],
    "winogrande": [
        {
            "sentence": "Ann paid Eve because _ had won the bet, fairly.",
            "option1": "Ann",
            "option2": "Eve",
            "answer": "2",
        },
        {"sentence": "The box was in the car, and _ was heavy.", "option1": "car", "option2": "box", "answer": "1"},
    ],
    "openbookqa": [
        {"question_stem": "Fog is likely", "choices": {"text": _TEXTS, "label": list("ABCD")}, "answerKey": "B"},
        {"question_stem": "What is wet?", "choices": {"text": _TEXTS, "label": list("ABCD")}, "answerKey": " C"},
    ],
    "copa": [
        {"premise": _PREMISE, "choice1": "It broke.", "choice2": "The dog flew.", "question": "effect", "label": 0},
        {"premise": "I was late. ", "choice1": "I ran.", "choice2": "I slept long.", "question": "cause", "label": 1},
    ],
    "wsc273": [
        {
            "text": "The man saw  the boy because he was tall.",
            "pronoun": "he",
            "pronoun_loc": 28,
            "options": ["The man", "The boy"],
            "label": 1,
        },
        {
            "text": "Ann lost to Eve. Her ball was flat.",
            "pronoun": "Her",
            "pronoun_loc": 17,
            "options": ["Ann", "Eve"],
            "label": 0,
        },
    ],
    "commonsense_qa": [
        {
            "question": "Where is milk kept? ",
            "choices": {"label": list("ABCDE"), "text": ["fridge", "sea", "roof", "shoe", "hall"]},
            "answerKey": "A",
        },
    ],
    "boolq": [
        {"passage": "Water boils when it is hot enough.", "question": "does water boil", "label": 1},
        {"passage": "A passage.\nQuestion: what of it?", "question": "is it long", "label": 0},
    ],
}
FILES: dict[str, Rows] = {
    "arc_easy": _ARC_FILE,
    "arc_challenge": _ARC_FILE,
    "hellaswag": [
        {
            "query": "Playing ball: A boy holds a ball. He looks at it! the other boy",
            "choices": _PLAIN_ENDINGS,
            "gold": 1,
        },
        {"query": "Home: How to bake. Heat the oven. Wait.", "choices": _PLAIN_ENDINGS, "gold": 0},
    ],
    "lambada_openai": [
        dict(zip(("context", "continuation"), row["text"].rsplit(" ", 1), strict=True)) for row in HUB["lambada_openai"]
    ],
    "piqa": [
        {"query": f"Question: {row['goal']}\n", "choices": [row["sol1"], row["sol2"]], "gold": row["label"]}
        for row in HUB["piqa"]
    ],
    "winogrande": [
        {
            "context_options": ["Ann paid Eve because Ann", "Ann paid Eve because Eve"],
            "continuation": "had won the bet, fairly.",
            "gold": 1,
        },
        {
            "context_options": ["The box was in the car, and car", "The box was in the car, and box"],
            "continuation": "was heavy.",
            "gold": 0,
        },
    ],
    "openbookqa": [
        {"query": row["question_stem"], "choices": _TEXTS, "gold": gold}
        for row, gold in zip(HUB["openbookqa"], (1, 2), strict=True)
    ],
    "copa": [
        {"query": "The Glass fell off the table, therefore", "choices": ["it broke.", "the dog flew."], "gold": 0},
        {"query": "I was late, because", "choices": ["i ran.", "i slept long."], "gold": 1},
    ],
    "wsc273": [
        {
            "context_options": ["The man saw the boy because the man", "The man saw the boy because the boy"],
            "continuation": "was tall.",
            "gold": 1,
        },
        {
            "context_options": ["Ann lost to Eve. Ann's", "Ann lost to Eve. Eve's"],
            "continuation": "ball was flat.",
            "gold": 0,
        },
    ],
    "commonsense_qa": [
        {
            "query": "Question: Where is milk kept?\nChoices:\nA. fridge\nB. sea\nC. roof\nD. shoe\nE. hall\nAnswer:",
            "choices": list("ABCDE"),
            "gold": 0,
        },
    ],
    "boolq": [
        {
            "query": f"Passage: {row['passage']}\nQuestion: {row['question']}?",
            "choices": ["no", "yes"],
            "gold": row["label"],
        }
        for row in HUB["boolq"]
    ],
}
