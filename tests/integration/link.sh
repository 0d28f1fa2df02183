#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The emulated network: what it does to what goes through it, and that it can be told so while it runs.
. "$(dirname "$0")/lib.sh"

now_ms() { echo $(($(date +%s%N) / 1000000)); }

stat_of() { # NAME KEY...: a number of its stat; "up delivered" is a number within an object
	link_do "$1" stat >stat.json
	local json key
	json=$(cat stat.json)
	shift
	for key; do
		json=${json#*\"$key\":}
	done
	sed 's/^[^0-9a-z]*\([0-9a-z]*\).*/\1/' <<<"$json"
}

case_data_goes_through_unchanged() {
	random_file data 8M
	serve s data
	link l s
	exits 0 "$REMORA" copy --quiet "$(at l)" out
	same data out
	less 8388608 "$(stat_of l down delivered)" "bytes that came down"
}

case_a_delay_holds_for_each_direction() {
	random_file data 64K
	serve s data
	link l s --delay 50ms
	local start
	start=$(now_ms)
	exits 0 "$REMORA" copy --quiet "$(at l)" out
	same data out
	# The hello and one reply: less than a round trip of 100 ms cannot be.
	less 99 $(($(now_ms) - start)) "ms through 100 ms"
}

case_a_rate_holds() {
	random_file data 4M
	serve s data
	link l s --rate 32Mbit
	local start
	start=$(now_ms)
	exits 0 "$REMORA" copy --quiet "$(at l)" out
	same data out
	less 950 $(($(now_ms) - start)) "ms for 4 MiB at 32 Mbit/s"
}

case_a_stall_holds_everything_until_it_ends() {
	random_file data 1M
	serve s data
	link l s
	link_do l stall on
	spawn c "$REMORA" copy --quiet "$(at l)" out
	until [ "$(stat_of l accepted)" -ge 1 ]; do :; done
	is "$(stat_of l up delivered)" 0 "bytes that went through a stall"
	kill -0 "${pid_of[c]}"
	link_do l stall off
	finished c
	is "$status_of" 0 "copy"
	same data out
}

case_a_cut_ends_connections_and_the_copy_goes_on() {
	random_file data 16M
	serve s data
	link l s --rate 100Mbit --delay 2ms
	spawn c "$REMORA" copy --quiet "$(at l)" out
	until [ "$(stat_of l down delivered)" -ge 1000000 ]; do :; done
	link_do l cut
	until [ "$(stat_of l down delivered)" -ge 5000000 ]; do :; done
	link_do l cut for 300ms
	finished c
	is "$status_of" 0 "copy"
	same data out
}

case_settings_change_while_it_runs() {
	serve s memory:1M
	link l s
	link_do l delay 10ms
	link_do l rate 1Gbit
	is "$(stat_of l delay_ns)" 10000000
	is "$(stat_of l rate_bytes_per_s)" 125000000
	link_do l rate none
	is "$(stat_of l rate_bytes_per_s)" 0
	exits 1 link_do l delay soon
	holds stderr "soon"
	exits 1 link_do l dance
	holds stderr "commands:"
}

case_a_signal_ends_it_and_removes_its_sockets() {
	serve s memory:1M
	link l s
	[ -S l.sock ] && [ -S l.control ]
	stop l
	is "$status_of" 0 "exit status"
	[ ! -e l.sock ]
	[ ! -e l.control ]
}

case_it_listens_on_this_machine_alone() {
	exits 2 "$REMORA" link --listen 0.0.0.0:0 --to "unix:$dir/s.sock"
	holds stderr "loopback"
}

run_cases
