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
