"""Damaged files of every kind, by the thousand: each must end in the right pixels or in a message that names the file.

    python -m tests.fuzz                         every reader, 2,000 files each: some minutes
    python -m tests.fuzz --files 20000 --seed 7  a night's worth
    python -m tests.fuzz --only tiff             the kinds whose names begin so

A child process reads the files under a limit of address space, so neither memory nor a crash of a decoder gets out.
"""
