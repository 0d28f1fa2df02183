#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The ten rules of the data path (docs/invariants.md), each with a test that bears its number, in the whole program: real
# processes, sockets and page faults. The simulation holds the same rules against a model, over many seeds.
. "$(dirname "$0")/lib.sh"

numbers() { # of an answer, without its "ok"
	sed 's/^ok //' <<<"$1"
}

came_down() { # LINK: bytes
	link_do "$1" stat | sed -E 's/.*"down":[^}]*"delivered":([0-9]+).*/\1/'
}

case_rule_1_requests_end_once_also_at_close_and_when_the_peer_dies() {
	random_file data 32M
	serve s data
	link l s --rate 40Mbit
	local i
	# What completes twice, or never, is a failed CHECK (seen in stderr) or a close that does not return.
	for i in 1 2 3 4 5 6; do
		mapper m$i
		ask m$i "open $(at l) pull=all push=1 deadline=2000" >/dev/null
		asks m$i "fill 0 64K $i" "ok"
		case $i in
		1 | 2) asks m$i "discard" "ok" ;;
		3 | 4)
			link_do l cut
			asks m$i "close" "ok"
			;;
		*)
			stop s KILL
			ask m$i "close" >answer
			grep -qE '^(ok|error)' answer
			serve s data
			;;
		esac
	done
}

case_rule_2_random_writers_while_pulling_through_25_ms_then_flush() {
	random_file data 8M
	cp data model
	serve s data
	link l s --delay 12.5ms
	mapper m
	ask m "open $(at l) pull=all push=50" >/dev/null
	asks m "scatter 4000 4 99 $dir/model" "ok"
	asks m "flush" "ok"
	same data model
	asks m "same 0 8M $dir/model" "ok same"
}

case_rule_3_a_fault_goes_ahead_of_the_background() {
	random_file data 48M
	serve s data
	link l s --rate 80Mbit --delay 5ms
	mapper m
	ask m "open $(at l) pull=all inflight=4M" >/dev/null
	until [ "$(came_down l)" -ge 4000000 ]; do :; done
	local before
	before=$(came_down l)
	asks m "same 47M 4096 $dir/data" "ok same"
	# In order it would have come behind 40 MiB; it waits for no more than what was on the wire already.
	less $(($(came_down l) - before)) 12000000 "bytes that came before the fault's"
}

case_rule_4_a_server_killed_during_write_back_loses_nothing_flushed() {
	random_file data 16M
	cp data model
	serve s data
	link l s --delay 5ms --rate 400Mbit
	mapper m
	ask m "open $(at l) push=10" >/dev/null
	local i
	for i in 1 2 3; do
		asks m "scatter 3000 2 $i $dir/model" "ok"
		tell m "flush"
		stop s KILL
		serve s data
		is "$(line_of m)" "ok" "flush $i"
		same data model
	done
}

case_rule_4_an_instance_that_forgot_makes_flush_push_again_or_fail() {
	truncate -s 4M zeros
	cp zeros model
	serve s mem=memory:4M
	mapper m
	ask m "open $(at s mem) push=10" >/dev/null
	asks m "fill 4096 100000 5 $dir/model" "ok"
	until [ "$(numbers "$(ask m 'status pushed_bytes')")" -ge 100000 ]; do :; done
	stop s KILL
	serve s mem=memory:4M
	ask m "flush" >answer
	if grep -q '^ok' answer; then
		"$REMORA" copy --quiet "$(at s mem)" out
		same out model
	fi
}

case_rule_4_a_direct_write_that_a_restart_forgot_makes_its_flush_fail() {
	serve s mem=memory:4M
	mapper m
	asks m "direct $(at s mem)" "ok"
	asks m "dwrite 4096 100000 5" "ok"
	asks m "dflush" "ok"
	asks m "dwrite 4096 100000 6" "ok"
	stop s KILL
	serve s mem=memory:4M
	ask m "dflush" >answer
	grep -q '^error -5 ' answer
	asks m "dwrite 4096 100000 6" "ok"
	asks m "dflush" "ok"
}

