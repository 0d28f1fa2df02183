#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# remora verify, and the checksum stage and the directory back end below it: what is bad is found, named and repaired.
. "$(dirname "$0")/lib.sh"

# One byte of a file becomes another one.
flip() { # FILE OFFSET
	local old
	old=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf "\\$(printf %o $(((old + 1) % 256)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# img with the content of data, and sums.
make_summed() { # SIZE [OPTIONS]
	random_file data "$1"
	exits 0 "$REMORA" copy --quiet data "checksum:file=sums,create=1${2-}|file:img?size=$1"
	summed="checksum:file=sums|file:img"
}

case_flipped_bytes_are_found_and_named() {
	make_summed 8M
	exits 0 "$REMORA" verify "$summed"
	holds stdout "verified 8 MiB: all of it is what was written"
	flip img 0
	flip img 70000
	flip img 131071
	flip img 8388607
	exits 4 "$REMORA" verify "$summed"
	holds stdout "bad 0+131072"
	holds stdout "bad 8323072+65536"
	holds stderr "is not what was written"
	exits 4 "$REMORA" verify --json "$summed"
	holds stdout '"bad_bytes": 196608'
	holds stdout '"offset": 8323072'
	holds stdout '"complete": true'
}

case_sha256_and_small_chunks() {
	make_summed 3000001 ,algorithm=sha256,chunk=4K
	exits 0 "$REMORA" verify "$summed"
	flip img 3000000
	flip img 5000
	exits 4 "$REMORA" verify "$summed"
	holds stdout "bad 4096+4096"
	holds stdout "bad 2998272+1729"
}

case_what_is_bad_is_repaired_from_a_copy() {
	make_summed 8M
	cp data far
	flip img 100
	flip img 4000000
	serve s far
	exits 0 "$REMORA" verify --repair-from "$(at s)" "$summed"
	holds stdout "repaired 0+65536"
	holds stdout "repaired 3997696+65536"
	same img data
	exits 0 "$REMORA" verify "$summed"
}

case_a_copy_that_is_not_what_was_written_repairs_nothing() {
	make_summed 1M
	cp data far
	flip far 70000
	flip img 100
	flip img 70000
	exits 4 "$REMORA" verify --repair-from far "$summed"
	holds stdout "repaired 0+65536"
	holds stdout "bad 65536+65536"
	holds stderr "not repaired: the copy is not what was written either"
	is "$(cmp -l img data | wc -l || :)" 1 "bytes that differ"
}

case_what_has_no_checksum_is_told_and_recorded() {
	random_file img 1M
	exits 0 "$REMORA" info "checksum:file=sums,create=1|file:img"
	exits 0 "$REMORA" verify "checksum:file=sums|file:img"
	holds stdout "1 MiB without checksum"
	flip img 5
	exits 0 "$REMORA" verify --record "checksum:file=sums|file:img"
	holds stdout "1 MiB recorded for the first time"
	flip img 5
	exits 4 "$REMORA" verify "checksum:file=sums|file:img"
	holds stdout "bad 0+65536"
}

case_two_resources_are_compared() {
	random_file data 3000001
	cp data other
	exits 0 "$REMORA" verify --against other data
	holds stdout "no difference"
	flip other 3000000
	flip other 8192
	serve s other
	exits 4 "$REMORA" verify --against "$(at s)" data
	holds stdout "bad 8192+4096"
	holds stdout "bad 2998272+1729"
}

case_errors_say_what_to_do() {
	random_file data 1M
	exits 2 "$REMORA" verify --against data --repair-from data data
	exits 2 "$REMORA" verify data
	holds stderr "has no checksum stage"
	exits 3 "$REMORA" verify "checksum:file=sums|file:data"
	holds stderr "create=1"
	make_summed 1M
	truncate -s 2M img
	exits 2 "$REMORA" verify "$summed"
	holds stderr "is of a resource of 1048576 bytes"
}

# ---- the far side can lose a chunk ----

# A directory of data, served as s.
serve_directory() {
	random_file data 1M
	exits 0 "$REMORA" copy --quiet data "directory:far?size=1M&create=1"
	serve s "disk=directory:$dir/far"
}

case_a_chunk_that_vanished_is_eio_in_a_copy_and_repaired() {
	random_file data 1M
	exits 0 "$REMORA" copy --quiet data "checksum:file=sums,create=1|directory:far?size=1M&create=1"
	rm far/131072
	exits 4 "$REMORA" copy --quiet "directory:far" out
	holds stderr "131072"
	exits 4 "$REMORA" verify "checksum:file=sums|directory:far"
	holds stdout "bad 131072+65536"
	exits 0 "$REMORA" verify --repair-from data "checksum:file=sums|directory:far"
	rm -f out
	exits 0 "$REMORA" copy --quiet "directory:far" out
	same data out
}

case_a_chunk_that_vanished_at_the_server_is_eio_in_a_mount() {
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	serve_directory
	rm far/131072
	mount_file m "$(at s)" file
	exits 0 cmp -n 131072 data file
	exits 1 timeout 60 dd if=file of=part bs=64K skip=2 count=1 status=none
	holds stderr "Input/output error"
	is "$(stat -c %s part 2>/dev/null || echo 0)" 0 "bytes that were read"
	exits 0 cmp -i 196608 data file
	unmount_file m file
}

case_a_chunk_that_vanished_at_the_server_is_sigbus_in_memory() {
	serve_directory
	rm far/131072
	mapper m
	ask m "open $(at s) readahead=1 deadline=500" >/dev/null
	asks m "same 0 128K $dir/data" "ok same"
	asks m "same 128K 64K $dir/data" "sigbus"
	asks m "same 192K 64K $dir/data" "ok same"
}

case_a_server_of_a_directory_killed_keeps_what_was_flushed() {
	random_file data 4M
	exits 0 "$REMORA" copy --quiet data "directory:far?size=4M&create=1"
	serve s "disk=directory:$dir/far"
	random_file more 1M
	truncate -s 4M more
	exits 0 "$REMORA" copy --quiet more "$(at s)"
	stop s KILL
	rm -f s.sock
	serve s "disk=directory:$dir/far"
	exits 0 "$REMORA" verify --against more "$(at s)"
	rm far/0
	stop s
	rm -f s.sock
	serve s "disk=directory:$dir/far"
	exits 4 "$REMORA" copy --quiet "$(at s)" out
}

run_cases
