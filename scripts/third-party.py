#!/usr/bin/env python3
"""Writes what a user of the binary must know about the software of others in it.

    scripts/third-party.py notices          the licenses and copyright lines, as in THIRD-PARTY-NOTICES.txt
    scripts/third-party.py sbom TARGET      a CycloneDX 1.6 bill of materials for this target
    scripts/third-party.py vex              an OpenVEX document about the known vulnerabilities of tiny_http
    scripts/third-party.py check            checks all three

With --no-default-features, they are about the binary without tiny_http, and `vex` says nothing. The output depends
only on the commit: Cargo.lock fixes the crates, and the time is that of the commit, or SOURCE_DATE_EPOCH.
"""

import json
import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICES = ROOT / "THIRD-PARTY-NOTICES.txt"
CARGO = os.environ.get("CARGO", "cargo")
# The targets of the release. The notices are for all of them.
TARGETS = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"]
# A crate that offers both is used under the first.
PREFERRED = ["MIT", "Apache-2.0"]
# What rustc links into a static binary, beside the crates.
TOOLCHAIN = {
    "the Rust standard library": "Copyright (c) The Rust Project Contributors",
    "musl": "Copyright © 2005-2020 Rich Felker, et al.",
}
# Why tiny-probe is not affected by the vulnerabilities of tiny_http. SECURITY.md and deny.toml name the same.
STATEMENTS = {
    "CVE-2026-66752": (
        "Request smuggling through Transfer-Encoding. tiny-probe rejects every request with this field, with an "
        "unclear Content-Length or with control characters in its head, and serves no other request on the "
        "connection. The default request loop does not use tiny_http at all."
    ),
    "CVE-2026-66753": (
        "CR and LF in header fields. tiny-probe does not send responses with tiny_http's header types, puts "
        "nothing of a client into a header field, and rejects requests with control characters in their head. "
        "The default request loop does not use tiny_http at all."
    ),
}
AFFECTED_CRATE = ("tiny_http", "0.12.0")


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def commit_time():
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct")
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Graph:
    """The crates that the program is built from for a target."""

    def __init__(self, target, options):
        metadata = json.loads(run(CARGO, "metadata", "--locked", "--format-version=1", "--filter-platform", target, *options))
        self.packages = {package["id"]: package for package in metadata["packages"]}
        self.root = metadata["resolve"]["root"]
        is_normal = lambda edge: any(kind["kind"] is None for kind in edge["dep_kinds"])
        self.edges = {
            node["id"]: sorted(edge["pkg"] for edge in node["deps"] if is_normal(edge))
            for node in metadata["resolve"]["nodes"]
        }
        # A procedural macro runs in the compiler. It and its dependencies are not in the binary.
        self.linked = self.reachable(lambda id: not self.is_macro(id))
        self.all = self.reachable(lambda id: True)

    def is_macro(self, id):
        return any("proc-macro" in target["kind"] for target in self.packages[id]["targets"])

    def reachable(self, accept):
        found, waiting = {self.root}, [self.root]
        while waiting:
            new = [id for id in self.edges[waiting.pop()] if id not in found and accept(id)]
            found.update(new)
            waiting += new
        return sorted(found - {self.root}, key=lambda id: (self.packages[id]["name"], self.packages[id]["version"]))


def licenses(package):
    """The alternatives of a crate's license expression. Older crates separate them with a slash."""
    return re.split(r" OR |\s*/\s*", package["license"])


def license_text(package):
    """The license that a crate is used under, the copyright lines at the top of its text, and the rest."""
    chosen = next((name for name in PREFERRED if name in licenses(package)), None)
    if chosen is None:
        sys.exit(f"third-party: {package['name']}: expected one of {PREFERRED}, found {package['license']}")
    folder = Path(package["manifest_path"]).parent
    names = ["LICENSE-" + chosen.split("-")[0].upper(), "LICENSE"]
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if file is None:
        sys.exit(f"third-party: {package['name']} has none of the files {names}")
    lines = [line.rstrip() for line in file.read_text().strip().splitlines()]
    copyrights = []
    if chosen == "MIT":
        # A title and the copyright lines may come before the text, which most crates share.
        while re.match(r"\s*(Copyright .*|(The )?MIT License( \(MIT\))?|)$", lines[0]):
            copyrights += [lines[0].strip()] if "Copyright" in lines[0] else []
            lines.pop(0)
    return chosen, copyrights, "\n".join(lines)


