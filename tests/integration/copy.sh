#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# remora copy between real resources: whole, sparse, interrupted, resumed, compared.
. "$(dirname "$0")/lib.sh"

allocated() { # FILE: bytes on disk
	echo $(($(stat -c %b "$1") * 512))
}

json_number() { # FILE KEY
	sed -nE "s/.*\"$2\": ?([0-9]+).*/\1/p" "$1" | tail -n 1
}

case_file_to_server_to_file_verified() {
	random_file data 20000001
	truncate -s 20000001 far
	serve s far
	exits 0 "$REMORA" copy --quiet --verify data "$(at s)"
	same data far
	exits 0 "$REMORA" copy --quiet --verify "$(at s)" back
	same data back
}

case_sizes_that_are_no_multiple_of_anything() {
	local n
	for n in 0 1 511 4095 4097 65537 1048577; do
		head -c $n /dev/urandom >data
		rm -f back
		if [ $n = 0 ]; then
			exits 0 "$REMORA" copy --quiet --verify data back
		else
			serve s$n data
			exits 0 "$REMORA" copy --quiet --verify "$(at s$n)" back
		fi
		same data back
	done
}

case_holes_are_neither_moved_nor_filled() {
	truncate -s 256M data
	random_file piece 100K
	dd if=piece of=data bs=1M seek=100 conv=notrunc status=none
	serve s data
	link l s
	exits 0 "$REMORA" copy --quiet "$(at l)" out
	same data out
	less "$(allocated out)" 4000000 "bytes on disk"
	link_do l stat >stat
	less "$(sed -E 's/.*"down":[^}]*"delivered":([0-9]+).*/\1/' stat)" 4000000 "bytes moved"
}

case_zeros_that_are_stored_do_not_travel() {
	head -c 64M /dev/zero >data
	serve s data
	link l s
	exits 0 "$REMORA" copy --quiet "$(at l)" out
	same data out
	link_do l stat >stat
	less "$(sed -E 's/.*"down":[^}]*"delivered":([0-9]+).*/\1/' stat)" 4000000 "bytes moved"
}

case_old_bytes_of_the_destination_do_not_show_through_holes() {
	truncate -s 8M data
	random_file out 8M
	exits 0 "$REMORA" copy --quiet --verify data out
	same data out
}

case_verify_finds_one_wrong_byte() {
	random_file data 4M
	cp data other
	printf '\377' | dd of=other bs=1 seek=3000000 conv=notrunc status=none
	cmp -s data other && { printf '\0' | dd of=other bs=1 seek=3000000 conv=notrunc status=none; }
	exits 4 "$REMORA" copy --quiet "verify:with=(file:$dir/other)|file:$dir/data" out
}

case_interrupted_and_resumed() {
	random_file data 32M
	serve s data
	link l s --rate 100Mbit
	spawn c "$REMORA" copy --quiet "$(at l)" out
	until [ -s out.remora-copy ]; do kill -0 "${pid_of[c]}"; done
	stop c INT
	is "$status_of" 5 "exit status"
	[ -s out.remora-copy ]
	link_do l rate none
	exits 0 "$REMORA" copy --json "$(at l)" out
	less 0 "$(json_number stdout done_before)" "bytes that were not moved again"
	same data out
	[ ! -e out.remora-copy ]
}

case_killed_and_resumed() {
	random_file data 32M
	serve s data
	link l s --rate 100Mbit
	spawn c "$REMORA" copy --quiet "$(at l)" out
	until [ -s out.remora-copy ]; do kill -0 "${pid_of[c]}"; done
	stop c KILL
	link_do l rate none
	exits 0 "$REMORA" copy --quiet --verify "$(at l)" out
	same data out
}

case_a_source_that_changed_is_not_resumed() {
	random_file data 32M
	spawn c "$REMORA" copy --quiet "limit:rate=8M|file:$dir/data" out
	until [ -s out.remora-copy ]; do kill -0 "${pid_of[c]}"; done
	stop c KILL
	random_file data2 32M
	cat data2 >data
	exits 0 "$REMORA" copy --quiet "file:$dir/data" out
	same data2 out
}

case_the_server_is_killed_and_restarted_meanwhile() {
	random_file data 48M
	serve s data
	link l s --rate 200Mbit --delay 2ms
	spawn c "$REMORA" copy --quiet "$(at l)" out
	local i
	for i in 1 2 3; do
		until [ "$(link_do l stat | sed -E 's/.*"down":[^}]*"delivered":([0-9]+).*/\1/')" -ge $((i * 8000000)) ]; do :; done
		stop s KILL
		serve s data
	done
	finished c
	is "$status_of" 0 "copy"
	same data out
}

case_writing_to_a_server_that_is_killed_and_restarted() {
	random_file data 48M
	truncate -s 48M far
	serve s far
	link l s --rate 200Mbit --delay 2ms
	spawn c "$REMORA" copy --quiet data "$(at l)"
	local i
	for i in 1 2 3; do
		until [ "$(link_do l stat | sed -E 's/.*"up":[^}]*"delivered":([0-9]+).*/\1/')" -ge $((i * 8000000)) ]; do :; done
		stop s KILL
		serve s far
	done
	finished c
	is "$status_of" 0 "copy"
	same data far
}

case_a_destination_that_is_too_small() {
	serve s memory:1M
	random_file data 2M
	exits 1 "$REMORA" copy --quiet data "$(at s)"
	holds stderr "smaller"
}

case_a_file_onto_itself() {
	random_file data 1M
	cp data before
	exits 2 "$REMORA" copy --quiet data "file:$dir/data"
	same data before
}

case_progress_as_json() {
	random_file data 4M
	exits 0 "$REMORA" copy --progress=json "limit:rate=8M|file:$dir/data" out
	grep -q '^{.*"done"' stderr || { cat stderr; return 1; }
}

case_a_pattern_is_what_its_page_says() {
	exits 0 "$REMORA" copy --quiet 'pattern:1000?unit=abc' out
	printf 'abc%.0s' {1..334} >many
	head -c 1000 many >want
	same want out
	exits 0 "$REMORA" copy --quiet 'pattern:1M?seed=7' a
	exits 0 "$REMORA" copy --quiet 'pattern:1M?seed=7' b
	exits 0 "$REMORA" copy --quiet 'pattern:1M?seed=8' c
	same a b
	! cmp -s a c
}

case_o_direct() {
	random_file data 3000001
	exits 0 "$REMORA" copy --quiet "file:$dir/data?direct=1" out
	same data out
}

case_a_slow_link_is_filled() {
	random_file data 8M
	serve s data
	link l s --delay 25ms --rate 160Mbit
	exits 0 "$REMORA" copy --json "$(at l)" out
	same data out
	# No clock here: what counts is that requests were in flight together. One after the other, 256 KiB each, would have
	# taken 32 round trips of 50 ms on top of the 0.4 s that the bytes need.
	less "$(json_number stdout bytes_per_s)" 30000000 "rate"
	less 4000000 "$(json_number stdout bytes_per_s)" "rate"
}

run_cases
