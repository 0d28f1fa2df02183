#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A server that ssh starts on another machine; here it is this one, and ssh a script that does the same without a network.
. "$(dirname "$0")/lib.sh"

# Understands what a real one would; keeps the pid of what it has become, and how it was called.
fake_ssh() { # [pipes]
	mkdir -p bin
	cat >bin/ssh <<-'END'
		#!/bin/bash
		printf '%s\n' "$*" >>"$FAKE_DIR/calls"
		while [ $# -gt 0 ]; do
			case $1 in
			-T) ;;
			-p) shift ;;
			--) shift; break ;;
			*) echo "unknown option $1" >&2; exit 255 ;;
			esac
			shift
		done
		if [ "$1" = nowhere ]; then
			echo "ssh: connect to host nowhere port 22: Connection refused" >&2
			exit 255
		fi
		shift
		echo $$ >>"$FAKE_DIR/pids.ssh"
		[ ! -e "$FAKE_DIR/pipes" ] || { cat | bash -c "$*" | cat; exit; }
		exec bash -c "exec $*"
	END
	chmod +x bin/ssh
	ln -sf "$REMORA" bin/remora
	export PATH=$dir/bin:$PATH FAKE_DIR=$dir
	[ -z "${1-}" ] || : >pipes
}

no_server_left() {
	local pid
	while read -r pid; do
		[ ! -e "/proc/$pid" ] || { echo "$pid is still there: $(tr '\0' ' ' <"/proc/$pid/cmdline")"; return 1; }
	done <pids.ssh
}

case_data_through_ssh() {
	fake_ssh
	random_file data 8M
	exits 0 "$REMORA" copy --quiet "remora+ssh://me@host:2222$dir/data" out
	same data out
	holds calls "-T -p 2222 -- me@host remora serve --stdio --session "
	random_file new 8M
	exits 0 "$REMORA" copy --quiet new "remora+ssh://host$dir/data"
	same new data
	exits 0 "$REMORA" info "remora+ssh://host$dir/data?readonly=yes"
	holds calls "--read-only"
	no_server_left
}

case_data_through_ssh_that_gives_pipes() {
	fake_ssh pipes
	random_file data 8M
	exits 0 "$REMORA" copy --quiet "remora+ssh://host$dir/data" out
	same data out
	exits 0 "$REMORA" copy --quiet out "remora+ssh://host$dir/data"
	no_server_left
}

case_an_ssh_of_ones_own() {
	fake_ssh
	mv bin/ssh bin/myssh
	random_file data 64K
	REMORA_SSH="bash $dir/bin/myssh" exits 0 "$REMORA" copy --quiet "remora+ssh://host$dir/data" out
	same data out
	exits 0 env REMORA_SSH="$dir/bin/myssh" "$REMORA" info "remora+ssh://host$dir/data?command=env%20A=b%20remora"
}

case_paths_are_words_whatever_is_in_them() {
	local name
	fake_ssh
	for name in "a b" "it's" '$(touch broken)' '`touch broken`' ';touch broken;' '--help' 'a"b' "*"; do
		random_file "$name" 64K
		rm -f out
		exits 0 "$REMORA" copy --quiet "remora+ssh://host$dir/$name" out
		same "$name" out
	done
	[ ! -e broken ]
	export HOME=$dir
	(cd "$HOME" && exits 0 "$REMORA" info "remora+ssh://host/~/out")
}

case_what_ssh_says_is_told() {
	fake_ssh
	exits 3 timeout 20 "$REMORA" info remora+ssh://nowhere/data
	holds stderr "ssh nowhere: ssh: connect to host nowhere port 22: Connection refused"
	exits 3 timeout 20 "$REMORA" info "remora+ssh://host/no/such/file"
	holds stderr "remora serve: /no/such/file"
	exits 3 timeout 20 "$REMORA" info "remora+ssh://host/x?command=no-such-command"
	holds stderr "no-such-command"
	exits 2 "$REMORA" info "remora+ssh://host"
	holds stderr "the path is missing"
	exits 2 "$REMORA" info "remora+ssh://-oProxyCommand=touch%20broken/x"
	holds stderr "is no host"
	exits 2 "$REMORA" list "remora+ssh://host/x"
	[ ! -e broken ]
}

case_a_lost_ssh_is_started_again() {
	local i last
	fake_ssh
	[ -w /dev/fuse ] || skip "no /dev/fuse"
	random_file data 4M
	cp data copy
	: >file
	mount_file m "remora+ssh://host$dir/data" file --pull none
	for i in 1 2 3; do
		printf 'changed' | dd of=file bs=1 seek=${i}00000 conv=notrunc status=none
		printf 'changed' | dd of=copy bs=1 seek=${i}00000 conv=notrunc status=none
		last=$(tail -n 1 pids.ssh)
		kill -KILL "$last"
		until [ "$(tail -n 1 pids.ssh)" != "$last" ]; do :; done
		same copy file
	done
	unmount_file m file
	same copy data
	less 3 "$(wc -l <calls)" "how often ssh was started"
	no_server_left
}

case_stdio_prints_nothing_but_the_protocol() {
	random_file data 64K
	printf 'this is no hello, and long enough to be one if it were: no, no, no, no, no, no, no, no, no' |
		timeout 20 "$REMORA" serve --stdio data >out 2>err || true
	is "$(wc -c <out)" 0 "bytes on standard output"
	exits 2 "$REMORA" serve --stdio data --listen "unix:$dir/s.sock"
	holds stderr "--stdio goes without --listen"
}

case_a_second_server_of_a_session_waits_for_the_first() {
	local fd
	random_file data 64K
	mkfifo in
	"$REMORA" serve --stdio --session abc data <in >/dev/null 2>first.err &
	echo $! >>pids
	local first=$!
	exec {fd}>in
	until grep -q remora-stdio-abc /proc/net/unix; do :; done
	"$REMORA" serve --stdio --session abc data </dev/null >/dev/null 2>second.err &
	echo $! >>pids
	local second=$!
	# It has come as far as to wait when it sleeps; that it does not go on shows in the lock alone.
	kill -0 $second
	kill -0 $first
	exec {fd}>&-
	wait $first
	wait $second
}

run_cases
