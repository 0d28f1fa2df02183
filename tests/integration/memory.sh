#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A program that has a served resource as memory: with real processes, sockets, and page faults.
. "$(dirname "$0")/lib.sh"

numbers() { # of an answer, without its "ok"
	sed 's/^ok //' <<<"$1"
}

case_memory_reads_what_the_file_has() {
	random_file data 5000001
	serve s data
	mapper m
	ask m "open $(at s)" >answer
	holds answer "ok 5000001"
	asks m "same 0 5000001 $dir/data" "ok same"
	asks m "close" "ok"
}

case_lazy_means_lazy() {
	truncate -s 4G big
	printf x | dd of=big bs=1 seek=3G conv=notrunc status=none
	serve s big
	mapper m
	ask m "open $(at s) readahead=1" >answer
	holds answer "ok 4294967296"
	asks m "same 3G 4096 $dir/big" "ok same"
	less "$(numbers "$(ask m 'status pulled_bytes')")" 1048576 "bytes moved for one page of 4 GiB"
}

case_a_terabyte_of_holes_opens() {
	local gib=1024
	mapper m
	# ThreadSanitizer leaves room for mappings of a terabyte only now and then.
	[ "$(ask m rss)" != uncounted ] || gib=64
	truncate -s ${gib}G big
	serve s big
	ask m "open $(at s)" >answer
	holds answer "ok $((gib << 30))"
	asks m "zeros $((gib - 10))G 4096" "ok 4096"
}

case_writes_reach_the_file_when_flushed() {
	random_file data 4M
	cp data model
	serve s data
	mapper m
	ask m "open $(at s)" >/dev/null
	asks m "fill 100001 300000 7 $dir/model" "ok"
	asks m "flush" "ok"
	same data model
	asks m "fill 4100000 94304 8 $dir/model" "ok"
	asks m "close" "ok"
	same data model
}

case_writes_reach_the_file_in_the_background() {
	random_file data 1M
	cp data model
	serve s data
	mapper m
	ask m "open $(at s) push=20" >/dev/null
	asks m "fill 5000 70000 3 $dir/model" "ok"
	# Nobody flushes: the pusher does it by itself.
	until cmp -s data model; do asks m "pull 0 1" "ok"; done
}

case_a_private_copy_never_reaches_the_file() {
	random_file data 1M
	cp data model
	serve s data
	mapper m
	ask m "open $(at s) private=1" >/dev/null
	asks m "fill 0 1M 3" "ok"
	asks m "close" "ok"
	same data model
}

case_write_2_from_an_untouched_region_gives_the_files_bytes() {
	random_file data 256M
	serve s data
	mapper m
	ask m "open $(at s)" >/dev/null
	mkfifo pipe
	cmp pipe data &
	local reader=$!
	asks m "write 0 256M $dir/pipe" "ok"
	wait $reader
}

case_fork_gives_the_files_bytes_or_a_signal_and_the_parent_goes_on() {
	random_file data 8M
	serve s data
	mapper m
	ask m "open $(at s)" >/dev/null
	ask m "fork 0 4M $dir/data" >answer
	grep -qE '^ok (same|signal (7|11))$' answer || { cat answer; return 1; }
	asks m "same 0 8M $dir/data" "ok same"
	asks m "flush" "ok"
}

case_readers_wait_for_a_killed_server_and_go_on() {
	random_file data 16M
	serve s data
	mapper m
	ask m "open $(at s) readahead=1" >/dev/null
	asks m "same 0 1M $dir/data" "ok same"
	stop s KILL
	tell m "same 0 16M $dir/data"
	serve s data
	is "$(line_of m)" "ok same"
}

case_two_programs_map_two_resources_of_one_server() {
	random_file a 1M
	random_file b 1M
	serve s a b
	mapper m
	mapper n
	ask m "open $(at s a)" >/dev/null
	ask n "open $(at s b)" >/dev/null
	asks m "same 0 1M $dir/a" "ok same"
	asks n "same 0 1M $dir/b" "ok same"
}

case_a_lost_link_is_seen_in_the_status_and_heals() {
	random_file data 4M
	serve s data
	link l s
	mapper m
	ask m "open $(at l) readahead=1" >/dev/null
	link_do l cut for 1s
	asks m "wait far_lost 1" "ok"
	asks m "same 0 4M $dir/data" "ok same"
	asks m "wait far_lost 0" "ok"
}

case_a_region_on_epoll_works_alike() {
	random_file data 4M
	cp data model
	serve s data --loop epoll
	mapper m
	ask m "open $(at s) loop=epoll" >/dev/null
	asks m "scatter 1000 2 5 $dir/model" "ok"
	asks m "close" "ok"
	same data model
}

run_cases
