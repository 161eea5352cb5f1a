#!/usr/bin/env python3
"""Changes each number that the documents promise, and checks that the test in its row fails.

    make check-numbers                    all of them, in about twenty minutes
    scripts/check-numbers.py reserve      only rows that contain this text
    scripts/check-numbers.py --list       changes nothing, and checks only that the source contains each number

The rows are those of the table in tests/numbers.md. The changes are made in a copy of the files that git knows, in
target/numbers. Each test must pass there before the first change. A change counts as noticed if the code compiles
and the test fails, or does not end within five minutes. Exits 1 if a change is not noticed.
"""

import os
import re
import shutil
import subprocess
import sys
import time

TABLE = "tests/numbers.md"
FOLDER = "target/numbers"
# In seconds, for one test, on a machine that may be busy.
LIMIT = 300


def rows():
    """Yields the cells of each row: the number, the documents, the file, the code and the test."""
    with open(TABLE) as file:
        for line in file:
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 5 and cells[2].startswith("`"):
                yield cells[0], *(cell.strip("`") for cell in cells[2:])


def changes(code):
    """Yields what stands in the source and each text to put in its place. `[5→20, 3]` means 20 in place of 5, and then 3."""
    before, old, new, after = re.fullmatch(r"(.*)\[([^\[→]*)→([^\]]*)\](.*)", code).groups()
    for replacement in new.split(", "):
        yield f"{before}{old}{after}", f"{before}{replacement}{after}", f"{old} → {replacement or 'nothing'}"


def cargo(*arguments):
    command = [os.environ.get("CARGO", "cargo"), *arguments]
    environment = {**os.environ, "CARGO_TARGET_DIR": os.path.abspath(f"{FOLDER}/target")}
    return subprocess.run(command, cwd=f"{FOLDER}/tree", env=environment, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def build(test):
    """Builds what the test needs. Returns the compiler's messages if that fails."""
    if test.startswith("scripts/"):
        result = cargo("build", "--locked", "--profile", "mutants")
    else:
        result = cargo("test", "--locked", "--profile", "mutants", "--no-run", *test.split()[:-1])
    return result.stdout if result.returncode else None


def passes(test):
    """Runs the test. Returns whether it passed, and what it printed."""
    environment = {**os.environ, "CARGO_TARGET_DIR": os.path.abspath(f"{FOLDER}/target")}
    if test.startswith("scripts/"):
        environment["PROGRAM"] = os.path.abspath(f"{FOLDER}/target/mutants/tiny-probe")
        command = test.split()
    else:
        command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--profile", "mutants", *test.split()]
    process = subprocess.Popen(command, cwd=f"{FOLDER}/tree", env=environment, stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return False, f"did not end within {LIMIT} s"
    ran = test.startswith("scripts/") or re.search(r"(?m)^test result: .* [1-9]\d* (passed|failed)", printed)
    if process.returncode == 0 and not ran:
        return False, f"no test has this name\n{printed}"
    return process.returncode == 0, printed


def copy():
    tree = f"{FOLDER}/tree"
    shutil.rmtree(tree, ignore_errors=True)
    files = subprocess.run(["git", "ls-files", "-z"], check=True, stdout=subprocess.PIPE, text=True).stdout
    for file in filter(None, files.split("\0")):
        os.makedirs(os.path.dirname(f"{tree}/{file}"), exist_ok=True)
        shutil.copyfile(file, f"{tree}/{file}")
        shutil.copymode(file, f"{tree}/{file}")


def main():
    words = [word for word in sys.argv[1:] if word != "--list"]
    chosen = [row for row in rows() if all(word in " ".join(row) for word in words)]
    if not chosen:
        sys.exit(f"no row of {TABLE} contains {' '.join(words)}")
    for number, file, code, _ in chosen:
        with open(file) as source:
            original = source.read()
        for old, _, _ in changes(code):
            if original.count(old) != 1:
                sys.exit(f"FAILED  {number}: {file} contains {original.count(old)} times: {old}")
    if "--list" in sys.argv:
        return
    copy()
    for test in dict.fromkeys(row[3] for row in chosen):
        problem = build(test)
        passed, printed = (False, problem) if problem else passes(test)
        if not passed:
            sys.exit(f"{printed}\nFAILED  without a change: {test}")
    unnoticed = count = 0
    for number, file, code, test in chosen:
        path = f"{FOLDER}/tree/{file}"
        with open(path) as source:
            original = source.read()
        for old, new, change in changes(code):
            count += 1
            with open(path, "w") as source:
                source.write(original.replace(old, new))
            started = time.monotonic()
            problem = build(test)
            passed, _ = (True, None) if problem else passes(test)
            verdict = "FAILED " if passed else "noticed"
            print(f"{verdict} {number}: {change} ({time.monotonic() - started:.0f} s)", flush=True)
            if problem:
                print(problem)
            unnoticed += passed
            with open(path, "w") as source:
                source.write(original)
    print(f"changes of {len(chosen)} numbers that no test noticed: {unnoticed} of {count}")
    sys.exit(unnoticed > 0)


main()
