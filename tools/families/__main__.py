"""Print the first documents of the pretraining stream."""

from itertools import islice

from families import documents

for doc in islice(documents(0), 40):
    print(doc.family, doc.turns or doc.prose or "".join(a + b for a, b in doc.sheet))
