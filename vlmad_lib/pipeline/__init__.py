"""From a profile to the scores table: what is to encode, units, scorers, results."""
