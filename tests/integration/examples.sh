#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The programs of examples/, as a user runs them.
. "$(dirname "$0")/lib.sh"

records_sorted() { # FILE: its records of 64 bytes, as lines, in order
	od -An -v -tx1 -w64 "$1" | LC_ALL=C sort
}

case_sort_leaves_the_far_file_sorted_with_the_same_records() {
	random_file data 4M
	cp data before
	serve s data
	exits 0 "$EXAMPLES/sort" "$(at s)"
	od -An -v -tx1 -w64 data >after
	LC_ALL=C sort -c after
	records_sorted before >want
	same want after
}

case_sort_with_a_budget_smaller_than_the_file() {
	random_file data 24M
	cp data before
	serve s data
	exits 0 "$EXAMPLES/sort" "$(at s)" 8
	od -An -v -tx1 -w64 data >after
	LC_ALL=C sort -c after
	records_sorted before | sha256sum >want
	sha256sum <after >got
	same want got
}

case_lookup_finds_counts_and_flushes() {
	"$EXAMPLES/make-index" words.idx words 20000 >/dev/null
	cp words.idx model
	serve s words.idx
	exits 0 "$EXAMPLES/lookup" "$(at s)" words
	grep -qE '^found.100$' stdout || { cat stdout; return 1; }
	"$EXAMPLES/make-index" --count model words
	same words.idx model
}

run_cases
