#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a server keeps of its rights. That it serves within them is shown by every other test: all of them run with the
# sandbox on.
. "$(dirname "$0")/lib.sh"

status_of_process() { # PID NAME
	sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"
}

case_every_thread_has_no_new_privileges_and_a_filter() {
	local engine task
	random_file data 8M
	for engine in auto epoll; do
		serve s --loop "$engine" data
		exits 0 "$REMORA" copy --quiet "$(at s)" out
		same data out
		for task in /proc/"${pid_of[s]}"/task/*/status; do
			grep -qP '^NoNewPrivs:\t1$' "$task"
			grep -qP '^Seccomp:\t2$' "$task"
		done
		stop s
		is "$status_of" 0 "exit status"
		[ ! -e s.sock ]
		lacks s.err "sandbox: without"
	done
}

case_no_sandbox_is_none() {
	serve s --no-sandbox memory:1M
	is "$(status_of_process "${pid_of[s]}" Seccomp)" 0
	is "$(status_of_process "${pid_of[s]}" NoNewPrivs)" 0
	exits 0 "$REMORA" status "unix:$dir/s.sock"
	grep -qE 'Sandbox +off' stdout
}

case_status_and_log_tell_what_is_active() {
	serve s -v memory:1M
	holds s.err "sandbox: no new privileges"
	exits 0 "$REMORA" status "unix:$dir/s.sock"
	grep -qE 'Sandbox +no new privileges, filter of system calls' stdout
	exits 0 "$REMORA" status --json "unix:$dir/s.sock"
	grep -qE '"seccomp": ?true' stdout
}

case_another_user_serves_what_root_opened() {
	[ "$(id -u)" = 0 ] || skip "only root can become another user"
	random_file data 4M
	chmod 600 data
	serve s --user 65534:65533 data
	is "$(status_of_process "${pid_of[s]}" Uid | tr '\t' ' ')" "65534 65534 65534 65534"
	is "$(status_of_process "${pid_of[s]}" Gid | tr '\t' ' ')" "65533 65533 65533 65533"
	is "$(status_of_process "${pid_of[s]}" Groups | tr -d ' ')" 65533
	is "$(status_of_process "${pid_of[s]}" CapPrm)" 0000000000000000
	is "$(status_of_process "${pid_of[s]}" CapEff)" 0000000000000000
	lacks s.err "sandbox: without"
	exits 0 "$REMORA" copy --quiet "$(at s)" out
	same data out
	random_file new 4M
	exits 0 "$REMORA" copy --quiet new "$(at s)"
	stop s
	is "$status_of" 0 "exit status"
	same data new
	serve s data # the socket that it could not remove is taken over
	exits 0 "$REMORA" info "$(at s)"
}

case_a_user_who_is_none_is_refused_before_anything_is_opened() {
	exits 2 "$REMORA" serve --user no-such-user-here "$dir/made?size=1M" --listen "unix:$dir/s.sock"
	holds stderr "no user 'no-such-user-here'"
	[ ! -e made ] && [ ! -e s.sock ]
	exits 2 "$REMORA" serve --user root memory:1M --listen "unix:$dir/s.sock"
	holds stderr "that is root"
}

case_what_a_resource_opens_while_it_serves_stays_open_to_it() {
	random_file data 4M
	serve far memory:4M
	(umask 077 && head -c 32 /dev/urandom >key)
	serve s "a=encrypt:key=$dir/key,mode=gcm,meta=$dir/meta,new=1|$(at far)" "b=$(at far)" "c=trace:file=$dir/trace|$dir/data"
	exits 0 "$REMORA" copy --quiet data "$(at s a)"
	exits 0 "$REMORA" copy --quiet "$(at s a)" out
	same data out
	stop far KILL # the server's own connection to it is made again
	serve far memory:4M
	exits 0 timeout 60 "$REMORA" copy --quiet data "$(at s b)"
	exits 0 "$REMORA" copy --quiet "$(at s c)" out2
	same data out2
	stop s # before those that it flushes to
	is "$status_of" 0 "exit status"
}

run_cases
