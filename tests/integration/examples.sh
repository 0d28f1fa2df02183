#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The programs of examples/, as a user runs them.
. "$(dirname "$0")/lib.sh"

# A gigabyte where nothing else slows it down; less with sanitizers.
size=${REMORA_SORT_SIZE:-64M}

sorts_with() { # BUDGET_MIB, or nothing
	local before after status peak
	random_file data "$size"
	before=$("$RECORDS" data)
	serve s data
	read -r status peak < <("$RECORDS" --peak "$EXAMPLES/sort" "$(at s)" "$@")
	is "$status" 0 "exit status of sort"
	after=$("$RECORDS" data)
	is "${after%% *}" "sorted"
	is "${after##* }" "${before##* }" "the records"
	echo "$peak" >peak
}

case_sort_leaves_the_far_file_sorted_with_the_same_records() {
	sorts_with
}

case_sort_with_a_budget_smaller_than_the_file() {
	local budget=16 slack=8 # MiB; the program itself counts, too, where the budget is so small
	if [ "$size" = 1G ]; then
		budget=64 slack=0
	fi
	sorts_with $budget
	[ -n "${REMORA_SANITIZED-}" ] ||
		less "$(cat peak)" $(((budget * 110 / 100 + slack) * 1048576)) "resident bytes"
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
