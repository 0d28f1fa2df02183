#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Commands about the machine: doctor and bench.
. "$(dirname "$0")/lib.sh"

case_doctor_names_what_is_there_and_what_each_is_for() {
	exits 0 "$REMORA" doctor
	holds stdout "userfaultfd"
	holds stdout "io_uring"
	exits 0 "$REMORA" doctor --json
	grep -q '^{' stdout
}

case_bench_measures_and_checks() {
	local before after
	before=$(find /dev/shm -maxdepth 1 -name 'remora-*' | wc -l)
	exits 0 "$REMORA" bench --size 64M --rounds 1 --json
	grep -q '^{' stdout || { cat stdout; return 1; }
	after=$(find /dev/shm -maxdepth 1 -name 'remora-*' | wc -l)
	is "$after" "$before" "files left in /dev/shm"
}

run_cases
