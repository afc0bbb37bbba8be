"""Prompts of our own, for what is measured without a file of them."""

OWN = (
    "Why is the sky blue?",
    "Write a limerick about a lighthouse keeper who is afraid of the dark.",
    "What is 17 times 23? Show your steps.",
    "Explain recursion to a ten-year-old.",
    "List five countries in South America and their capitals.",
    "Translate 'Where is the train station?' into French, German and Spanish.",
    "def fibonacci(n):\n    # finish this function\n",
    "Summarise in one sentence: The cat sat on the mat, looked at the bird, and fell asleep.",
    "What are three differences between a virus and a bacterium?",
    "Give me a recipe for pancakes without eggs.",
    "Who wrote 'Pride and Prejudice', and when was it published?",
    "Turn this into JSON: name is Ada, age is 36, languages are Python and C.",
    "Tell me a very short story that begins with 'The door was already open.'",
    "How does a bicycle stay upright?",
    "Write an SQL query that counts the orders of each customer.",
    "What should I see in Lisbon in two days?",
    "Complete the sequence and say why: 2, 6, 12, 20, 30, ...",
    "Is it ever right to lie? Argue both sides in a few sentences.",
    "Correct the grammar: 'She don't has no idea where them keys is.'",
    "What happens to water when it freezes? 🧊 Antworte bitte auf Deutsch.",
)

_HARBOUR = (
    "The old harbour of Velm was dug by hand in 1742, when the river still reached the town wall. "
    "For ninety years it held up to forty grain barges, and the town lived on their tolls. In 1838 "
    "the railway took the grain, and the basin silted up within a generation. A committee of "
    "citizens bought it in 1911 for the price of the stones, cleared it, and let children learn to "
    "swim there. Since 1996 it is a nature reserve: two rare kinds of newt live in its shallow "
    "end, and boats may enter on one day of the year only, the first Sunday of June, when the "
    "guild of bargemen crosses it in a boat of 1820."
)
_BATTERY = (
    "Researchers compared three ways to store the surplus of a village's solar roofs. Batteries in "
    "every house lost eleven percent of the energy and cost the most, since each had its own "
    "electronics. One large battery beside the transformer lost nine percent and cost a third "
    "less, but failed as a whole twice in four years. A water tower, filled by a pump and emptied "
    "through a turbine, lost twenty-six percent, cost the least, and needed a mechanic on eight "
    "days of the four years. The village chose the large battery and kept the tower for winter."
)

BY_CATEGORY = {
    "conversation": (
        "I have to give a speech at my sister's wedding and I am nervous. Where do I begin?",
        "Compare living in a small town with living in a large city. Mention at least four points.",
        "Write a short dialogue between a gardener and a crow that steals cherries.",
    ),
    "translation": (
        "Translate German to English: Der Zug nach Hamburg faehrt heute von Gleis sieben, weil an "
        "Gleis drei gebaut wird. Bitte steigen Sie vorne ein.",
        "Translate German to English: Wer im Garten arbeitet, braucht Geduld, gutes Werkzeug und "
        "ein wenig Glueck mit dem Wetter.",
        "Translate English to French: The library opens at nine, and on Saturdays at ten. Books "
        "can be borrowed for four weeks.",
    ),
    "summarization": (
        f"Summarize: {_HARBOUR}",
        f"Summarize: {_BATTERY}",
        f"Summarize the following text in three sentences. {_BATTERY} {_HARBOUR}",
    ),
    "qa": (
        "Who painted the ceiling of the Sistine Chapel?",
        "What is the difference between weather and climate?",
        "Which planet has the shortest day, and how long is it?",
    ),
    "math_reasoning": (
        "A baker sells 24 rolls at 0.40 euros and 15 loaves at 2.60 euros. How much does she take?",
        "A train covers 180 km in 2 hours and then 120 km in 1.5 hours. What is its mean speed?",
        "Tom has three times as many stamps as Ada. Together they have 96. How many has each?",
    ),
    "rag": (
        f"Context: {_HARBOUR}\n\nWhen was the harbour dug, and what may enter it today?",
        f"Context: {_BATTERY}\n\nWhich way lost most of the energy, and why was it kept?",
        f"Context: {_HARBOUR}\n\nContext: {_BATTERY}\n\nWhat did the citizens buy in 1911?",
    ),
}
"""As Spec-Bench has them, a few of each kind."""
