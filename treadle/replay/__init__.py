"""`treadle replay`: a plan as it was at any moment, from its recorded events alone."""
