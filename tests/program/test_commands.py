from __future__ import annotations

import sys

from federation.program.commands import NOT_FOUND, TIMED_OUT, Commands, Done, cleaned


def test_a_program_s_words_and_its_exit_code_come_back() -> None:
    done = Commands({}).run(sys.executable, "-c", "import sys; print('out'); print('why', file=sys.stderr); sys.exit(3)")
    assert done == Done(3, "out\n", "why\n")
    assert done.said == "why"


def test_one_that_is_not_there_or_takes_too_long_has_an_exit_code_too() -> None:
    missing = Commands({}).run("/nowhere/federation")
    assert (missing.code, missing.said) == (NOT_FOUND, "/nowhere/federation: No such file or directory")
    hangs = Commands({}).run(sys.executable, "-c", "import time; time.sleep(60)", timeout_s=0.01)
    assert hangs.code == TIMED_OUT


def test_it_reads_nothing_from_our_standard_input() -> None:
    assert Commands({}).run(sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))").out == "''\n"


def test_one_that_says_nothing_is_shown_by_its_code() -> None:
    assert Done(7, "", " \n").said == "exit code 7"


def test_other_programs_do_not_load_our_libraries() -> None:
    ours = {"LD_LIBRARY_PATH": "/opt/federation", "_PYI_ARCHIVE_FILE": "x", "HOME": "/h"}
    assert cleaned(ours) == {"HOME": "/h"}
    assert cleaned({**ours, "LD_LIBRARY_PATH_ORIG": "/usr/lib/cuda"}) == {"HOME": "/h", "LD_LIBRARY_PATH": "/usr/lib/cuda"}
    assert cleaned({"LD_LIBRARY_PATH": "/usr/lib/cuda"}) == {"LD_LIBRARY_PATH": "/usr/lib/cuda"}
