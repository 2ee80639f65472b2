"""What lies in a run's folder, by the names that several rooms look for."""

MODEL = "model"
"""The trained model's folder."""

RUN = "run.json"
"""What the run was made from."""

HISTORY = "history.json"
RESULTS = "results.json"
PICTURE = "results.png"
