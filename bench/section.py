#!/usr/bin/env python3
"""Replaces a section of the report by what standard input says, or appends it.

bench/section.py REPORT <SECTION: its first line is the heading, `## …`.
"""
import os
import re
import sys

report, section = sys.argv[1], sys.stdin.read().strip("\n")
heading = section.partition("\n")[0]
text = open(report).read() if os.path.exists(report) else "# Benchmarks\n"
old = re.compile(r"^" + re.escape(heading) + r"\n.*?(?=^## |\Z)", flags=re.S | re.M)
new = section + "\n\n"
text = old.sub(lambda _: new, text) if old.search(text) else text.rstrip("\n") + "\n\n" + new
with open(report, "w") as out:
    out.write(text.rstrip("\n") + "\n")
