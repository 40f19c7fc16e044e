"""The files that `dla-train inspect` writes."""

PAGE, LIFE, RATES, WEIGHTS = "index.html", "life.png", "boundary-rates.png", "slot-weights.png"
FILES = (PAGE, LIFE, RATES, WEIGHTS)
