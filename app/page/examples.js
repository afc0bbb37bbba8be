// Questions that each show one technique, where the gateway offers it.

const HARBOUR = `The harbour of Ostrava Point was built in 1874, when the first railway reached the coast. Its outer wall is 640 metres long and was made of granite from the quarry at Hollin Hill, which is closed today. For the first thirty years the harbour lived from herring: at its best, in 1898, there were 212 boats, and the market hall had to be made twice as long within two years. When the herring went elsewhere the boats went with them, and by 1921 only nineteen were left. The town then tried many things. A glass works opened in 1923 and burnt down in 1929. A line of steamers to the islands ran from 1926, three times a week in summer and once in winter, and it is the only one of these ventures that is still there, though the steamers have become ferries that run on batteries. The lighthouse stands on the northern end of the wall. It is 31 metres high, white with one red band, and has been without a keeper since 1968. Its light can be seen for 22 sea miles. Visitors may climb it on Saturdays from ten to four, from April to October; the ticket costs six crowns, and children under eight climb for nothing. In the old market hall there is a museum of fishing. It opens at ten, closes at half past five, and is closed on Tuesdays. The museum owns the last herring boat that was built here, the Margarethe of 1911, which took part in the rescue of the crew of the Corvo in the storm of 1913. In that storm eleven ships were lost between the Point and the river's mouth, and after it the wall was raised by two metres. The harbour master's house, across the square, has been a library since 1985. On its front there is a mark of the highest water ever seen here, that of January 1953, at three metres and forty above the quay.`;

/** Each: what it is called, what it shows, the policy, and how it is asked. */
const ALL = [
  {
    name: "Two writers",
    shows: "a small model writes, and a large one takes the pen where the next tokens are hard to call",
    policy: "entropy_switch",
    prompt: "Why is the sky blue?",
    most: 96,
  },
  {
    name: "Guesses",
    shows: "a small model guesses ahead, and the model that answers keeps the guesses that are its own",
    policy: "speculative",
    prompt: "Repeat this three times, word for word: The quick brown fox jumps over the lazy dog.",
    most: 64,
    temperature: 0,
  },
  {
    name: "A vote",
    shows: "the same question is answered several times, and what most answers say is given",
    policy: "best_of_n",
    prompt: "A farmer has 17 sheep and buys 5 more. How many sheep are there now? End with the number alone.",
    most: 48,
  },
  {
    name: "Escalation",
    shows: "a cheap model answers; where that is not likely enough to be right, a dearer one answers",
    policy: "cascade",
    prompt: "The museum opens at ten, closes at half past five, and is closed on Tuesdays. When does it close? Answer in one short sentence.",
    most: 24,
  },
  {
    name: "A second look",
    shows: "an answer is reviewed and written again, and the better version is given",
    policy: "refine",
    prompt: "Say in one sentence why bread rises.",
    most: 40,
  },
  {
    name: "By load",
    shows: "one model in the precision that is quickest while so many others ask",
    policy: "precision",
    prompt: "Name three rivers.",
    most: 32,
  },
  {
    name: "Easy or hard",
    shows: "easy requests go to a small model whole, the others to a large one",
    policy: "route",
    prompt: "What is the capital of France?",
    most: 32,
  },
  {
    name: "Fewer words",
    shows: "words of a long text that a small model expected are left out before it is read",
    policy: "compress",
    prompt: `${HARBOUR}\n\nHow long is the outer wall of the harbour?`,
    most: 32,
  },
  {
    name: "Sooner",
    shows: "a long prompt's keys and values are predicted, so that the answer begins earlier",
    policy: "kv_prediction",
    prompt: `${HARBOUR}\n\nHow high is the lighthouse?`,
    most: 32,
  },
  {
    name: "The planner",
    shows: "the best measured way that fits the budget is chosen for each request",
    policy: "planner",
    prompt: "Why do leaves fall in autumn?",
    most: 64,
  },
];

/** Those that this fleet can show, each with its `way`; and two on money and comparing. */
export function examples(fleet) {
  const shown = ALL.map((one) => ({ ...one, way: fleet.showing(one.policy) })).filter((one) => one.way);
  const steered = fleet.showing("entropy_switch");
  const dearest = fleet.dearest;
  if (steered && dearest) {
    const usd = fleet.cost(dearest, 60).toFixed(12).replace(/0+$/, "");
    shown.push({
      name: "Short of money",
      shows: "a budget that does not last: the answer goes on with the cheap model, then ends",
      prompt: "Tell a long story about a lighthouse keeper.",
      way: steered,
      most: 200,
      usd,
    });
    shown.push({
      name: "Side by side",
      shows: "two ways to answer, beside each other: what does the dear model alone write and cost?",
      prompt: "Explain in three sentences how a rainbow comes about.",
      way: steered,
      beside: dearest,
      most: 96,
    });
  }
  return shown;
}
