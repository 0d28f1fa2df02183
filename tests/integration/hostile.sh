#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Peers that mean harm (hostile.c), at every socket that there is: they get nothing, others are served meanwhile, and
# nothing of them stays. REMORA_HOSTILE_S seconds for each attack (default 2); REMORA_SEED repeats what was sent.
. "$(dirname "$0")/lib.sh"

: "${HOSTILE:?the helper hostile}"
attack_s=${REMORA_HOSTILE_S:-2}
seed=${REMORA_SEED:-$RANDOM}

rss_kib() { # PID
	awk '/^VmRSS/ { print $2 }' "/proc/$1/status"
}

threads_of() {
	awk '/^Threads/ { print $2 }' "/proc/$1/status"
}

fds_of() {
	find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l
}

before() { # PID
	before_rss=$(rss_kib "$1") before_fds=$(fds_of "$1") before_threads=$(threads_of "$1")
}

# What it had before the attack, but for a little: connections that were cut off end by themselves, and what they had is
# given back a little later.
nothing_stays() { # PID
	local i
	for ((i = 0; i < 200; i++)); do
		[ "$(fds_of "$1")" -gt "$before_fds" ] || [ "$(rss_kib "$1")" -ge $((before_rss + 10240)) ] || break
		read -r -t 0.1 <> <(:) || true
	done
	is "$(fds_of "$1")" "$before_fds" "descriptors behind the attack"
	less "$(threads_of "$1")" $((before_threads + 5)) "threads"
	[ -n "${REMORA_SANITIZED-}" ] && return # which keeps what was freed
	less "$(rss_kib "$1")" $((before_rss + 10240)) "KiB of resident memory, $before_rss before"
}

# As long as the attackers live, who was there before them is served; who comes meanwhile is, too, unless he finds the server
# full (status 3), and behind them always.
served_meanwhile() { # SPEC ATTACKER...
	local spec=$1 n=0 full=0 a rc
	shift
	for a; do
		while kill -0 "${pid_of[$a]}" 2>/dev/null; do
			asks m "same $((RANDOM % 4 * 1048576)) 4M $dir/data" "ok same"
			rm -f out
			rc=0
			timeout 60 "$REMORA" copy --quiet "$spec" out 2>stderr || rc=$?
			if [ $rc = 3 ]; then
				full=$((full + 1))
				continue
			fi
			is $rc 0 "exit status of the copy: $(cat stderr)"
			same data out
			n=$((n + 1))
		done
		finished "$a"
		is "$status_of" 0 "exit status of $a"
		cat "$a.err"
	done
	exits 0 timeout 60 "$REMORA" copy --quiet "$spec" out
	same data out
	echo "$n copies, $full times full; REMORA_SEED=$seed"
}

# A server with a resource that others may read, one that all may spoil, and one that somebody uses with a small budget.
victim() { # LISTEN [OPTION...]
	random_file data 8M
	start s "$REMORA" serve data mine=data scratch=memory:64M --allow '*=data:ro' --allow '*=mine,scratch' --listen "$@"
	listening=$(sed -n 1p s.ready)
}

used() { # SPEC OF mine, SPEC OF data
	mapper m
	ask m "open $1 budget=2M" >/dev/null
	asks m "same 0 8M $dir/data" "ok same"
	exits 0 "$REMORA" copy --quiet "$2" out
	before "${pid_of[s]}"
}

unused() {
	nothing_stays "${pid_of[s]}"
	asks m "close" "ok"
	stop s
	is "$status_of" 0 "exit status of the server"
}

case_a_server_on_a_unix_socket() {
	victim "unix:$dir/s.sock"
	used "$(at s mine)" "$(at s data)"
	spawn a "$HOSTILE" client "unix:$dir/s.sock" data "$attack_s" "$seed"
	spawn b "$HOSTILE" client "unix:$dir/s.sock" scratch "$attack_s" $((seed + 1))
	served_meanwhile "$(at s data)" a b
	unused
}

case_a_server_on_tcp() {
	victim 127.0.0.1:0
	used "remora://$listening/mine" "remora://$listening/data"
	spawn a "$HOSTILE" client "$listening" data "$attack_s" "$seed"
	spawn b "$HOSTILE" client "$listening" scratch "$attack_s" $((seed + 1))
	served_meanwhile "remora://$listening/data" a b
	unused
}

case_a_server_on_tls() {
	local how="psk=$dir/psk&identity=me"
	(umask 077 && echo "me:$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" >psk)
	victim 127.0.0.1:0 --psk psk
	used "remoras://$listening/mine?$how" "remoras://$listening/data?$how"
	spawn a "$HOSTILE" client "$listening" data "$attack_s" "$seed"
	served_meanwhile "remoras://$listening/data?$how" a
	unused
}

# Whatever it says: a command ends, with a status of its own.
case_a_server_that_lies_to_clients() {
	local end=$((SECONDS + attack_s)) n=0 rc spec
	while :; do
		n=$((n + 1))
		rm -f h.sock out
		mkfifo h.in
		"$HOSTILE" server "$dir/h.sock" $((seed + n)) <h.in >h.out 2>h.log &
		echo $! >>pids
		exec {hold}>h.in
		until [ -s h.out ]; do kill -0 $!; done
		spec="remora+unix://$dir/h.sock/x?for=300ms&connect=1s"
		for what in "copy --quiet $spec out" "info $spec" "list unix:$dir/h.sock"; do
			rc=0
			# shellcheck disable=SC2086
			timeout 30 "$REMORA" $what >stdout 2>stderr </dev/null || rc=$?
			less "$rc" 7 "exit status of remora $what, REMORA_SEED=$((seed + n))"
			lacks stderr "internal error"
		done
		exec {hold}>&-
		wait $!
		rm h.in h.out
		[ $SECONDS -lt $end ] || break
	done
	echo "$n servers; REMORA_SEED=$seed"
}

case_the_control_socket_of_a_mount() {
	local pid
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	random_file data 8M
	serve s data
	: >f
	mount_file m "$(at s)" "$dir/f"
	pid=${pid_of[m]}
	exits 0 "$REMORA" status "$dir/f"
	before "$pid"
	cp data model
	spawn a "$HOSTILE" control "$REMORA_RUNTIME_DIR/mount-$pid.sock" "$attack_s" "$seed"
	while kill -0 "${pid_of[a]}" 2>/dev/null; do
		timeout 60 cmp f model
	done
	finished a
	is "$status_of" 0 "exit status of the attacker"
	exits 0 timeout 60 "$REMORA" status "$dir/f"
	before_rss=$((before_rss + 16384)) # the file, which the mount has by now
	nothing_stays "$pid"
	unmount_file m "$dir/f"
}

case_the_control_socket_of_a_server() {
	serve s memory:8M
	exits 0 "$REMORA" status "unix:$dir/s.sock"
	before "${pid_of[s]}"
	spawn a "$HOSTILE" control "$REMORA_RUNTIME_DIR/serve-${pid_of[s]}.sock" "$attack_s" "$seed"
	finished a
	exits 0 timeout 60 "$REMORA" status "unix:$dir/s.sock"
	nothing_stays "${pid_of[s]}"
	stop s
	is "$status_of" 0 "exit status of the server"
}

run_cases
