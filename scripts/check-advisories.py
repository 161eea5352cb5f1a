#!/usr/bin/env python3
"""Checks all dependencies, tiny_http included, for known vulnerabilities with cargo-deny.

    scripts/check-advisories.py CARGO_DENY [OPTION...]

deny.toml lists the vulnerabilities that are accepted, with the reason, by any of their numbers. cargo-deny itself
knows an advisory only by the number that RustSec gives it, which comes later than the CVE number. Needs network
access for RustSec's database.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    accepted = {entry["id"]: entry["reason"] for entry in tomllib.loads((ROOT / "deny.toml").read_text())["advisories"]["ignore"]}
    command = [*sys.argv[1:], "--locked", "--workspace", "--format=json", "check", "advisories"]
    deny = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=600)
    failed, used, summary = [], set(), False
    for line in deny.stderr.splitlines():
        message = json.loads(line)
        fields = message["fields"]
        summary |= message["type"] == "summary"
        if message["type"] == "log" and fields["level"] == "ERROR":
            failed.append(fields["message"])
        if message["type"] != "diagnostic" or fields["severity"] != "error":
            continue
        advisory = fields.get("advisory") or {"id": fields["code"], "aliases": [], "package": ""}
        numbers = {advisory["id"], *advisory["aliases"]}
        used |= numbers & accepted.keys()
        if not numbers & accepted.keys():
            failed.append(f"{advisory['package']}: {', '.join(sorted(numbers))}: {fields['message']}")
    for number in sorted(used):
        print(f"ok      {number} is accepted: {accepted[number]}")
    for number in sorted(accepted.keys() - used if summary else []):
        print(f"ok      {number} is accepted, and RustSec does not list it")
    for message in failed or ([] if summary else ["cargo-deny did not finish its check"]):
        print(f"FAILED  {message}", file=sys.stderr)
    if failed or not summary:
        sys.exit(1)
    print("ok      no other known vulnerability")


main()
