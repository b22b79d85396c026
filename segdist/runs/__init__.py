"""Reading run folders: the record of a run, its status in the terminal, its report as a page.

Needs neither torch nor the job that writes the run. May import `segdist.core` and `shards`.
"""