def notices(options):
    packages = {}
    for target in TARGETS:
        graph = Graph(target, options)
        for id in graph.linked:
            package = graph.packages[id]
            if package["source"] is not None:
                packages[package["name"], package["version"]] = package
    parts = [
        "tiny-probe contains software of others. This file lists the crates that its static binary is built from,\n"
        "each with the license that it is used under.\n"
    ]
    users = {("MIT", None): [(name, [copyright]) for name, copyright in TOOLCHAIN.items()]}
    texts = {}
    for (name, version), package in sorted(packages.items()):
        chosen, copyrights, text = license_text(package)
        # Texts that differ only in their line breaks are the same.
        key = chosen, " ".join(text.split())
        texts.setdefault(key, text)
        users.setdefault(key, []).append((f"{name} {version}", copyrights))
    # Rust and musl are under the text that most crates have.
    usual = max((key for key in texts if key[0] == "MIT"), key=lambda key: len(users[key]))
    users[usual] += users.pop(("MIT", None))
    for key in sorted(texts, key=lambda key: (key[0], users[key][0])):
        parts.append(f"{'=' * 100}\n")
        for name, copyrights in users[key]:
            parts.append(f"{name} ({key[0]})\n" + "".join(f"    {line}\n" for line in copyrights))
        parts.append(f"{texts[key]}\n")
    return "\n".join(parts)


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sbom(target, options):
    graph = Graph(target, options)
    checksums = {
        (name, version): checksum
        for name, version, checksum in re.findall(
            r'name = "(.*)"\nversion = "(.*)"\nsource = ".*"\nchecksum = "(.*)"', (ROOT / "Cargo.lock").read_text()
        )
    }

    def component(id):
        package = graph.packages[id]
        found = {
            "type": "application" if id == graph.root else "library",
            "bom-ref": purl(package),
            "name": package["name"],
            "version": package["version"],
            "purl": purl(package),
            "licenses": [{"expression": " OR ".join(licenses(package))}],
        }
        if id != graph.root:
            found["scope"] = "required" if id in graph.linked else "excluded"
        if package["source"] is not None:
            checksum = checksums[package["name"], package["version"]]
            found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return found

    root = graph.packages[graph.root]
    features = "without default features" if options else "default features"
    revision = run("git", "rev-parse", "HEAD").strip()
    edges = lambda id: [purl(graph.packages[other]) for other in graph.edges[id]]
    return json.dumps({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{purl(root)} {revision} {target} {features}").urn,
        "version": 1,
        "metadata": {
            "timestamp": commit_time(),
            "component": component(graph.root),
            "properties": [
                {"name": "revision", "value": revision},
                {"name": "target", "value": target},
                {"name": "features", "value": features},
            ],
        },
        "components": [component(id) for id in graph.all],
        "dependencies": [{"ref": purl(graph.packages[id]), "dependsOn": edges(id)} for id in [graph.root, *graph.all]],
    }, indent=2) + "\n"


def vex(options):
    graph = Graph(TARGETS[0], options)
    root = graph.packages[graph.root]
    crates = {(graph.packages[id]["name"], graph.packages[id]["version"]): graph.packages[id] for id in graph.linked}
    affected = [package for (name, _), package in crates.items() if name == AFFECTED_CRATE[0]]
    if not affected:
        return ""
    if AFFECTED_CRATE not in crates:
        sys.exit(f"third-party: {purl(affected[0])} is not {AFFECTED_CRATE}: review the statements about its vulnerabilities")
    products = [
        {"@id": id, "subcomponents": [{"@id": purl(affected[0])}]}
        for id in [purl(root), f"pkg:oci/{root['name']}?tag={root['version']}"]
    ]
    return json.dumps({
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": uuid.uuid5(uuid.NAMESPACE_URL, f"{purl(root)} {json.dumps(STATEMENTS)} {commit_time()}").urn,
        "author": "The maintainers of tiny-probe",
        "timestamp": commit_time(),
        "version": 1,
        "statements": [
            {
                "vulnerability": {"name": name},
                "products": products,
                "status": "not_affected",
                "justification": "inline_mitigations_already_exist",
                "status_notes": reason,
            }
            for name, reason in STATEMENTS.items()
        ],
    }, indent=2) + "\n"


def check():
    """Checks the documents against what cargo tree lists, CycloneDX's schema, SECURITY.md and deny.toml."""
    # From PyPI.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    def expect(is_met, what):
        if not is_met:
            sys.exit(f"FAILED  {what}")
        print(f"ok      {what}")

    def tree(target, edges, options):
        lines = run(CARGO, "tree", "--locked", "--prefix=none", "--target", target, "--edges", edges, *options).splitlines()
        crates = {tuple(line.split()[:2]) for line in lines if line}
        return {(name, version.removeprefix("v")) for name, version in crates if name != "tiny-probe"}

    expect(NOTICES.read_text() == notices([]), f"{NOTICES.name} is what `third-party.py notices` writes")
    listed = set(re.findall(r"^(\S+) (\S+) \(", NOTICES.read_text(), re.MULTILINE))
    linked = set().union(*(tree(target, "normal,no-proc-macro", []) for target in TARGETS))
    linked = {crate for crate in linked if crate[0] != "bounded-http"}
    expect(linked - listed == set(), f"{NOTICES.name} lists each of the {len(linked)} crates that are linked")
    for target in TARGETS:
        for options in [], ["--no-default-features"]:
            text = sbom(target, options)
            errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
            name = " ".join([f"the bill of materials for {target}", *options])
            expect(errors is None, f"{name} fits CycloneDX's schema{f': {errors}' if errors else ''}")
            components = {(part["name"], part["version"]) for part in json.loads(text)["components"]}
            expect(components == tree(target, "normal", options), f"{name} has the {len(components)} crates of cargo tree")
            has_crate = any(name == AFFECTED_CRATE[0] for name, _ in components)
            expect(has_crate == (not options), f"{name} has {'no ' if options else ''}{AFFECTED_CRATE[0]}")
    statements = json.loads(vex([]))["statements"]
    named = {statement["vulnerability"]["name"] for statement in statements}
    for file in ["SECURITY.md", "deny.toml"]:
        found = set(re.findall(r"CVE-\d+-\d+", (ROOT / file).read_text()))
        expect(found == named, f"{file} and the VEX document name {', '.join(sorted(named))}")
    expect(vex(["--no-default-features"]) == "", "without tiny_http there is no statement about its vulnerabilities")


def main():
    options = [word for word in sys.argv[1:] if word == "--no-default-features"]
    match [word for word in sys.argv[1:] if word not in options]:
        case ["notices"]:
            print(notices(options), end="")
        case ["sbom", target]:
            print(sbom(target, options), end="")
        case ["vex"]:
            print(vex(options), end="")
        case ["check"]:
            check()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
