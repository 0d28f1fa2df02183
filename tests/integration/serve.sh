#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The server as a process: what it offers, to whom, and how it ends.
. "$(dirname "$0")/lib.sh"

case_list_and_info_tell_what_is_served() {
	random_file data 3M
	serve s data scratch=memory:64M
	exits 0 "$REMORA" list "unix:$dir/s.sock"
	holds stdout "data"
	holds stdout "scratch"
	holds stdout "64 MiB"
	exits 0 "$REMORA" info --json "$(at s data)"
	grep -qE '"size": ?3145728' stdout || { cat stdout; return 1; }
	exits 0 "$REMORA" list --json "$(at s)"
	grep -qE '"name": ?"scratch"' stdout || { cat stdout; return 1; }
}

case_a_signal_stops_it_and_removes_the_socket() {
	local signal
	for signal in TERM INT HUP; do
		serve s memory:1M
		[ -S s.sock ]
		stop s $signal
		is "$status_of" 0 "exit status after $signal"
		[ ! -e s.sock ]
	done
}

case_a_signal_stops_it_with_clients_connected() {
	random_file data 64M
	serve s data
	link l s --rate 8Mbit
	spawn c "$REMORA" copy --quiet "$(at l)" out
	until link_do l stat | grep '"connections":[1-9]' >/dev/null; do :; done
	stop s
	is "$status_of" 0 "exit status"
	stop c
	is "$status_of" 5 "exit status of the interrupted copy"
}

case_a_socket_left_by_a_killed_server_is_taken_over() {
	serve s memory:1M
	stop s KILL
	[ -S s.sock ]
	serve s memory:1M
	exits 0 "$REMORA" info "$(at s)"
}

case_a_socket_in_use_is_left_alone() {
	serve s memory:1M
	exits 1 "$REMORA" serve memory:2M --listen "unix:$dir/s.sock"
	exits 0 "$REMORA" info --json "$(at s)"
	grep -qE '"size": ?1048576' stdout
}

case_it_listens_on_this_machine_alone() {
	local addr
	for addr in 0.0.0.0:0 '[::]:0' 192.0.2.1:7000; do
		exits 2 "$REMORA" serve memory:1M --listen "$addr"
		holds stderr "$addr"
	done
}

case_over_tcp_on_a_port_of_its_choice() {
	random_file data 2M
	start s "$REMORA" serve data --listen 127.0.0.1:0
	local addr
	addr=$(head -n 1 s.ready)
	exits 0 "$REMORA" copy --quiet "remora://$addr/data" out
	same data out
	exits 0 "$REMORA" copy --quiet "remora://$addr" out2
	same data out2
}

case_read_only_refuses_writes() {
	random_file data 1M
	cp data before
	serve s --read-only data
	random_file new 1M
	exits 1 "$REMORA" copy --quiet new "$(at s)"
	holds stderr "read only"
	same data before
	exits 0 "$REMORA" copy --quiet "$(at s)" out
	same data out
}

case_many_clients_at_once() {
	random_file data 16M
	serve s data
	local i
	for i in 1 2 3 4 5 6; do
		spawn "c$i" "$REMORA" copy --quiet "$(at s)" "out$i"
	done
	for i in 1 2 3 4 5 6; do
		finished "c$i"
		is "$status_of" 0 "client $i"
		same data "out$i"
	done
}

case_what_one_client_flushed_another_reads() {
	serve s memory:4M
	random_file a 4M
	exits 0 "$REMORA" copy --quiet a "$(at s)"
	exits 0 "$REMORA" copy --quiet "$(at s)" b
	same a b
}

case_garbage_on_the_socket_harms_nobody() {
	random_file data 1M
	start s "$REMORA" serve data --listen 127.0.0.1:0
	local addr host port i
	addr=$(head -n 1 s.ready)
	host=${addr%:*} port=${addr##*:}
	for i in 1 2 3 4 5; do
		random_file garbage 64K
		(cat garbage >"/dev/tcp/$host/$port") 2>/dev/null || true
	done
	exits 0 "$REMORA" copy --quiet "remora://$addr" out
	same data out
}

case_a_name_is_the_files_or_given() {
	random_file data 1M
	serve s "$dir/data" "other=$dir/data"
	exits 0 "$REMORA" copy --quiet "$(at s data)" a
	exits 0 "$REMORA" copy --quiet "$(at s other)" b
	same a b
}

case_the_same_name_twice_is_refused() {
	exits 2 "$REMORA" serve a=memory:1M a=memory:2M --listen "unix:$dir/s.sock"
	holds stderr "a"
}

case_a_flush_that_never_ends_does_not_hold_up_the_end() {
	truncate -s 1M far
	serve s --grace 100ms "far=fault:hang=1000000|file:far" other=far
	stop s
	is "$status_of" 4 "exit status"
	grep "no answer within --grace" s.err >/dev/null
}

run_cases
