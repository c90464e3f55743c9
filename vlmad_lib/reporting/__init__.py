"""Figures, notebooks run headlessly, HTML pages, the Explore panel, learner copies, decisions on new pictures."""
