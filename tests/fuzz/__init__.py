"""Fuzzing the readers: each damaged file must give the right pixels or an error that names the file.

    python -m tests.fuzz                         all readers, 2,000 files each; takes a few minutes
    python -m tests.fuzz --files 20000 --seed 7  overnight
    python -m tests.fuzz --only tiff             only kinds whose names start with this

A child process with limited address space reads the files, which contains memory use and decoder crashes.
"""