case_rule_5_an_old_write_never_lands_on_a_new_one() {
	truncate -s 4M data
	cp data model
	serve s data
	link l s --delay 2ms
	mapper m
	ask m "open $(at l) push=1" >/dev/null
	local i
	for i in $(seq 40); do
		# The same pages again and again, while connections break with writes under way.
		asks m "fill 4000 200000 $i $dir/model" "ok"
		[ $((i % 4)) != 0 ] || link_do l cut
	done
	asks m "flush" "ok"
	same data model
	# Nothing that was under way may come later.
	asks m "close" "ok"
	stop s
	same data model
}

case_rule_6_no_allocation_from_a_fault_to_its_wake_up() {
	random_file data 32M
	serve s data
	mapper m
	ask m "open $(at s) readahead=1 no_push=1" >/dev/null
	asks m "same 0 1M $dir/data" "ok same"
	local before
	before=$(numbers "$(ask m allocs)")
	[ "$before" != uncounted ] || skip "a sanitizer's own allocator"
	less 0 "$before" "allocations to begin with"
	asks m "same 1M 31M $dir/data" "ok same"
	is "$(numbers "$(ask m allocs)")" "$before" "allocations"
}

case_rule_7_a_server_that_is_not_restarted_means_sigbus_within_the_deadline() {
	random_file data 16M
	serve s data
	mapper m
	ask m "open $(at s) readahead=1 deadline=500" >/dev/null
	asks m "same 0 4096 $dir/data" "ok same"
	stop s KILL
	asks m "same 8M 4096 $dir/data" "sigbus"
	# What is local stays usable.
	asks m "same 0 4096 $dir/data" "ok same"
	ask m "fill 0 4096 1" >/dev/null
	ask m "flush" >answer
	holds answer "error"
}

case_rule_7_missing_data_is_never_zeros() {
	# No byte of it is zero, so that a zero page cannot pass for content.
	head -c 24M /dev/urandom | tr '\000' '\001' >data
	serve s data
	link l s --rate 200Mbit
	mapper m
	ask m "open $(at l) readahead=1" >/dev/null
	tell m "zeros 0 24M"
	local i
	for i in 1 2 3; do
		until [ "$(came_down l)" -ge $((i * 4000000)) ]; do :; done
		stop s KILL
		serve s data
	done
	is "$(line_of m)" "ok 0" "zero bytes"
	stop s KILL
	mapper n
	ask n "open $(at l) deadline=300" >answer
	holds answer "error"
}

case_rule_8_a_budget_bounds_what_is_resident() {
	random_file data 256M
	cp data model
	serve s data
	mapper m
	local before after
	before=$(numbers "$(ask m rss)")
	ask m "open $(at s) budget=64M" >/dev/null
	asks m "same 0 256M $dir/data" "ok same"
	asks m "fill 0 128M 5 $dir/model" "ok"
	after=$(numbers "$(ask m rss)")
	[ "$after" = uncounted ] ||
		less $((after - before)) $((64 * 1048576 * 110 / 100)) "resident bytes"
	asks m "flush" "ok"
	asks m "same 0 256M $dir/model" "ok same"
	asks m "close" "ok"
	same data model
}

case_rule_9_what_fell_back_is_named_and_what_cannot_be_had_is_an_error() {
	serve s memory:1M
	mapper m
	ask m "open $(at s) loop=epoll" >/dev/null
	ask m "status engine" >answer
	holds answer "epoll"
	asks m "close" "ok"
	ask m "open $(at s) loop=kqueue" >answer
	holds answer "error"
	holds answer "kqueue"
	exits 0 "$REMORA" info -v --loop epoll memory:1M
	holds stderr "epoll"
}

case_rule_10_server_threads_never_touch_the_mapping() {
	random_file data 32M
	serve s data
	mapper m
	ask m "open $(at s) pull=all budget=16M push=5" >/dev/null
	asks m "pull 0 32M" "ok"
	asks m "invalidate 0 32M" "ok"
	asks m "pull 8M 4M" "ok"
	asks m "flush" "ok"
	# The program touched nothing; whatever faulted was one of ours.
	is "$(numbers "$(ask m 'status faults')")" 0 "faults"
	asks m "close" "ok"
}

run_cases
