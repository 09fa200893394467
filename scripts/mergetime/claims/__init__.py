"""Claims of papers, each with a statistic and a rule fixed beforehand, judged on a study's data."""
