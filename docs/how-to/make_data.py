"""Write mine.jsonl: 400 sums with field names of our own."""

import json
import random

random.seed(0)
pairs = random.sample([(a, b) for a in range(60) for b in range(60)], 400)
with open("mine.jsonl", "w") as file:
    for a, b in pairs:
        file.write(json.dumps({"question": f"What is {a} + {b}?", "reply": str(a + b)}) + "\n")
